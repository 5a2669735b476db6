//! libnbd's `nbdcopy` and `nbddump` move whole disks.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::runtime::Server;
use interop::{Certificates, KIB, Listen, MIB, Peer, Program, assert_same, pattern, require, run};
use nbd_io::{Memory, NamedExports};
use tempfile::TempDir;

use crate::{
    exports::{Call, Spy},
    serving::{Serving, name, server, tls},
};

/// The size of the disks, which is no multiple of anything.
const SIZE: u64 = 20 * MIB + 12_345;

/// The ranges of data, in bytes; the rest is zero.
const DATA: [(u64, u64); 4] = [
    (0, 300 * KIB + 7),
    (4 * MIB + 1, 5 * MIB),
    (15 * MIB, 32 * KIB),
    (SIZE - 3000, 3000),
];

/// A directory of files for one test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("nbd-").tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The contents of a disk with holes.
fn disk() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    for (seed, (offset, len)) in DATA.into_iter().enumerate() {
        let start = usize::try_from(offset).unwrap();
        let data = pattern(seed as u64, len);
        bytes[start..start + data.len()].copy_from_slice(&data);
    }
    bytes
}

/// Memory with these contents, and holes where they are zero.
fn filled(bytes: &[u8]) -> Arc<Spy> {
    let spy = Spy::new(bytes.len() as u64);
    let page = usize::try_from(Memory::PAGE).unwrap();
    for (number, page) in bytes.chunks(page).enumerate() {
        spy.put(number as u64 * Memory::PAGE, page);
    }
    spy
}

fn with_nbdcopy(body: impl FnOnce(&Program) + Send + 'static) {
    if let Some(nbdcopy) = require(Peer::NbdCopy) {
        run(move || body(&nbdcopy));
    }
}

