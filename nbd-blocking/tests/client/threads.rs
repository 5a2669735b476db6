//! One connection, many threads.

use crate::support::{
    Random, bytes,
    model::{Disk, Model},
    pause,
    script::{Negotiation, session},
    spawn, within,
};
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Error, HeaderStyle, Lost};
use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

const MIB: usize = 1 << 20;

/// Threads that read, write and queue at random, each in its own part of the disk.
fn hammer(client: &Client, disk: &Disk, threads: usize, rounds: usize, longest: usize) {
    let part = disk.lock().expect("no panics").len() / threads;
    let workers: Vec<_> = (0..threads)
        .map(|number| {
            let client = client.clone();
            spawn(move || {
                let start = number * part;
                let mut random = Random::new(number as u64);
                let mut own = vec![0; part];
                for round in 0..rounds {
                    let len = match random.below(3) {
                        0 => 1 + random.below(4096),
                        1 => 1 + random.below(longest / 8),
                        _ => 1 + random.below(longest),
                    };
                    let at = random.below(part - len);
                    let offset = (start + at) as u64;
                    match random.below(5) {
                        0 | 1 => {
                            let data = random.bytes(len);
                            client.write_all_at(&data, offset).expect("it is written");
                            own[at..at + len].copy_from_slice(&data);
                        }
                        2 | 3 => {
                            let mut data = vec![0xa5; len];
                            client.read_exact_at(&mut data, offset).expect("it is read");
                            assert!(data == own[at..at + len], "{number}: round {round}");
                        }
                        _ => queue(&client, &own, start, &mut random),
                    }
                }
                own
            })
        })
        .collect();
    for (number, worker) in workers.into_iter().enumerate() {
        let own = worker.join().expect("no worker fails");
        let disk = disk.lock().expect("no panics");
        assert!(
            disk[number * part..(number + 1) * part] == own,
            "{number}: the disk"
        );
    }
}

/// Several reads in flight from one thread.
fn queue(client: &Client, own: &[u8], start: usize, random: &mut Random) {
    let mut queue = client.queue();
    let mut places = std::collections::HashMap::new();
    for _ in 0..4 {
        let len = 1 + random.below(100_000);
        let at = random.below(own.len() - len);
        let cookie = queue
            .read(vec![0x5a; len], (start + at) as u64)
            .expect("it is sent");
        places.insert(cookie, at);
    }
    if random.below(4) == 0 {
        return; // dropped with all of them in flight
    }
    while let Some(completion) = queue.complete().expect("the connection holds") {
        let at = places.remove(&completion.cookie).expect("once each");
        let data = completion.into_buffer().expect("it is read");
        assert!(data == own[at..at + data.len()]);
    }
    assert!(places.is_empty());
}

fn over_unix(model: Model, mode: HeaderStyle) {
    within(20, move || {
        let (stream, disk) = model.unix();
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        assert_eq!(client.mode(), mode);
        hammer(&client, &disk, 16, 24, MIB);
        client.disconnect().expect("the session ends well");
    });
}

fn over_tcp(model: Model, mode: HeaderStyle) {
    within(20, move || {
        let (stream, disk) = model.tcp();
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        assert_eq!(client.mode(), mode);
        hammer(&client, &disk, 16, 24, MIB);
        client.disconnect().expect("the session ends well");
    });
}

#[test]
fn sixteen_threads_over_unix_with_simple_replies() {
    over_unix(Model::new(32 * MIB).simple(), HeaderStyle::Simple);
}

#[test]
fn sixteen_threads_over_unix_with_structured_replies() {
    // C-205
    over_unix(Model::new(32 * MIB).structured(), HeaderStyle::Structured);
}

#[test]
fn sixteen_threads_over_unix_with_extended_headers() {
    over_unix(Model::new(32 * MIB), HeaderStyle::Extended);
}

#[test]
fn sixteen_threads_over_tcp_with_simple_replies() {
    over_tcp(Model::new(32 * MIB).simple(), HeaderStyle::Simple);
}

#[test]
fn sixteen_threads_over_tcp_with_structured_replies() {
    over_tcp(Model::new(32 * MIB).structured(), HeaderStyle::Structured);
}

#[test]
fn sixteen_threads_over_tcp_with_extended_headers() {
    over_tcp(Model::new(32 * MIB), HeaderStyle::Extended);
}

#[test]
fn four_in_flight_are_enough_for_many_threads() {
    within(20, || {
        let (stream, disk) = Model::new(16 * MIB).unix();
        let limits = nbd_blocking::Limits {
            in_flight: 4,
            ..nbd_blocking::Limits::default()
        };
        let client = ConnectOptions::new()
            .limits(limits)
            .connect_over(stream, None)
            .expect("entered");
        hammer(&client, &disk, 16, 16, MIB / 2);
    });
}

#[test]
fn few_bytes_in_flight_are_enough_for_many_threads() {
    within(20, || {
        let (stream, disk) = Model::new(16 * MIB).unix();
        let client = ConnectOptions::new()
            .bytes_in_flight(64 << 10)
            .connect_over(stream, None)
            .expect("entered");
        hammer(&client, &disk, 16, 16, MIB / 2);
    });
}

