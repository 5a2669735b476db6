//! Beginnings and ends of connections.

use super::{
    Server,
    support::{ENTERED, GO, Running, eventually, expect, reply, small, soon},
};
use nbd_blocking::{Command, CommandFlags, ConnectOptions, ExportName, Uri, exports::Failure};
use nbd_io::{Export, Memory, NamedExports, server::Peer};
use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

pub(super) fn memory() -> Server {
    Server::single(Arc::new(Memory::new(1 << 20)))
}

#[test]
fn a_server_stops_at_once_when_its_clients_are_idle() {
    // S-231
    soon(|| {
        // A wait for the grace would take longer than the test may.
        let server = memory().grace(Duration::from_secs(3600));
        let running = Running::new(server.handshake_timeout(None));
        let idle = running.connect(&ConnectOptions::new());
        let _silent = running.raw();
        eventually(|| running.stopper.connections() == 2);
        let endings = running.stop();
        assert_eq!(endings, ["the server is stopping"; 2]);
        assert!(idle.read_exact_at(&mut [0; 512], 0).is_err());
    });
}

/// Reads wait until the gate is open.
#[derive(Default)]
pub(super) struct Gate {
    /// The number of waiting reads, and whether the gate is open.
    pub(super) state: Mutex<(u32, bool)>,
    pub(super) moved: Condvar,
}

impl Export for Gate {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        while !state.1 {
            state = self.moved.wait(state).unwrap();
        }
        buf.fill(7);
        Ok(())
    }
}

#[test]
fn requests_in_flight_are_finished_when_the_server_stops() {
    // S-231, S-024
    soon(|| {
        let gate = Arc::new(Gate::default());
        let running = Running::new(Server::single(gate.clone()));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.read_exact(&mut [0; ENTERED]).unwrap();
        for cookie in 1..=4 {
            raw.write_all(&small(0, cookie)).unwrap();
        }
        eventually(|| gate.state.lock().unwrap().0 == 4);
        running.stopper.stop();
        // Refused at once, while other requests are in flight.
        raw.write_all(&small(0, 5)).unwrap();
        expect(&mut raw, &reply(108, 5, b""));
        gate.state.lock().unwrap().1 = true;
        gate.moved.notify_all();
        let mut said = vec![0; 4 * (16 + 512)];
        raw.read_exact(&mut said).unwrap();
        let mut cookies: Vec<u8> = said.chunks(16 + 512).map(|reply| reply[15]).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, [1, 2, 3, 4]);
        for done in said.chunks(16 + 512) {
            assert_eq!(done, reply(0, done[15], &[7; 512]));
        }
        assert_eq!(raw.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(running.stop(), ["the server is stopping"]);
    });
}

#[test]
fn requests_are_answered_in_the_order_in_which_they_are_done() {
    // S-165
    soon(|| {
        let gate = Arc::new(Gate::default());
        let running = Running::new(Server::single(gate.clone()));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.read_exact(&mut [0; ENTERED]).unwrap();
        raw.write_all(&small(0, 1)).unwrap();
        eventually(|| gate.state.lock().unwrap().0 == 1);
        // Read-only: refused, while the first one waits.
        raw.write_all(&small(4, 2)).unwrap();
        expect(&mut raw, &reply(1, 2, b""));
        gate.state.lock().unwrap().1 = true;
        gate.moved.notify_all();
        expect(&mut raw, &reply(0, 1, &[7; 512]));
        drop(raw);
        running.wait_for_endings(1);
        assert_eq!(running.stop(), ["the client closed the connection"]);
    });
}

/// Panics when it is read.
struct Broken {
    may_block: bool,
}

impl Export for Broken {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        panic!("as intended")
    }

    fn may_block(&self) -> bool {
        self.may_block
    }
}

#[test]
fn an_export_that_panics_ends_the_connection_only() {
    soon(|| {
        for may_block in [true, false] {
            let running = Running::new(Server::single(Arc::new(Broken { may_block })));
            let other = running.connect(&ConnectOptions::new());
            let client = running.connect(&ConnectOptions::new());
            assert!(client.read_exact_at(&mut [0; 512], 0).is_err());
            eventually(|| running.stopper.connections() == 1);
            assert!(other.write_at(&[0; 512], 0).is_err());
            other.disconnect().unwrap();
            let endings = running.stop();
            assert_eq!(endings, ["the export panicked", "the client disconnected"]);
        }
    });
}

