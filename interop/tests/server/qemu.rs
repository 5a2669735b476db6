//! QEMU, by `qemu-io`: single requests, and those that are 64 bits wide. It also has the common
//! part of the tests of QEMU's other programs.

use std::sync::Arc;

use interop::{
    Certificates, Endpoint, Finished, KIB, MIB, Peer, Program, assert_same, require, run,
};
use nbd_blocking::{BlockSizes, HeaderStyle};
use nbd_io::{Memory, ZeroMode};
use serde_json::{Value, json};

use crate::{
    exports::{Call, Spy},
    serving::Serving,
};

const GIB: u64 = 1 << 30;

/// Runs a test's body with one of QEMU's programs, or not at all.
pub(crate) fn with(peer: Peer, body: impl FnOnce(&Program) + Send + 'static) {
    if let Some(program) = require(peer) {
        run(move || body(&program));
    }
}

/// The headers that a program of QEMU's asks for.
pub(crate) fn mode(program: &Program) -> HeaderStyle {
    match program.is_at_least(8, 2) {
        true => HeaderStyle::Extended,
        false => HeaderStyle::Structured,
    }
}

/// The address of a server in QEMU's terms, as options with a prefix.
pub(crate) fn place(endpoint: &Endpoint, prefix: &str) -> String {
    match endpoint {
        Endpoint::Unix(path) => {
            let path = path.display();
            format!("{prefix}server.type=unix,{prefix}server.path={path}")
        }
        _ => {
            let (host, port) = (endpoint.address().ip(), endpoint.address().port());
            format!(
                "{prefix}server.type=inet,{prefix}server.host={host},{prefix}server.port={port}"
            )
        }
    }
}

/// The object that QEMU takes certificates from, which is called "tls".
pub(crate) fn credentials(certificates: &Certificates) -> String {
    let dir = certificates.dir().display();
    // The program would not use a certificate that its own authority did not sign.
    format!("tls-creds-x509,id=tls,endpoint=client,sanity-check=off,dir={dir}")
}

/// The options of a raw disk that is "disk" over TLS.
pub(crate) fn encrypted(endpoint: &Endpoint) -> String {
    let place = place(endpoint, "file.");
    let mut options =
        format!("driver=raw,file.driver=nbd,file.export=disk,file.tls-creds=tls,{place}");
    if let Endpoint::Unix(_) = endpoint {
        options.push_str(",file.tls-hostname=localhost");
    }
    options
}

/// Runs commands of `qemu-io` on "disk" with further options.
fn io(qemu_io: &Program, options: &[&str], commands: &[&str]) -> Finished {
    let mut args = vec!["-f", "raw", "-d", "unmap"];
    if options.contains(&"--image-opts") {
        args.drain(..2);
    }
    for command in commands {
        args.extend(["-c", command]);
    }
    args.extend(options);
    qemu_io.run(args)
}

/// Like [`io`], where all has to succeed.
#[track_caller]
fn io_succeeds(qemu_io: &Program, options: &[&str], commands: &[&str]) -> String {
    let said = io(qemu_io, options, commands).expect_success();
    assert!(
        !said.contains("failed") && !said.contains("mismatch"),
        "{said}"
    );
    said
}

pub(crate) fn fill(bytes: &mut [u8], offset: u64, len: u64, with: u8) {
    let start = usize::try_from(offset).unwrap();
    bytes[start..start + usize::try_from(len).unwrap()].fill(with);
}

#[test]
fn single_requests_reach_the_storage_as_they_are() {
    with(Peer::QemuIo, |qemu_io| {
        let spy = Spy::new(4 * MIB);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let commands = [
            "write -P 1 0 64k",
            "writev -P 2 64k 4k 8k 4k",
            "write -f -P 3 80k 4k",
            "write -P 4 123457 1001",
            "flush",
            "write -z 0 4k",
            "write -z -u 4k 4k",
            "write -z -u -n 8k 4k",
            "write -z -f 12k 4k",
            "discard 16k 16k",
            "read -P 0 0 32k",
            "read -P 1 32k 32k",
            "readv -P 2 64k 4k 12k",
            "read -P 3 80k 4k",
            "read -P 4 123457 1001",
        ];
        let options = ["-t", "writeback", &serving.uri("disk")];
        io_succeeds(qemu_io, &options, &commands);
        let mut calls = spy.calls();
        calls.retain(|call| !matches!(call, Call::Read { .. } | Call::Status { .. }));
        let write = |offset, len, fua| Call::Write { offset, len, fua };
        let zeroes = |offset, no_hole, fast, fua| Call::Zeroes {
            offset,
            len: 4096,
            mode: ZeroMode { no_hole, fast, fua },
        };
        assert_eq!(
            calls,
            [
                write(0, 64 * KIB, false),
                write(64 * KIB, 16 * KIB, false),
                write(80 * KIB, 4 * KIB, true),
                write(123_457, 1001, false),
                Call::Flush,
                zeroes(0, true, false, false),
                zeroes(4096, false, false, false),
                zeroes(8192, false, true, false),
                zeroes(12_288, true, false, true),
                Call::Trim {
                    offset: 16 * KIB,
                    len: 16 * KIB,
                    fua: false,
                },
                // It flushes when it leaves.
                Call::Flush,
            ]
        );
        let mut expected = vec![0; 4 << 20];
        fill(&mut expected, 32 * KIB, 32 * KIB, 1);
        fill(&mut expected, 64 * KIB, 16 * KIB, 2);
        fill(&mut expected, 80 * KIB, 4 * KIB, 3);
        fill(&mut expected, 123_457, 1001, 4);
        assert_same(&spy.contents(), &expected, 0);
        assert_eq!(serving.stop().modes(), [mode(qemu_io)]);
    });
}