#[test]
fn the_leader_changes_among_many_readers() {
    for seed in 0..4 {
        within(20, move || {
            let model = Model {
                seed,
                ..Model::new(16 * MIB)
            };
            let (stream, disk) = model.unix();
            let expected = Arc::new(Random::new(seed).bytes(16 * MIB));
            disk.lock().expect("no panics").copy_from_slice(&expected);
            let client = ConnectOptions::new()
                .request_timeout(None)
                .connect_over(stream, None)
                .expect("entered");
            let readers: Vec<_> = (0..32)
                .map(|number| {
                    let (client, expected) = (client.clone(), expected.clone());
                    spawn(move || {
                        let mut random = Random::new(1000 * seed + number);
                        for _ in 0..12 {
                            let len = (64 + random.below(192)) << 10;
                            let at = random.below(expected.len() - len);
                            let mut data = vec![0; len];
                            client.read_exact_at(&mut data, at as u64).expect("read");
                            assert!(data == expected[at..at + len]);
                        }
                    })
                })
                .collect();
            for reader in readers {
                reader.join().expect("no reader fails");
            }
        });
    }
}

#[test]
fn requests_of_any_length_are_cut_and_put_together() {
    // C-119, C-124
    within(20, || {
        let model = Model {
            sparse: false, // looking for zeroes takes long
            ..Model::new(104 * MIB)
        };
        let (stream, disk) = model.unix();
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        for len in [32 * MIB, 32 * MIB + 1, 100 * MIB] {
            let data = bytes::content(len as u64, len);
            client.write_all_at(&data, 4097).expect("written");
            assert!(disk.lock().expect("no panics")[4097..4097 + len] == data);
            let mut back = vec![0; len];
            client.read_exact_at(&mut back, 4097).expect("read");
            assert!(back == data);
        }
    });
}

#[test]
fn a_queue_that_is_dropped_leaves_the_connection_usable() {
    within(10, || {
        let (stream, disk) = Model::new(8 * MIB).unix();
        disk.lock().expect("no panics").fill(7);
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        for round in 0..20 {
            let mut queue = client.queue();
            for block in 0..20 {
                queue.read(vec![0; 65536], block * 65536).expect("sent");
            }
            if round % 2 == 0 {
                queue.send().expect("sent");
            }
            drop(queue);
            let mut data = vec![0; 100_000];
            client.read_exact_at(&mut data, 1).expect("read");
            assert!(data.iter().all(|byte| *byte == 7));
        }
        client.disconnect().expect("the session ends well");
    });
}

#[test]
fn a_client_that_waits_is_not_forgotten_by_a_queue_that_waited_for_room() {
    // The queue wakes up because there is room, submits and does not read.
    within(10, || {
        for round in 0..20 {
            let limits = nbd_blocking::Limits {
                in_flight: 2,
                ..nbd_blocking::Limits::default()
            };
            let options = ConnectOptions::new().request_timeout(None).limits(limits);
            let (client, server) = session(Negotiation::simple(), &options, move |peer| {
                let first = peer.request();
                let second = peer.request();
                pause(5 + round % 3);
                peer.says(bytes::sr(0, first.cookie, [1; 512]));
                pause(5);
                peer.says(bytes::sr(0, second.cookie, [2; 512]));
                let third = peer.request();
                peer.says(bytes::sr(0, third.cookie, [3; 512]));
            });
            let waits = |offset| {
                let client = client.clone();
                spawn(move || client.read_exact_at(&mut [0; 512], offset).expect("read"))
            };
            let mut queue = client.queue(); // the first caller that is looked at
            let first = waits(0);
            pause(2);
            let second = waits(512);
            pause(2);
            queue.read(vec![0; 512], 1024).expect("submitted");
            first.join().expect("the first is served");
            second.join().expect("the second is served");
            assert!(queue.complete().expect("served").is_some());
            drop((queue, client));
            server.join().expect("the script ends");
        }
    });
}

#[test]
fn the_last_clone_disconnects() {
    // C-186
    within(10, || {
        let (client, server) = session(Negotiation::simple(), &ConnectOptions::new(), |peer| {
            let read = peer.request();
            peer.says(bytes::sr(0, read.cookie, [9; 512]));
            peer.disconnect();
        });
        let clones: Vec<_> = (0..8).map(|_| client.clone()).collect();
        drop(client);
        let mut data = [0; 512];
        clones[3].read_exact_at(&mut data, 0).expect("read");
        assert_eq!(data, [9; 512]);
        drop(clones);
        server.join().expect("the client disconnects");
    });
}

fn is_disconnected(error: &Error) -> bool {
    matches!(error, Error::Lost(lost) if matches!(**lost, Lost::Disconnected))
}

