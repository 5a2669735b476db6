//! The client in the kernel of Linux, in an emulated machine, with the servers of all runtimes.
//!
//! The script of the guest is `linux/init`.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and so does its helper"
)]

use interop::{Peer, Program, deadline, require};

use nbd_io::{Export, File, Memory, ZeroMode, server::Stopper};
use nbd_proto::{BlockSizes, Failure, TransmissionFlags};
use nbd_socket::Listener;
use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// A sector of the kernel, in bytes.
const SECTOR: u64 = 512;
const SIZE: u64 = 256 << 20;
/// The largest size that is a multiple of the kernel's blocks of 4 KiB.
const HUGE: u64 = (1 << 63) - 4096;
const MIB: u64 = 1 << 20;
/// The number of connections of the guest to each server.
const CONNECTIONS: u64 = 4;
/// The steps of the guest for each device, and for the huge one.
const STEPS: (usize, usize) = (17, 6);

/// A server under test.
struct Host {
    name: &'static str,
    port: u16,
    stopper: Stopper,
    thread: JoinHandle<()>,
}

impl Host {
    /// Starts a server of a runtime; `serve` is run in a thread of its own.
    fn start(
        name: &'static str,
        stopper: Stopper,
        serve: impl FnOnce(Listener) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let listener = Listener::new(listener).unwrap();
        Self {
            name,
            port,
            stopper,
            thread: thread::spawn(move || serve(listener)),
        }
    }

    fn blocking(export: Arc<dyn Export>) -> Self {
        let server = nbd_blocking::Server::single(export);
        Self::start("blocking", server.stopper(), move |listener| {
            let listener = nbd_blocking::Listener::new(listener).unwrap();
            server.serve(listener).unwrap();
        })
    }

    fn tokio(export: Arc<dyn Export>) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = {
            let _entered = runtime.enter();
            nbd_tokio::Server::single(export)
        };
        Self::start("tokio", server.stopper(), move |listener| {
            runtime.block_on(async {
                let listener = nbd_tokio::Listener::new(listener).unwrap();
                server.serve(listener).await.unwrap();
            });
        })
    }

    fn async_std(export: Arc<dyn Export>) -> Self {
        let server = nbd_async_std::Server::single(export);
        Self::start("async-std", server.stopper(), move |listener| {
            async_std::task::block_on(async {
                let listener = nbd_async_std::Listener::new(listener).unwrap();
                server.serve(listener).await.unwrap();
            });
        })
    }

    fn stop(self) {
        self.stopper.stop();
        self.thread.join().unwrap();
    }
}

/// An export that counts its requests.
struct Counted {
    export: Arc<dyn Export>,
    reads: AtomicU64,
    writes: AtomicU64,
    forced: AtomicU64,
    flushes: AtomicU64,
    trims: AtomicU64,
}

impl Counted {
    fn new(export: impl Export + 'static) -> Arc<Self> {
        Arc::new(Self {
            export: Arc::new(export),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            forced: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            trims: AtomicU64::new(0),
        })
    }

