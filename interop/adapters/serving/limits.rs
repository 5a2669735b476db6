//! Limits of connections, of requests, of memory and of the time of silent clients.

use super::{
    Server,
    life::{Gate, memory},
    support::{ENTERED, GO, Running, eventually, expect, reply, small, soon},
};
use nbd_blocking::{ConnectOptions, exports::Failure};
use nbd_io::Export;
use std::{
    io::{Read, Write},
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::Duration,
};

/// Reads wait until they are let through, one by one.
#[derive(Default)]
struct Turnstile {
    /// The number of reads that have begun, and of those that may end.
    state: Mutex<(u32, u32)>,
    moved: Condvar,
}

impl Export for Turnstile {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        while state.1 == 0 {
            state = self.moved.wait(state).unwrap();
        }
        state.1 -= 1;
        buf.fill(7);
        Ok(())
    }
}

/// Of twenty requests, the server carries out three at any time. It has them all from the start, and
/// begins another one only when one has ended.
fn three_at_once(limit: fn(Server) -> Server) {
    const REQUESTS: u8 = 20;
    soon(move || {
        let turnstile = Arc::new(Turnstile::default());
        let running = Running::new(limit(Server::single(turnstile.clone())));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.read_exact(&mut [0; ENTERED]).unwrap();
        let requests: Vec<u8> = (0..REQUESTS).flat_map(|cookie| small(0, cookie)).collect();
        raw.write_all(&requests).unwrap();
        for ended in 0..REQUESTS {
            let begun = || turnstile.state.lock().unwrap().0;
            let expected = (ended + 3).min(REQUESTS).into();
            eventually(|| begun() >= expected);
            assert_eq!(begun(), expected, "{ended} have ended");
            turnstile.state.lock().unwrap().1 += 1;
            turnstile.moved.notify_one();
            raw.read_exact(&mut [0; 16 + 512]).unwrap();
        }
        drop(raw);
        running.stop();
    });
}

#[test]
fn no_more_requests_are_carried_out_at_once_than_allowed() {
    three_at_once(|server| server.concurrency(3));
}

#[test]
fn payload_in_memory_is_bounded() {
    // H-052: room for two requests of 512 bytes, and for one more.
    three_at_once(|server| server.in_flight(1025));
}

#[test]
fn a_client_that_says_nothing_for_too_long_is_disconnected() {
    soon(|| {
        let gate = Arc::new(Gate::default());
        let server = Server::single(gate.clone()).idle_timeout(Some(Duration::from_millis(200)));
        let running = Running::new(server);
        let idle = running.connect(&ConnectOptions::new());
        let mut busy = running.raw();
        // The request is there on entering, even if this thread is held up.
        busy.write_all(&[GO, &small(0, 1)].concat()).unwrap();
        busy.read_exact(&mut [0; ENTERED]).unwrap();
        running.wait_for_endings(1);
        assert!(idle.read_exact_at(&mut [0; 512], 0).is_err());
        // A client with a request in flight is not idle, and is so afterwards.
        thread::sleep(Duration::from_millis(500));
        eventually(|| running.stopper.connections() == 1);
        gate.state.lock().unwrap().1 = true;
        gate.moved.notify_all();
        expect(&mut busy, &reply(0, 1, &[7; 512]));
        running.wait_for_endings(2);
        let endings = running.stop();
        assert_eq!(endings, ["nothing was sent or received for too long"; 2]);
    });
}

#[test]
fn a_client_that_does_not_negotiate_is_disconnected() {
    // S-014, H-041
    soon(|| {
        // A client in transmission may be silent as long as it likes.
        let running = Running::new(memory().handshake_timeout(Some(Duration::from_secs(3))));
        let entered = running.connect(&ConnectOptions::new());
        let mut silent = running.raw();
        let mut halfway = running.raw();
        halfway.write_all(&GO[..9]).unwrap();
        for raw in [&mut silent, &mut halfway] {
            let mut greeting = Vec::new();
            raw.read_to_end(&mut greeting).unwrap();
            assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
        }
        entered.read_exact_at(&mut [0; 512], 0).unwrap();
        running.stop();
    });
}

#[test]
fn there_are_no_more_connections_than_allowed() {
    soon(|| {
        let running = Running::new(memory().max_connections(2).displace_idle(None));
        let first = running.connect(&ConnectOptions::new());
        let _second = running.connect(&ConnectOptions::new());
        let mut third = running.raw();
        assert_eq!(third.read(&mut [0; 18]).unwrap(), 0);
        first.disconnect().unwrap();
        eventually(|| running.stopper.connections() == 1);
        running
            .connect(&ConnectOptions::new())
            .disconnect()
            .unwrap();
        running.stop();
    });
}

#[test]
fn clients_that_fall_silent_shut_out_no_others() {
    // H-041
    soon(|| {
        let server = memory().max_connections(8).handshake_timeout(None);
        // Clients that have sent no request yet are idle after two seconds all the same.
        let running = Running::new(server.displace_idle(Some(Duration::from_secs(600))));
        let busy = running.connect(&ConnectOptions::new());
        let (stop, stopped) = mpsc::channel::<()>();
        let working = thread::spawn(move || {
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                busy.write_all_at(&[1; 512], 0).unwrap();
            }
            busy.disconnect().unwrap();
        });
        // Some of them do not even enter.
        let silent: Vec<_> = (0..7)
            .map(|n| {
                let mut raw = running.raw();
                raw.read_exact(&mut [0; 18]).unwrap();
                if n % 2 == 0 {
                    raw.write_all(GO).unwrap();
                    raw.read_exact(&mut [0; ENTERED - 18]).unwrap();
                }
                raw
            })
            .collect();
        let options = ConnectOptions::new();
        let mut new = Vec::new();
        for _ in 0..7 {
            eventually(|| match options.connect_over(running.raw(), None) {
                Ok(client) => {
                    client.read_exact_at(&mut [0; 512], 0).unwrap();
                    new.push(client);
                    true
                }
                Err(_) => false,
            });
        }
        assert!(!working.is_finished());
        drop(stop);
        working.join().unwrap();
        let endings = running.stop();
        let displaced = "the client was idle, and another one needed its place";
        assert!(endings.iter().filter(|ending| *ending == displaced).count() >= 7);
        for mut raw in silent {
            assert_eq!(raw.read(&mut [0; 1]).unwrap_or(0), 0);
        }
    });
}