#[test]
fn requests_in_flight_are_not_confused() {
    with(Peer::QemuIo, |qemu_io| {
        let spy = Spy::new(16 * MIB);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let uri = serving.uri("disk");
        let both = |verb: &str| -> Vec<String> {
            let one = |n: u64| format!("{verb} -P {} {} 33k", n + 1, n * 100_000);
            (0..100).map(one).chain(["aio_flush".to_owned()]).collect()
        };
        let commands = [both("aio_write"), both("aio_read")].concat();
        let commands: Vec<_> = commands.iter().map(String::as_str).collect();
        io_succeeds(qemu_io, &[&uri], &commands);
        let mut expected = vec![0; 16 << 20];
        for n in 0..100 {
            let with = u8::try_from(n + 1).unwrap();
            fill(&mut expected, n * 100_000, 33 * KIB, with);
        }
        assert_same(&spy.contents(), &expected, 0);
        // A control: the check fails for a wrong pattern.
        let wrong = io(qemu_io, &[&uri], &["read -P 2 0 512"]);
        assert!(wrong.stdout.contains("Pattern verification failed"));
    });
}

#[test]
fn every_write_is_forced_where_that_is_wanted() {
    with(Peer::QemuIo, |qemu_io| {
        let spy = Spy::new(MIB);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let options = ["-t", "writethrough", &serving.uri("disk")];
        io_succeeds(qemu_io, &options, &["write 0 4k", "write -z 8k 4k"]);
        let forced = |call: &Call| match call {
            Call::Write { fua, .. } => Some(*fua),
            Call::Zeroes { mode, .. } => Some(mode.fua),
            _ => None,
        };
        let calls = spy.calls();
        let forced: Vec<_> = calls.iter().filter_map(forced).collect();
        assert_eq!(forced, [true, true], "{calls:?}");
    });
}

#[test]
fn a_failed_command_leaves_the_others_alone() {
    with(Peer::QemuIo, |qemu_io| {
        let spy = Spy::over(Memory::new(4 * MIB).with_limit(64 << 10));
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let uri = serving.uri("disk");
        let commands = [
            "write -P 1 0 64k",
            "write -P 2 1M 64k",
            "read -P 0 1M 64k",
            "read 4M 512",
            "write 4M 512",
            "read -P 1 0 64k",
        ];
        let finished = io(qemu_io, &[&uri], &commands);
        let said = format!("{}{}", finished.stdout, finished.stderr);
        let failures: Vec<_> = said
            .lines()
            .filter(|line| line.contains("failed"))
            .collect();
        assert_eq!(
            failures,
            [
                "write failed: No space left on device",
                "read failed: Input/output error",
                "write failed: Input/output error",
            ]
        );

        let read_only = Serving::disk(Arc::new(Memory::new(MIB).read_only()));
        let refused = io(qemu_io, &[&read_only.uri("disk")], &["write 0 512"]);
        let refused = refused.expect_failure();
        assert!(refused.contains("Permission denied"), "{refused}");
        io_succeeds(
            qemu_io,
            &["-r", &read_only.uri("disk")],
            &["read -P 0 0 512"],
        );

        let refused = io(qemu_io, &[&serving.uri("other")], &["read 0 512"]).expect_failure();
        assert!(
            refused.contains("no export") || refused.contains("not present"),
            "{refused}"
        );
    });
}

#[test]
fn blocks_of_the_export_are_kept_to() {
    with(Peer::QemuIo, |qemu_io| {
        let sizes = BlockSizes::new(4096, 8192, 65_536).unwrap();
        let spy = Spy::over(Memory::new(MIB).with_block_sizes(sizes));
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let commands = [
            "write -P 1 0 300k",
            "write -P 2 5000 100",
            "read -P 2 5000 100",
        ];
        io_succeeds(qemu_io, &[&serving.uri("disk")], &commands);
        let mut expected = vec![0; 1 << 20];
        fill(&mut expected, 0, 300 * KIB, 1);
        fill(&mut expected, 5000, 100, 2);
        assert_same(&spy.contents(), &expected, 0);
        for call in spy.calls() {
            if let Call::Read { offset, len } | Call::Write { offset, len, .. } = call {
                assert_eq!((offset % 4096, len % 4096), (0, 0), "{call:?}");
                assert!(len <= 65_536, "{call:?}");
            }
        }
    });
}

#[test]
fn terabytes_take_one_request() {
    with(Peer::QemuIo, |qemu_io| {
        let spy = Spy::new(8 << 40);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let uri = serving.uri("disk");
        let commands = [
            "write -P 1 3T 64k",
            "write -z -n -u 1G 7G",
            "write -P 2 5000G 1k",
        ];
        if mode(qemu_io) != HeaderStyle::Extended {
            return;
        }
        io_succeeds(qemu_io, &[&uri], &commands);
        let zeroes = |call: &Call| matches!(call, Call::Zeroes { len, .. } if *len == 7 * GIB);
        assert!(spy.calls().iter().any(zeroes));

        let Some(qemu_img) = require(Peer::QemuImg) else {
            return;
        };
        let map = ["map", "--output=json", &uri];
        let map: Value = serde_json::from_str(&qemu_img.run(map).expect_success()).unwrap();
        let data: Vec<_> = map
            .as_array()
            .unwrap()
            .iter()
            .filter(|extent| extent["data"] == true)
            .map(|extent| (extent["start"].clone(), extent["length"].clone()))
            .collect();
        assert_eq!(
            data,
            [
                (json!(3_u64 << 40), json!(64 * KIB)),
                (json!(5000 * GIB), json!(Memory::PAGE)),
            ]
        );
        // Each extent took one request.
        let questions = spy.calls();
        assert!(questions.len() <= 6, "{questions:?}");
    });
}