    fn counts(&self) -> [(&'static str, u64); 5] {
        [
            ("reads", &self.reads),
            ("writes", &self.writes),
            ("writes with FUA", &self.forced),
            ("flushes", &self.flushes),
            ("trims", &self.trims),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

impl Export for Counted {
    fn size(&self) -> u64 {
        self.export.size()
    }

    fn flags(&self) -> TransmissionFlags {
        self.export.flags()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.export.block_sizes()
    }

    fn may_block(&self) -> bool {
        self.export.may_block()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.export.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.forced.fetch_add(fua.into(), Ordering::Relaxed);
        self.export.write(offset, data, fua)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.export.flush()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        self.trims.fetch_add(1, Ordering::Relaxed);
        self.export.trim(offset, len, fua)
    }

    fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        self.export.write_zeroes(offset, len, mode)
    }
}

/// Whether the kernel has not run the thread that receives the replies of a connection: a request has
/// timed out, and its reply was received later, when the device was disconnected. A thread that waits
/// for a reply ends as soon as the kernel gives the connection up and says so ("Receive control
/// failed"). Here it had not begun to wait, and the reply was lying there.
///
/// No server can do anything about it. Linux 6.1 does the same with nbdkit where real-time processes hold
/// the guest up while it connects. Its receivers are work of a queue that promises progress: if no thread
/// can be started in time, one takes all that waits there and does it one after the other, and a receiver
/// is not done before its connection has ended.
fn left_a_receiver_waiting(said: &str) -> bool {
    let has_late_reply = said.contains("Connection timed out") && said.contains("Unexpected reply");
    has_late_reply && !said.contains("Receive control failed")
}

#[test]
fn a_request_that_a_server_does_not_answer_is_no_receiver_that_was_left_waiting() {
    let late = "block nbd0: Connection timed out, retrying (4/4 alive)\n";
    let failed = "block nbd0: Receive control failed (result -32)\n";
    let reply = "block nbd0: Unexpected reply (65536) 00000000b14ba7bc\n";
    assert!(left_a_receiver_waiting(&[late, reply].concat()));
    assert!(!left_a_receiver_waiting(&[late, failed].concat()));
    assert!(!left_a_receiver_waiting(&[late, failed, reply].concat()));
    assert!(!left_a_receiver_waiting(reply));
}

#[test]
fn the_kernels_client_keeps_file_systems_on_the_servers_of_all_runtimes() {
    deadline(Duration::from_secs(640), || {
        let Some(linux) = require(Peer::Linux) else {
            return;
        };
        if !file_systems_are_kept(&linux) {
            assert!(file_systems_are_kept(&linux), "it happened twice");
        }
    });
}

/// Returns `false` if the guest [left a receiver waiting](left_a_receiver_waiting).
fn file_systems_are_kept(linux: &Program) -> bool {
    let backing = tempfile::NamedTempFile::new().unwrap();
    backing.as_file().set_len(SIZE).unwrap();
    let exports = [
        Counted::new(Memory::new(SIZE)),
        Counted::new(File::open(backing.path()).unwrap()),
        Counted::new(Memory::new(SIZE)),
    ];
    let [first, second, third] = exports.clone();
    let hosts = [
        Host::blocking(first),
        Host::tokio(second),
        Host::async_std(third),
    ];
    let huge = Host::blocking(Arc::new(Memory::new(HUGE)));
    let ports: Vec<_> = hosts.iter().map(|host| host.port.to_string()).collect();

    let finished = linux.run([
        format!("nbd_ports={}", ports.join(",")),
        format!("nbd_sectors={}", SIZE / SECTOR),
        format!("nbd_connections={CONNECTIONS}"),
        format!("nbd_huge={}", huge.port),
        format!("nbd_huge_sectors={}", HUGE / SECTOR),
    ]);

    let said = &finished.stdout;
    if left_a_receiver_waiting(said) {
        return false;
    }
    // The console may print something before a line.
    let passed = said.matches("PASS ").count();
    assert!(
        !said.contains("FAIL") && said.contains(&format!("DONE {}", hosts.len())),
        "{said}{}",
        finished.stderr
    );
    assert_eq!(passed, hosts.len() * STEPS.0 + STEPS.1, "{said}");
    for (host, export) in hosts.iter().zip(&exports) {
        for (what, count) in export.counts() {
            assert!(count > 0, "no {what} came to {}", host.name);
        }
        let mut found = vec![0; usize::try_from(MIB).unwrap()];
        export.read(SIZE - MIB, &mut found).unwrap();
        let line = format!("{}\n", host.port);
        let expected = line.bytes().cycle().take(found.len());
        assert!(
            expected.eq(found),
            "{}: the contents differ from the written data",
            host.name
        );
    }
    for host in hosts.into_iter().chain([huge]) {
        host.stop();
    }
    true
}
