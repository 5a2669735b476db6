//! Memory and file descriptors of a server, in a process without other users of them.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on fails"
)]

#[path = "../server/runtime.rs"]
mod runtime;
#[path = "../../../interop/adapters/serving/support.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod support;
#[path = "../server/witness.rs"]
mod witness;

use nbd_blocking::{ConnectOptions, Server};
use nbd_io::Memory;
use runtime::{on_runtime, serve};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use support::{ENTERED, GO, Running, eventually, pattern, reply, soon};
use witness::{Witness, memory, request};

/// One test at a time has the process to itself.
static ALONE: Mutex<()> = Mutex::new(());

/// An idle connection takes up no more, in bytes. Unoptimized code needs more stack.
const IDLE: usize = if cfg!(debug_assertions) {
    224 << 10
} else {
    64 << 10
};

/// Memory of the process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// Sets the limit of open file descriptors, as many as the test needs. Returns the limit of before.
fn allow(descriptors: u64) -> Rlimit {
    let before = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: Some(descriptors),
        maximum: before.maximum,
    };
    setrlimit(Resource::Nofile, limit).expect("the hard limit is high enough");
    before
}

/// Waits until the connections have freed memory, of which each uses so much.
fn rests(each: impl Fn() -> usize) {
    let begin = Instant::now();
    while each() >= IDLE {
        let waited = begin.elapsed();
        assert!(
            waited < Duration::from_secs(40),
            "{} bytes for each",
            each()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn enter(running: &Running) -> UnixStream {
    let mut raw = running.raw();
    raw.write_all(GO).unwrap();
    raw.read_exact(&mut [0; ENTERED]).unwrap();
    raw
}

#[test]
fn a_thousand_clients_are_served_at_once_and_no_more() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    soon(|| {
        let before = allow(8192);
        let server = Server::single(Arc::new(Memory::new(8 << 20))).max_connections(1000);
        // None of them is to be displaced by a new one, however long it has been silent.
        let server = server.displace_idle(None);
        // The server never waits so long for clients that it can disconnect at once.
        let server = server.grace(Duration::from_secs(3600));
        let running = Running::new(server);
        let empty = resident();
        let mut all: Vec<_> = (0..1000).map(|_| enter(&running)).collect();
        // Memory for requests is freed when none come.
        rests(|| resident().saturating_sub(empty) / 1000);
        // One more client is disconnected without a byte, since there is no room.
        assert_eq!(running.raw().read(&mut [0; 1]).unwrap(), 0);
        eventually(|| running.refused().0 == 1);
        for round in 0..4 {
            for (at, raw) in all.iter_mut().enumerate().take(300) {
                let data = pattern(4096, (round * 1000 + at) as u32);
                raw.write_all(&request(1, 1, at as u64 * 4096, 4096))
                    .unwrap();
                raw.write_all(&data).unwrap();
                raw.write_all(&request(0, 2, at as u64 * 4096, 4096))
                    .unwrap();
            }
            for (at, raw) in all.iter_mut().enumerate().take(300) {
                let data = pattern(4096, (round * 1000 + at) as u32);
                support::expect(raw, &reply(0, 1, b""));
                support::expect(raw, &reply(0, 2, &data));
            }
        }
        // Used memory is freed when they are idle again.
        rests(|| resident().saturating_sub(empty + (8 << 20)) / 1000);
        let endings = running.stop();
        assert_eq!(endings.len(), 1000);
        assert!(
            endings
                .iter()
                .all(|ending| ending == "the server is stopping")
        );
        setrlimit(Resource::Nofile, before).unwrap();
    });
}

#[test]
fn a_shortage_of_descriptors_passes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    soon(|| {
        let running = Running::new(memory());
        let witness = Witness::new(&running, 4096);
        let early: Vec<_> = (0..20)
            .map(|_| socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None))
            .collect::<Result<_, _>>()
            .unwrap();
        let highest = std::fs::File::open("/dev/null").unwrap();
        let used = std::os::fd::AsRawFd::as_raw_fd(&highest);
        drop(highest);
        // Room for hardly any of the other ends.
        let before = allow(u64::try_from(used).unwrap() + 5);
        for client in &early {
            client.connect(&running.tcp.into()).unwrap();
        }
        eventually(|| !running.refused().1.is_empty());
        let text = running.refused().1.remove(0);
        assert!(
            text.contains("Too many open files") || text.contains("no task could be started"),
            "{text}"
        );
        setrlimit(Resource::Nofile, before).unwrap();
        drop(early);
        let late = running.connect(&ConnectOptions::new());
        late.write_all_at(&[1; 512], 0).unwrap();
        late.disconnect().unwrap();
        witness.testify();
        running.stop();
    });
}

#[test]
fn clients_that_take_nothing_take_up_no_more_than_they_may() {
    // H-052, H-068
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    soon(|| {
        let server = memory()
            .in_flight(1 << 20)
            .grace(Duration::from_millis(300));
        let running = Running::new(server);
        let witness = Witness::new(&running, 4096);
        thread::sleep(Duration::from_millis(50));
        let empty = resident();
        let mut all: Vec<_> = (0..8).map(|_| enter(&running)).collect();
        for raw in &mut all {
            for cookie in 0..64 {
                raw.write_all(&request(0, cookie, 0, 1 << 20)).unwrap();
            }
        }
        for _ in 0..200 {
            for raw in &mut all[..4] {
                raw.read_exact(&mut [0; 1]).unwrap();
            }
            thread::sleep(Duration::from_millis(1));
        }
        // The limit, one more request, and the bytes of requests, for each.
        let most = all.len() * (3 << 20) + (8 << 20);
        let taken = resident().saturating_sub(empty);
        assert!(taken < most, "{taken} bytes, not {most}");
        witness.testify();
        running.stop();
    });
}