#[test]
fn a_program_learns_the_outcome_of_requests() {
    soon(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let events = Arc::clone(&log);
        let server = memory().on_request(move |outcome| {
            assert_eq!(*outcome.peer, Peer::Unix);
            assert!(outcome.export.is_default());
            assert!(outcome.took < Duration::from_secs(5), "{:?}", outcome.took);
            let errno = outcome.failure.map(|failure| failure.errno);
            let entry = (outcome.command, outcome.offset, outcome.len, errno);
            events.lock().unwrap().push(entry);
        });
        let running = Running::new(server);
        let client = running.connect(&ConnectOptions::new());
        client.write_all_at(&[1; 512], 1024).unwrap();
        client.flush().unwrap();
        client.read_exact_at(&mut [0; 100], 7).unwrap();
        client.disconnect().unwrap();
        running.stop();
        assert_eq!(
            *log.lock().unwrap(),
            [
                (Command::Write, 1024, 512, None),
                (Command::Flush, 0, 0, None),
                (Command::Read, 7, 100, None),
            ]
        );
    });
}

/// An export whose reads take their time.
struct Slow {
    may_block: bool,
}

const DELAY: Duration = Duration::from_millis(20);

impl Export for Slow {
    fn size(&self) -> u64 {
        4096
    }

    fn may_block(&self) -> bool {
        self.may_block
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        thread::sleep(DELAY);
        Ok(())
    }
}

#[test]
fn a_program_learns_how_long_the_export_took() {
    soon(|| {
        for may_block in [false, true] {
            let (tx, rx) = mpsc::channel();
            let server = Server::single(Arc::new(Slow { may_block }));
            let running = Running::new(server.on_request(move |outcome| {
                tx.send(outcome.took).unwrap();
            }));
            let client = running.connect(&ConnectOptions::new());
            let start = Instant::now();
            client.read_exact_at(&mut [0; 512], 0).unwrap();
            let took = rx.recv().unwrap();
            assert!((DELAY..=start.elapsed()).contains(&took), "{took:?}");
            client.disconnect().unwrap();
            running.stop();
        }
    });
}

#[test]
fn an_export_that_a_client_may_not_use_is_hidden() {
    soon(|| {
        let name = |name| ExportName::new(name).unwrap();
        let exports = NamedExports::new()
            .with(name("public"), Arc::new(Memory::new(512)))
            .with(name("secret"), Arc::new(Memory::new(1024)))
            .with_default(name("secret"));
        let server = Server::new(exports)
            .authorize(|identity, export| !identity.encrypted && export.as_str() == "public");
        let running = Running::new(server);
        let uri = format!("nbd+unix:///?socket={}", running.unix.display());
        let greeted = ConnectOptions::new()
            .start(&Uri::parse(&uri).unwrap())
            .unwrap();
        let mut negotiation = greeted.negotiation().unwrap();
        let list = negotiation.list().unwrap();
        assert!(
            list.len() == 1 && list[0].name.as_ref().unwrap() == &name("public"),
            "{list:?}"
        );
        negotiation.abort();
        for (export, there) in [("public", true), ("secret", false), ("", false)] {
            let options = ConnectOptions::new().export(name(export));
            assert_eq!(
                options.connect_over(running.raw(), None).is_ok(),
                there,
                "{export}"
            );
        }
        running.stop();
    });
}

