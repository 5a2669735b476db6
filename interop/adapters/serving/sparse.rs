//! Files with holes.

use super::{
    Server,
    support::{Running, modes, pattern, soon},
};
use interop::{Peer, Program, require};
use nbd_io::File;
use std::{os::unix::fs::FileExt, sync::Arc};

/// Extents as `qemu-img map` prints them: their place and length, whether zeroes and whether data.
fn map(qemu_img: &Program, image: &str) -> Vec<String> {
    let args = ["map", "--output=json", "-f", "raw", image];
    let reported = qemu_img.run(args).expect_success();
    let keys = ["start", "length", "zero", "data"];
    reported
        .split('{')
        .skip(1)
        .map(|run| {
            let all = run.split(',').map(|pair| pair.trim().trim_matches('}'));
            let wanted = |pair: &&str| keys.iter().any(|key| pair.contains(&format!("\"{key}\"")));
            let wanted: Vec<_> = all.filter(wanted).collect();
            wanted.join(", ")
        })
        .collect()
}

#[test]
fn holes_in_a_file_are_reported_and_sent_as_such() {
    soon(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let size = 8 << 20;
        let mut model = vec![0; size];
        for (at, len) in [(1 << 20, 65_536), (5 << 20, 1 << 20)] {
            let data = pattern(len, len as u32);
            file.as_file().write_all_at(&data, at as u64).unwrap();
            model[at..at + len].copy_from_slice(&data);
        }
        file.as_file().set_len(size as u64).unwrap();
        let export = File::open(file.path()).unwrap();
        let running = Running::new(Server::single(Arc::new(export)));
        for options in &modes()[1..] {
            let client = running.connect(options);
            let reported: Vec<_> = client
                .extents(0..client.size())
                .map(|run| {
                    let run = run.unwrap();
                    (run.offset, run.len, run.status)
                })
                .collect();
            let expected = [
                (0, 1 << 20, vec![3]),
                (1 << 20, 65_536, vec![0]),
                ((1 << 20) + 65_536, (4 << 20) - 65_536, vec![3]),
                (5 << 20, 1 << 20, vec![0]),
                (6 << 20, 2 << 20, vec![3]),
            ];
            assert_eq!(reported, expected);
            let mut read = vec![1; size];
            client.read_exact_at(&mut read, 0).unwrap();
            assert!(read == model);
        }
        if let Some(qemu_img) = require(Peer::QemuImg) {
            let uri = format!("nbd+unix:///?socket={}", running.unix.display());
            let here = map(&qemu_img, file.path().to_str().unwrap());
            assert_eq!(here.len(), 5, "{here:?}");
            assert_eq!(map(&qemu_img, &uri), here);
        }
        running.stop();
    });
}
