//! A block device that can discard and not write zeroes, which is a rare one: a device of the
//! kernel's client, and therefore here, where a kernel has it.

use interop::{Peer, require};
use nbd_io::{Export, File, Memory, ZeroMode, export_info};
use nbd_proto::Errno;
use std::{
    fs,
    io::{self, Write},
    net::TcpListener,
    sync::Arc,
    thread,
};

const DEVICE: &str = "/dev/nbd0";
const LEN: u64 = 1 << 20;

/// Limit in bytes that the kernel gives for a command of the device; 0 if the device lacks it.
fn limit(of: &str) -> u64 {
    let limit = fs::read_to_string(format!("/sys/block/nbd0/queue/{of}_max_bytes"));
    limit.unwrap().trim().parse().unwrap()
}

fn is_all(export: &dyn Export, byte: u8, offset: u64, len: usize) -> bool {
    let mut found = vec![!byte; len];
    export.read(offset, &mut found).unwrap();
    found.iter().all(|found| *found == byte)
}

#[test]
#[ignore = "runs in the emulated machine, whose kernel has a client"]
fn a_device_that_only_discards_is_not_trimmed() {
    interop::run(|| {
        let Some(client) = require(Peer::NbdClient) else {
            return;
        };
        let disk = Arc::new(Memory::new(LEN));
        let server = nbd_blocking::Server::single(disk.clone());
        let stopper = server.stopper();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let listener = nbd_blocking::Listener::from_std(listener).unwrap();
        let serving = thread::spawn(move || server.serve(listener).unwrap());
        let arguments = ["-N", "", "127.0.0.1", &port, DEVICE, "-b", "4096"];
        client.run(arguments).expect_success();

        if limit("write_zeroes") > 0 {
            // Not `eprintln!`: the test runner would swallow it.
            drop(writeln!(io::stderr(), "SKIPPED: this kernel writes zeroes"));
        } else {
            assert!(limit("discard") > 0);
            let device = File::open(DEVICE).unwrap();
            assert!(!export_info(&device).can_trim());
            let sevens = vec![7; usize::try_from(LEN).unwrap()];
            // The system may not have written them when it is asked to discard.
            device.write(0, &sevens, false).unwrap();
            device.trim(0, LEN, true).unwrap();
            assert!(is_all(&device, 7, 0, sevens.len()));
            assert!(is_all(&*disk, 7, 0, sevens.len()));
            let fast = ZeroMode {
                fast: true,
                ..ZeroMode::default()
            };
            let failure = device.write_zeroes(0, LEN, fast).unwrap_err();
            assert_eq!(failure.errno, Errno::NotSup);
            assert!(is_all(&device, 7, 0, sevens.len()));
            let forced = ZeroMode {
                fua: true,
                ..ZeroMode::default()
            };
            device.write_zeroes(4096, 8192, forced).unwrap();
            for export in [&device as &dyn Export, &*disk] {
                assert!(is_all(export, 7, 0, 4096));
                assert!(is_all(export, 0, 4096, 8192));
                assert!(is_all(export, 7, 12_288, 4096));
            }
        }
        client.run(["-d", DEVICE]).expect_success();
        stopper.stop();
        serving.join().unwrap();
    });
}