#[test]
fn connections_that_do_not_end_are_ended_after_the_grace() {
    soon(|| {
        let running = Running::new(memory().grace(Duration::from_millis(300)));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.read_exact(&mut [0; ENTERED]).unwrap();
        // Behind a request that is answered the header of a write whose payload never comes.
        let mut requests = small(0, 9);
        requests.extend(b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\0");
        requests.extend(b"\0\0\0\0\0\0\0\0\0\x01\0\0half");
        raw.write_all(&requests).unwrap();
        expect(&mut raw, &reply(0, 9, &[0; 512]));
        let begin = Instant::now();
        let endings = running.stop();
        assert!(begin.elapsed() >= Duration::from_millis(250));
        assert_eq!(endings, ["the server is stopping"]);
    });
}

#[test]
fn a_broken_client_ends_its_own_connection_only() {
    // S-013, S-142
    soon(|| {
        let running = Running::new(memory());
        let good = running.connect(&ConnectOptions::new());
        drop(running.raw());
        running.wait_for_endings(1);
        let mut raw = running.raw();
        raw.write_all(b"\xff\xff\xff\xff").unwrap();
        raw.read_to_end(&mut Vec::new()).unwrap();
        running.wait_for_endings(2);
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.write_all(&[0xee; 28]).unwrap();
        let mut said = Vec::new();
        raw.read_to_end(&mut said).unwrap();
        running.wait_for_endings(3);
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.write_all(b"\x25\x60\x95\x13").unwrap();
        raw.shutdown(Shutdown::Write).unwrap();
        raw.read_to_end(&mut Vec::new()).unwrap();
        running.wait_for_endings(4);
        good.write_all_at(&[1; 4096], 0).unwrap();
        good.disconnect().unwrap();
        let endings = running.stop();
        assert_eq!(endings[0], "the client closed the connection");
        assert!(endings[1].contains("while negotiating"), "{}", endings[1]);
        assert!(endings[2].contains("(S-142)"), "{}", endings[2]);
        assert_eq!(
            endings[3],
            "the client closed the connection in the middle of a request"
        );
        assert_eq!(endings[4], "the client disconnected");
    });
}

#[test]
fn a_client_that_takes_no_replies_is_read_no_further() {
    // H-052, S-167
    soon(|| {
        let running = Running::new(memory().grace(Duration::from_millis(200)));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.set_write_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let mut read = Vec::from(*b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x01");
        read.extend(b"\0\0\0\0\0\0\0\0\0\x10\0\0");
        // 100 000 reads of 1 MiB.
        let refused = (0..100_000).any(|_| raw.write_all(&read).is_err());
        assert!(refused);
        assert_eq!(running.stopper.connections(), 1);
        running.stop();
    });
}

#[test]
fn requests_before_a_disconnect_are_answered() {
    // S-164
    soon(|| {
        let running = Running::new(memory());
        let client = running.connect(&ConnectOptions::new());
        let mut queue = client.queue();
        for block in 0..50 {
            let data = vec![block; 4096];
            queue
                .write(data, u64::from(block) * 4096, CommandFlags::NONE)
                .unwrap();
        }
        while let Some(done) = queue.complete().unwrap() {
            done.into_buffer().unwrap();
        }
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        let mut requests = Vec::new();
        for cookie in 0..4 {
            requests.extend(b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0");
            requests.push(cookie);
            requests.extend(b"\0\0\0\0\0\0\x10\0\0\0\x10\0");
        }
        requests.extend(b"\x25\x60\x95\x13\0\0\0\x02\0\0\0\0\0\0\0\0");
        requests.extend([0; 12]);
        requests.extend(b"garbage that is never parsed");
        raw.write_all(&requests).unwrap();
        let mut said = Vec::new();
        raw.read_to_end(&mut said).unwrap();
        assert_eq!(said.len(), 18 + 32 + 20 + 4 * (16 + 4096));
        assert!(said.ends_with(&[1; 4096]));
        running.stop();
    });
}

#[test]
fn a_client_that_resets_the_connection_disturbs_no_other() {
    // H-063
    soon(|| {
        let running = Running::new(memory());
        let good = running.connect(&ConnectOptions::new());
        for round in 0..20 {
            let mut raw = running.raw_tcp();
            raw.write_all(GO).unwrap();
            // Reads of 1 MiB whose replies are in flight when the connection is reset.
            let mut read = Vec::from(*b"\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\x01");
            read.extend(b"\0\0\0\0\0\0\0\0\0\x10\0\0");
            for _ in 0..round {
                raw.write_all(&read).unwrap();
            }
            socket2::SockRef::from(&raw)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
            drop(raw);
        }
        running.wait_for_endings(20);
        good.write_all_at(&[1; 4096], 0).unwrap();
        good.disconnect().unwrap();
        running.stop();
    });
}
