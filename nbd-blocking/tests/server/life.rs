//! How connections begin and end.

use crate::support::{Running, modes, soon};
use nbd_blocking::{CommandFlags, ConnectOptions, Errno, Failure, server::Server};
use nbd_io::{Export, Memory};
use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

fn memory() -> Server {
    Server::single(Arc::new(Memory::new(1 << 20)))
}

fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to that");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The client's flags and NBD_OPT_GO for the default export.
const GO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";

#[test]
fn a_server_stops_at_once_when_its_clients_are_idle() {
    // S-231
    soon(|| {
        let running = Running::new(memory());
        let idle = running.connect(&ConnectOptions::new());
        let _silent = running.raw();
        eventually(|| running.stopper.connections() == 2);
        let begin = Instant::now();
        let endings = running.stop();
        assert!(begin.elapsed() < Duration::from_secs(2));
        assert_eq!(endings, ["the server is stopping"; 2]);
        assert!(idle.read_exact_at(&mut [0; 512], 0).is_err());
    });
}

/// Reads wait until the gate is open.
#[derive(Default)]
struct Gate {
    /// Who waits, and whether it is open.
    state: Mutex<(u32, bool)>,
    moved: Condvar,
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
fn what_was_begun_is_finished_when_the_server_stops() {
    // S-231, S-024
    soon(|| {
        for options in modes() {
            let gate = Arc::new(Gate::default());
            let running = Running::new(Server::single(gate.clone()));
            let client = running.connect(&options);
            let mut queue = client.queue();
            for _ in 0..4 {
                queue.read(0, vec![0; 512]).unwrap();
            }
            queue.send().unwrap();
            eventually(|| gate.state.lock().unwrap().0 == 1);
            running.stopper.stop();
            gate.state.lock().unwrap().1 = true;
            gate.moved.notify_all();
            let mut results = Vec::new();
            while let Ok(Some(done)) = queue.complete() {
                results.push(done.into_buffer());
            }
            assert_eq!(results.len(), 4);
            assert_eq!(results.remove(0).unwrap(), [7; 512]);
            for result in results {
                assert_eq!(result.unwrap_err().errno(), Some(Errno::Shutdown));
            }
            running.stop();
        }
    });
}

#[test]
fn what_does_not_end_is_ended_after_the_grace() {
    soon(|| {
        let running = Running::new(memory().grace(Duration::from_millis(300)));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        // The header of a write whose payload never comes.
        raw.write_all(b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\0")
            .unwrap();
        raw.write_all(b"\0\0\0\0\0\0\0\0\0\x01\0\0half").unwrap();
        eventually(|| running.stopper.connections() == 1);
        thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        let endings = running.stop();
        assert!(begin.elapsed() >= Duration::from_millis(250));
        assert_eq!(endings, ["the server is stopping"]);
    });
}

#[test]
fn who_does_not_negotiate_is_disconnected() {
    // S-014, H-041
    soon(|| {
        let running = Running::new(memory().handshake_timeout(Some(Duration::from_millis(200))));
        let mut silent = running.raw();
        let mut halfway = running.raw();
        halfway.write_all(&GO[..9]).unwrap();
        // Who uses an export may be silent as long as they like.
        let patient = running.connect(&ConnectOptions::new());
        for raw in [&mut silent, &mut halfway] {
            let mut greeting = Vec::new();
            raw.read_to_end(&mut greeting).unwrap();
            assert_eq!(greeting, b"NBDMAGICIHAVEOPT\0\x03");
        }
        thread::sleep(Duration::from_millis(300));
        patient.read_exact_at(&mut [0; 512], 0).unwrap();
        running.stop();
    });
}

#[test]
fn there_are_no_more_connections_than_allowed() {
    soon(|| {
        let running = Running::new(memory().max_connections(2));
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
fn what_was_asked_before_goodbye_is_answered() {
    // S-164
    soon(|| {
        let running = Running::new(memory());
        let client = running.connect(&ConnectOptions::new());
        let mut queue = client.queue();
        for block in 0..50 {
            let data = vec![block; 4096];
            queue
                .write(u64::from(block) * 4096, data, CommandFlags::NONE)
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
        requests.extend(b"garbage that nobody looks at");
        raw.write_all(&requests).unwrap();
        let mut said = Vec::new();
        raw.read_to_end(&mut said).unwrap();
        assert_eq!(said.len(), 18 + 32 + 20 + 4 * (16 + 4096));
        assert!(said.ends_with(&[1; 4096]));
        running.stop();
    });
}

#[test]
fn a_client_that_resets_the_connection_harms_nobody() {
    // H-063
    soon(|| {
        let running = Running::new(memory());
        let good = running.connect(&ConnectOptions::new());
        for round in 0..20 {
            let mut raw = running.raw_tcp();
            raw.write_all(GO).unwrap();
            // Reads of 1 MiB whose replies are on their way when the connection breaks.
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