#[test]
fn a_disconnect_waits_for_requests_in_flight() {
    // C-187
    within(10, || {
        let (sender, receiver) = mpsc::channel();
        let options = ConnectOptions::new();
        let (client, server) = session(Negotiation::simple(), &options, move |peer| {
            let read = peer.request();
            sender.send(()).expect("it is waited for");
            assert!(
                peer.silence(50),
                "the client waits for the reply before it disconnects"
            );
            peer.says(bytes::sr(0, read.cookie, [1; 512]));
            peer.disconnect();
        });
        let reader = {
            let client = client.clone();
            spawn(move || client.read_exact_at(&mut [0; 512], 0))
        };
        receiver.recv().expect("the read is in flight");
        client.disconnect().expect("the session ends well");
        reader
            .join()
            .expect("no panics")
            .expect("the read succeeds");
        server.join().expect("the client disconnects");
        let mut queue = client.queue();
        for error in [
            client.read_exact_at(&mut [0; 512], 0).unwrap_err(),
            client.write_all_at(&[0; 512], 0).unwrap_err(),
            client.flush().unwrap_err(),
            client.disconnect().unwrap_err(),
            queue.read(vec![0; 512], 0).unwrap_err(),
        ] {
            assert!(is_disconnected(&error), "{error:?}");
        }
        assert!(client.is_lost());
    });
}

#[test]
fn a_disconnect_in_the_middle_of_many_threads_ends_them_all() {
    within(20, || {
        for _ in 0..10 {
            let (stream, _) = Model::new(4 * MIB).unix();
            let client = ConnectOptions::new()
                .request_timeout(None)
                .connect_over(stream, None)
                .expect("entered");
            let workers: Vec<_> = (0..8)
                .map(|number| {
                    let client = client.clone();
                    spawn(move || {
                        let mut data = vec![0; 100_000];
                        loop {
                            let result = if number % 2 == 0 {
                                client.read_exact_at(&mut data, number * 100_000)
                            } else {
                                client.write_all_at(&data, number * 100_000)
                            };
                            if let Err(error) = result {
                                assert!(is_disconnected(&error), "{error:?}");
                                return;
                            }
                        }
                    })
                })
                .collect();
            pause(10);
            client.disconnect().expect("the session ends well");
            for worker in workers {
                worker.join().expect("every worker gets an error");
            }
        }
    });
}

#[test]
fn a_disconnect_does_not_wait_for_ever() {
    // B-018
    within(15, || {
        let options = ConnectOptions::new().request_timeout(None);
        let (sender, receiver) = mpsc::channel();
        let (client, server) = session(Negotiation::simple(), &options, move |peer| {
            assert_eq!(peer.request().command, 0);
            sender.send(()).expect("it is waited for");
            peer.rest().len()
        });
        let reader = {
            let client = client.clone();
            spawn(move || client.read_exact_at(&mut [0; 512], 0))
        };
        receiver.recv().expect("the read is in flight");
        let started = std::time::Instant::now();
        client.disconnect().expect("it is over");
        assert!(started.elapsed() < Duration::from_secs(12));
        let error = reader.join().expect("no panics").unwrap_err();
        assert!(is_disconnected(&error), "{error:?}");
        server.join().expect("the connection is closed");
    });
}

#[test]
fn two_disconnects_at_once_send_one_command() {
    within(10, || {
        for _ in 0..50 {
            let (client, server) = session(Negotiation::simple(), &ConnectOptions::new(), |peer| {
                peer.disconnect();
            });
            let other = {
                let client = client.clone();
                spawn(move || client.disconnect())
            };
            let results = [client.disconnect(), other.join().expect("no panics")];
            assert!(results.iter().any(Result::is_ok), "{results:?}");
            for error in results.into_iter().filter_map(Result::err) {
                assert!(is_disconnected(&error), "{error:?}");
            }
            server.join().expect("the client disconnects once");
        }
    });
}

#[test]
fn a_filtered_block_status_is_never_interleaved_with_others() {
    within(10, || {
        let (stream, disk) = Model::new(4 * MIB).unix();
        disk.lock().expect("no panics")[MIB..].fill(1);
        let client = ConnectOptions::new()
            .context(nbd_blocking::ContextName::base_allocation())
            .context(nbd_blocking::ContextName::new("x-test:other").expect("a name"))
            .connect_over(stream, None)
            .expect("entered");
        let ids: Vec<u32> = client.contexts().iter().map(|context| context.id).collect();
        assert_eq!(ids.len(), 2);
        let workers: Vec<_> = (0..8)
            .map(|number| {
                let (client, ids) = (client.clone(), ids.clone());
                spawn(move || {
                    for _ in 0..200 {
                        if number % 2 == 0 {
                            let ids = &ids[number / 2 % 2..][..1];
                            let flags = CommandFlags::NONE;
                            let status = client.block_status_of(ids, 0, 2 << 20, flags);
                            assert_eq!(status.expect("answered")[0].id, ids[0]);
                        } else {
                            client.read_exact_at(&mut [0; 64], 5).expect("read");
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("no worker fails");
        }
    });
}
