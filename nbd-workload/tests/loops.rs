//! The requests of a workload by each client, as the server's side sees them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use nbd_blocking::{
    Client, Listener, Server,
    exports::{Export, Memory},
    nbd_io::forward_export,
    nbd_proto::{Errno, Failure},
};
use nbd_workload::{Limit, Loops, Measured, Op, Pattern, Workload};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// More than the requests of a lap over the part of the disk that is used.
const REQUESTS: u64 = 300;
const SPAN: u64 = 256 * BLOCK / 2;

/// A disk that notes the requests that come, and fails them on demand.
struct Noted {
    disk: Memory,
    /// The offset, the length, and whether it was a write.
    requests: Mutex<Vec<(u64, usize, bool)>>,
    fails: AtomicBool,
}

impl Noted {
    fn note(&self, offset: u64, len: usize, writes: bool) -> Result<(), Failure> {
        self.requests.lock().unwrap().push((offset, len, writes));
        if self.fails.load(Ordering::Relaxed) {
            return Err(Failure::new(Errno::Io));
        }
        Ok(())
    }
}

impl Export for Noted {
    // All reads come to `read`.
    forward_export!(|this| &this.disk, except read, read_unless_zero, read_now, write);

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.note(offset, buf.len(), false)?;
        self.disk.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        self.note(offset, data.len(), true)?;
        self.disk.write(offset, data, fua)
    }
}

/// The ways to do a workload on one connection.
#[derive(Clone, Copy, Debug)]
enum By {
    Blocking,
    Tokio,
    #[cfg(feature = "async-std")]
    AsyncStd,
}

const ALL: &[By] = &[
    By::Blocking,
    By::Tokio,
    #[cfg(feature = "async-std")]
    By::AsyncStd,
];

impl By {
    fn run(self, uri: &str, workload: Workload) -> Result<Measured, nbd_tokio::Error> {
        match self {
            Self::Blocking => {
                let client = nbd_blocking::connect(uri).unwrap();
                nbd_workload::blocking(&client, &workload, 0)
            }
            Self::Tokio => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let client = nbd_tokio::connect(uri).await.unwrap();
                    nbd_tokio::Tokio::run(client.into(), workload, 0).await
                })
            }
            #[cfg(feature = "async-std")]
            Self::AsyncStd => {
                use nbd_async_std::{AsyncStd, nbd_io::runtime::BlockOn};
                AsyncStd.block_on(async {
                    let client = nbd_async_std::connect(uri).await.unwrap();
                    AsyncStd::run(client.into(), workload, 0).await
                })
            }
        }
    }
}

/// A server for as long as the value lives.
struct Served {
    disk: Arc<Noted>,
    uri: String,
    stopper: nbd_blocking::nbd_io::server::Stopper,
    thread: Option<thread::JoinHandle<()>>,
}

impl Served {
    fn new() -> Self {
        let memory = Memory::new(SIZE);
        // A server reads no zeroes that it knows of.
        let data = vec![1; usize::try_from(SIZE).unwrap()];
        memory.write(0, &data, false).unwrap();
        let disk = Arc::new(Noted {
            disk: memory,
            requests: Mutex::default(),
            fails: AtomicBool::new(false),
        });
        let server = Server::single(Arc::clone(&disk) as Arc<dyn Export>);
        let listeners = Listener::bind_tcp("127.0.0.1:0").unwrap();
        Self {
            disk,
            uri: format!("nbd://{}/", listeners[0].local_addr().unwrap()),
            stopper: server.stopper(),
            thread: Some(thread::spawn(move || server.serve(listeners).unwrap())),
        }
    }

    fn taken(&self) -> Vec<(u64, usize, bool)> {
        std::mem::take(&mut self.disk.requests.lock().unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

fn workload(op: Op, pattern: Pattern, depth: u32) -> Workload {
    Workload {
        op,
        pattern,
        block_size: BLOCK,
        depth,
        connections: 1,
        span: Some(SPAN),
        limit: Limit::Requests(REQUESTS),
    }
}

#[test]
fn the_server_sees_what_the_workload_says() {
    let served = Served::new();
    for by in ALL {
        for depth in [1, 16] {
            for (op, writes) in [
                (Op::Read, 0..=0),
                (Op::Write, 300..=300),
                (Op::Mix { reads: 70 }, 50..=130),
            ] {
                for pattern in [Pattern::Sequential, Pattern::Random] {
                    let case = format!("{by:?} {op:?} {pattern:?} {depth}");
                    let start = Instant::now();
                    let measured = by.run(&served.uri, workload(op, pattern, depth)).unwrap();
                    let took = start.elapsed();
                    assert_eq!(measured.requests, REQUESTS, "{case}");
                    let longest = measured.latencies.quantile(1.0);
                    assert!(longest > Duration::ZERO && longest <= took, "{case}");

                    let mut taken = served.taken();
                    assert_eq!(taken.len(), 300, "{case}");
                    let written = taken.iter().filter(|(_, _, writes)| *writes).count();
                    assert!(writes.contains(&written), "{case}: {written}");
                    let is_in_place = |(offset, len, _): &(u64, usize, bool)| {
                        offset % BLOCK == 0 && *offset < SPAN && *len == 4096
                    };
                    assert!(taken.iter().all(is_in_place), "{case}: {taken:?}");
                    if pattern == Pattern::Sequential {
                        // Requests in flight may be served in any order.
                        let mut expected: Vec<_> =
                            (0..REQUESTS).map(|at| at * BLOCK % SPAN).collect();
                        if depth > 1 {
                            expected.sort_unstable();
                            taken.sort_unstable();
                        }
                        let offsets = taken.iter().map(|(offset, _, _)| *offset);
                        assert!(offsets.eq(expected), "{case}: {taken:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn time_ends_a_workload_and_an_error_does() {
    for by in ALL {
        for depth in [1, 16] {
            let served = Served::new(); // requests may be left in flight
            let timed = Workload {
                limit: Limit::Time(Duration::from_millis(50)),
                ..workload(Op::Read, Pattern::Random, depth)
            };
            let start = Instant::now();
            let measured = by.run(&served.uri, timed).unwrap();
            assert!(start.elapsed() >= Duration::from_millis(50), "{by:?}");
            let came = served.taken().len();
            assert_eq!(measured.requests, u64::try_from(came).unwrap(), "{by:?}");

            served.disk.fails.store(true, Ordering::Relaxed);
            let error = by
                .run(&served.uri, workload(Op::Write, Pattern::Random, depth))
                .unwrap_err();
            assert_eq!(error.errno(), Some(Errno::Io), "{by:?}: {error}");
        }
    }
}

/// Their requests have the slots that the workload would have alone.
#[test]
fn others_may_use_the_connection_meanwhile() {
    let served = Served::new();
    let client: Client = nbd_blocking::connect(&served.uri).unwrap();
    let mut others = client.queue();
    for _ in 0..20 {
        others.read(vec![0; 4096], 0).unwrap();
    }
    let measured =
        nbd_workload::blocking(&client, &workload(Op::Read, Pattern::Random, 4), 0).unwrap();
    assert_eq!(measured.requests, REQUESTS);
    while let Some(completion) = others.complete().unwrap() {
        completion.result.unwrap();
    }
    assert_eq!(served.taken().len(), 320);
}
