//! One client, several connections.

use crate::support::{
    bytes,
    host::{Host, disk},
    pause,
    script::Negotiation,
    spawn, within,
};
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Error, Lost};
use std::{
    sync::{Arc, Barrier, Mutex, mpsc},
    time::Duration,
};

/// `NBD_FLAG_CAN_MULTI_CONN`.
const CAN_MULTI_CONN: u16 = 1 << 8;

fn negotiation() -> Negotiation {
    Negotiation {
        size: 1 << 20,
        ..Negotiation::simple()
    }
}

fn connect(host: &Host, connections: usize) -> Client {
    let options = ConnectOptions::new().connections(connections);
    options.connect(&host.uri()).expect("entered")
}

#[test]
fn there_are_several_connections_only_if_the_server_keeps_them_consistent() {
    // C-189
    within(10, || {
        for (may, wanted, there) in [(true, 3, 3), (false, 3, 1), (true, 0, 1), (true, 1, 1)] {
            let disk = disk(1 << 20);
            let host = Host::start(move |number, peer| {
                let mut negotiation = negotiation();
                if !may {
                    negotiation.flags &= !CAN_MULTI_CONN;
                }
                peer.try_negotiate(&negotiation)?;
                peer.serve(number, &disk)
            });
            let client = connect(&host, wanted);
            assert_eq!(client.connections(), there);
            assert_eq!(host.count(), there);
            client.disconnect().expect("the session ends well");
            assert_eq!(client.connections(), 0);
        }
    });
}

#[test]
fn connections_to_exports_that_differ_are_refused() {
    // C-190, H-039
    type Change = fn(&mut Negotiation);
    let changes: [(Change, &str); 4] = [
        (|negotiation| negotiation.size = 4096, "its size"),
        (|negotiation| negotiation.flags |= 2, "its flags"),
        (
            |negotiation| negotiation.block_sizes = Some((512, 4096, 1 << 20)),
            "its block sizes",
        ),
        (
            |negotiation| {
                negotiation.structured = true;
                negotiation.flags &= !(1 << 7); // the server has SEND_DF only with structured replies
            },
            "the headers that are agreed on",
        ),
    ];
    within(10, move || {
        for (change, expected) in changes {
            let host = Host::start(move |number, peer| {
                let mut negotiation = negotiation();
                if number == 1 {
                    change(&mut negotiation);
                }
                peer.try_negotiate(&negotiation)?;
                peer.serve(number, &disk(0))
            });
            let options = ConnectOptions::new().connections(2);
            let Err(Error::Lost(lost)) = options.connect(&host.uri()) else {
                panic!("it differs");
            };
            let Lost::Changed { what } = *lost else {
                panic!("{lost:?}");
            };
            assert_eq!(what, expected);
        }
    });
}

#[test]
fn a_request_goes_where_there_is_the_least_to_do() {
    within(10, || {
        let disk = disk(1 << 20);
        let (log, gate) = (disk.clone(), Arc::new(Barrier::new(2)));
        let held = gate.clone();
        let host = Host::start(move |number, peer| {
            peer.try_negotiate(&negotiation())?;
            loop {
                let (request, payload) = peer.try_request()?;
                let data = disk.lock().expect("no panics");
                let data = { data }.carry_out(number, request, &payload);
                if request.offset == 4096 {
                    held.wait(); // it is there
                    held.wait();
                }
                peer.try_says(bytes::sr(0, request.cookie, data))?;
            }
        });
        let client = connect(&host, 2);
        let slow = {
            let client = client.clone();
            spawn(move || client.read_exact_at(&mut [0; 512], 4096).expect("read"))
        };
        gate.wait();
        // A queue keeps its connection, though both are equally idle when this one has a request.
        let mut queue = client.queue();
        for _ in 0..3 {
            client.read_exact_at(&mut [0; 512], 0).expect("read");
            queue.read(vec![0; 512], 0).expect("sent");
            assert!(queue.complete().expect("read").is_some());
        }
        gate.wait();
        slow.join().expect("it is answered");
        let log = log.lock().expect("no panics").log.clone();
        let (first, _) = log[0];
        assert_eq!(log.len(), 7);
        assert!(
            log[1..].iter().all(|(number, _)| *number != first),
            "{log:?}"
        );
    });
}