#[track_caller]
fn copy(nbdcopy: &Program, options: &[&str], from: &str, to: &str) {
    let args = options.iter().chain([&from, &to]);
    let _said = nbdcopy.run(args).expect_success();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Options that change the way of copying a disk, but not the outcome.
const WAYS: [&[&str]; 9] = [
    &[],
    &["--connections=4", "--threads=4", "--requests=64"],
    &["--connections=1", "--requests=1"],
    &["--synchronous"],
    &["--no-extents", "--sparse=0"],
    &["--request-size=65536", "--requests=32"],
    &["--request-size=33554432"],
    &["--sparse=512", "--flush"],
    &["--allocated"],
];

/// Whether the copy has no holes.
fn is_full(options: &[&str]) -> bool {
    options.contains(&"--allocated") || options.contains(&"--sparse=0")
}

#[test]
fn a_disk_is_downloaded_whichever_way() {
    with_nbdcopy(|nbdcopy| {
        let expected = disk();
        let serving = Serving::disk(filled(&expected));
        let files = Files::new();
        for (number, options) in WAYS.iter().enumerate() {
            let file = files.path(&number.to_string());
            copy(nbdcopy, options, &serving.uri("disk"), text(&file));
            assert_same(&fs::read(&file).unwrap(), &expected, 0);
            // Holes arrive as such.
            let takes_up = fs::metadata(&file).unwrap().blocks() * 512;
            assert!(
                takes_up < SIZE || is_full(options),
                "{options:?}: {takes_up}"
            );
        }
        // All four connections were in use at once.
        let entered = serving.stop().entered;
        assert!(entered.len() >= WAYS.len() + 3, "{entered:?}");
    });
}

#[test]
fn a_disk_is_uploaded_whichever_way() {
    with_nbdcopy(|nbdcopy| {
        let expected = disk();
        let files = Files::new();
        let file = files.path("disk");
        // With holes in the file, too.
        let source = Serving::disk(filled(&expected));
        copy(nbdcopy, &[], &source.uri("disk"), text(&file));
        for options in WAYS {
            // Old data must not shine through.
            let spy = filled(&pattern(99, SIZE));
            let serving = Serving::disk(Arc::clone(&spy) as _);
            copy(nbdcopy, options, text(&file), &serving.uri("disk"));
            assert_same(&spy.contents(), &expected, 0);

            let calls = spy.calls();
            let flushes = calls.iter().filter(|call| **call == Call::Flush).count();
            assert_eq!(flushes > 0, options.contains(&"--flush"), "{options:?}");
            assert_eq!(spy.allocated() >= SIZE, is_full(options), "{options:?}");
            let zeroed = |call: &Call| match call {
                Call::Zeroes { mode, .. } => Some(mode.no_hole),
                _ => None,
            };
            let wanted = options.contains(&"--allocated");
            let mut zeroed = calls.iter().filter_map(zeroed);
            assert!(zeroed.all(|no_hole| no_hole == wanted), "{options:?}");
        }
    });
}

#[test]
fn a_destination_that_is_zero_is_not_zeroed_again() {
    with_nbdcopy(|nbdcopy| {
        let expected = disk();
        let source = Serving::disk(filled(&expected));
        let spy = Spy::new(SIZE);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let options = ["--destination-is-zero"];
        copy(nbdcopy, &options, &source.uri("disk"), &serving.uri("disk"));
        assert_same(&spy.contents(), &expected, 0);
        let calls = spy.calls();
        let writes = |call: &Call| matches!(call, Call::Write { .. });
        assert!(!calls.is_empty() && calls.iter().all(writes), "{calls:?}");
    });
}

#[test]
fn a_disk_goes_from_one_server_to_another() {
    with_nbdcopy(|nbdcopy| {
        let certificates = Certificates::new();
        let expected = disk();
        let from = server(filled(&expected)).require_tls(&tls(&certificates));
        let from = Serving::new(from.unwrap(), Listen::Tcp4);
        for options in WAYS {
            let spy = filled(&pattern(98, SIZE));
            let to = server(Arc::clone(&spy) as _).require_tls(&tls(&certificates));
            let to = Serving::new(to.unwrap(), Listen::Tcp6);
            let [source, destination] = [&from, &to].map(|one| one.tls_uri("disk", &certificates));
            copy(nbdcopy, options, &source, &destination);
            assert_same(&spy.contents(), &expected, 0);
            let entered = to.stop().entered;
            assert!(entered.iter().all(|entered| entered.encrypted));
        }
    });
}

#[test]
fn a_disk_is_copied_within_one_server() {
    with_nbdcopy(|nbdcopy| {
        let expected = disk();
        let spy = Spy::new(SIZE);
        let exports = NamedExports::new()
            .with(name("from"), filled(&expected))
            .with(name("to"), Arc::clone(&spy) as _);
        let serving = Serving::new(Server::new(exports), Listen::Unix);
        let options = ["--connections=8", "--threads=2", "--requests=64"];
        copy(nbdcopy, &options, &serving.uri("from"), &serving.uri("to"));
        assert_same(&spy.contents(), &expected, 0);
        let log = serving.stop();
        for export in ["from", "to"] {
            let entered = log
                .entered
                .iter()
                .filter(|entered| entered.export == export);
            assert!(entered.count() >= 2, "{log:?}");
        }
    });
}

#[test]
fn a_destination_that_cannot_be_written_is_an_error() {
    with_nbdcopy(|nbdcopy| {
        let expected = disk();
        let source = Serving::disk(filled(&expected));
        let uri = source.uri("disk");

        let read_only = Serving::disk(Arc::new(Memory::new(SIZE).read_only()));
        let refused = nbdcopy.run([&uri, &read_only.uri("disk")]).expect_failure();
        assert!(refused.contains("read-only"), "{refused}");

        // The memory of the second one is used up in the middle.
        let small = Serving::disk(Arc::new(Memory::new(SIZE).with_limit(MIB)));
        let refused = nbdcopy.run([&uri, &small.uri("disk")]).expect_failure();
        assert!(refused.contains("No space left on device"), "{refused}");

        // The client leaves in the middle of its requests.
        for serving in [source, small] {
            let broken = serving.stop().broken;
            assert!(
                !broken.iter().any(|ending| ending.contains("protocol")),
                "{broken:?}"
            );
        }
    });
}

/// The bytes that a hexadecimal dump shows, in which a star stands for repeated lines.
fn undump(said: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut repeats = false;
    for line in said.lines() {
        if line == "*" {
            repeats = true;
            continue;
        }
        let (offset, rest) = line.split_once(':').unwrap();
        let offset = usize::from_str_radix(offset, 16).unwrap();
        if std::mem::take(&mut repeats) {
            let last = bytes[bytes.len() - 16..].to_vec();
            while bytes.len() < offset {
                bytes.extend_from_slice(&last);
            }
        }
        assert_eq!(bytes.len(), offset, "{line}");
        let (hex, _) = rest.split_once('|').unwrap();
        let pairs = hex.split_whitespace();
        bytes.extend(pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()));
    }
    bytes
}

#[test]
fn a_dump_shows_every_byte() {
    run(|| {
        let Some(nbddump) = require(Peer::NbdDump) else {
            return;
        };
        let mut expected = vec![0; 3 << 20];
        expected[5..10].copy_from_slice(b"hello");
        expected[(1 << 20) + 3..][..70_000].copy_from_slice(&pattern(5, 70_000));
        expected.extend_from_slice(b"the odd end");
        let serving = Serving::disk(filled(&expected));
        let said = nbddump.run([&serving.uri("disk")]).expect_success();
        assert_same(&undump(&said), &expected, 0);
    });
}
