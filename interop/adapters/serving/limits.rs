//! Limits of connections, of requests, of memory and of the time of silent clients.

use super::{
    Server,
    life::{Gate, memory},
    support::{ENTERED, GO, Running, eventually, expect, reply, small, soon},
};
use nbd_blocking::ConnectOptions;
use std::{
    io::{Read, Write},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

/// Of twenty requests the server carries out three, and the others once it may.
fn three_at_once(limit: fn(Server) -> Server) {
    soon(move || {
        let gate = Arc::new(Gate::default());
        let running = Running::new(limit(Server::single(gate.clone())));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.read_exact(&mut [0; ENTERED]).unwrap();
        for cookie in 0..20 {
            raw.write_all(&small(0, cookie)).unwrap();
        }
        eventually(|| gate.state.lock().unwrap().0 == 3);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(gate.state.lock().unwrap().0, 3);
        gate.state.lock().unwrap().1 = true;
        gate.moved.notify_all();
        raw.read_exact(&mut vec![0; 20 * (16 + 512)]).unwrap();
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