#[test]
fn one_flush_covers_writes_over_all_connections() {
    // C-191, C-192, S-220
    within(10, || {
        let disk = disk(1 << 20);
        let (served, gate) = (disk.clone(), Arc::new(Barrier::new(3)));
        let (sender, receiver) = mpsc::channel();
        let sender = Mutex::new(sender);
        let host = Host::start(move |number, peer| {
            peer.try_negotiate(&negotiation())?;
            let mut first = true;
            loop {
                let (request, payload) = peer.try_request()?;
                // All are in flight at once, so each goes over its own connection.
                if request.command == 1 && std::mem::take(&mut first) {
                    let _ = sender.lock().expect("no panics").send(());
                    gate.wait();
                }
                let data = served.lock().expect("no panics");
                let data = { data }.carry_out(number, request, &payload);
                peer.try_says(bytes::sr(0, request.cookie, data))?;
            }
        });
        let client = connect(&host, 3);
        let writers = [1_u8, 2, 3].map(|n| {
            let client = client.clone();
            let writer = spawn(move || {
                client
                    .write_all_at(&[n; 512], u64::from(n) * 512)
                    .expect("written");
            });
            // The next request comes when this one is in flight.
            receiver.recv().expect("the server is there");
            writer
        });
        for writer in writers {
            writer.join().expect("it is written");
        }
        client.flush().expect("flushed");
        let mut disk = disk.lock().expect("no panics");
        assert_eq!(disk.commands(), [1, 1, 1, 3], "one flush after all writes");
        let mut numbers: Vec<_> = disk.log[..3].iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
        disk.crash();
        assert_eq!(disk.contents[512..1024], [1; 512]);
        assert_eq!(disk.contents[1536..2048], [3; 512]);
    });
}

#[test]
fn every_connection_is_disconnected() {
    // C-186, C-187
    within(10, || {
        for drops in [false, true] {
            let (sender, receiver) = mpsc::channel();
            let sender = Mutex::new(sender);
            let host = Host::start(move |number, peer| {
                peer.try_negotiate(&negotiation())?;
                let (request, _) = peer.try_request()?;
                let sender = sender.lock().expect("no panics").clone();
                let sent = sender.send((number, request.command, peer.rest()));
                sent.expect("the test goes on");
                Ok(())
            });
            let client = connect(&host, 3);
            if drops {
                drop(client);
            } else {
                client.disconnect().expect("the session ends well");
                assert!(client.is_lost());
                assert!(client.flush().expect_err("it is over").is_lost());
                assert!(client.disconnect().expect_err("it is over").is_lost());
            }
            let next = || receiver.recv_timeout(Duration::from_secs(30));
            let mut all = [(); 3].map(|()| next().expect("a disconnect"));
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2].map(|number| (number, 2, Vec::new())));
        }
    });
}

#[test]
fn a_client_goes_on_with_the_connections_that_are_left() {
    within(10, || {
        let disk = disk(1 << 20);
        let host = Host::start(move |number, peer| {
            peer.try_negotiate(&negotiation())?;
            if number == 0 {
                peer.try_request()?;
                return Ok(()); // the server ends at this request
            }
            peer.serve(number, &disk)
        });
        let client = connect(&host, 2);
        let mut failed = 0;
        for _ in 0..10 {
            match client.read_exact_at(&mut [0; 512], 0) {
                Ok(()) => {}
                Err(error) if error.is_lost() => failed += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        assert_eq!((failed, client.connections()), (1, 1));
        assert!(!client.is_lost());
        let Err(Error::Lost(lost)) = client.disconnect() else {
            panic!("one was lost");
        };
        assert!(matches!(*lost, Lost::Closed | Lost::Io(_)), "{lost:?}");
    });
}

#[test]
fn a_late_change_of_another_connection_is_waited_for() {
    within(15, || {
        let disk = disk(1 << 20);
        let served = disk.clone();
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let host = Host::start(move |number, peer| {
            peer.try_negotiate(&Negotiation {
                block_sizes: Some((4096, 4096, 1 << 20)),
                ..negotiation()
            })?;
            loop {
                let (request, payload) = peer.try_request()?;
                // The first write is carried out long after its timeout.
                if number == 0 && request.command == 1 {
                    let _ = wait.lock().expect("no panics").recv();
                }
                let data = served.lock().expect("no panics");
                let data = { data }.carry_out(number, request, &payload);
                peer.try_says(bytes::sr(0, request.cookie, data))?;
            }
        });
        let client = ConnectOptions::new()
            .connections(2)
            .request_timeout(Some(Duration::from_secs(2)))
            .connect(&host.uri())
            .expect("entered");
        let error = client.write_all_at(&[1; 100], 0).expect_err("it is late");
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        let part = {
            let client = client.clone();
            spawn(move || client.write_all_at(&[2; 100], 2000))
        };
        pause(200); // the client may send an illegal request
        client
            .write_zeroes(4096, 4096, CommandFlags::NONE)
            .expect("others do not wait");
        go_on.send(()).expect("it waits");
        drop(go_on); // others are not held up
        part.join().expect("no panics").expect("written");
        let disk = disk.lock().expect("no panics");
        assert_eq!(disk.contents[2000..2100], [2; 100]);
        assert_eq!(disk.contents[..100], [1; 100]);
    });
}
