//! Both directions at once, and requests that take too long.

use crate::support::{
    bytes::{self, content, sr},
    pause, says,
    script::{Negotiation, Peer, Seen, session},
    spawn, within,
};
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Errno, Error, Limits, Lost};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

const MIB: usize = 1 << 20;

/// The timeout of a request that takes too long. The others have to be answered in that time, on a
/// machine that is busy with something else.
const LIMIT: Duration = Duration::from_secs(3);

fn with_timeout() -> ConnectOptions {
    ConnectOptions::new().request_timeout(Some(LIMIT))
}

fn reply(peer: &mut Peer, read: Seen) {
    let len = usize::try_from(read.len).expect("tests are short");
    peer.says(sr(0, read.cookie, content(read.offset, len)));
}

/// Answers requests until the client disconnects, each read before the next request.
fn stubborn(peer: &mut Peer) {
    loop {
        let request = peer.request();
        match request.command {
            0 => reply(peer, request),
            1 => {
                let len = usize::try_from(request.len).expect("tests are short");
                peer.hears(len);
                peer.says(sr(0, request.cookie, []));
            }
            _ => return,
        }
    }
}

#[test]
fn threads_read_while_one_writes_to_a_server_that_does_neither_both() {
    // C-185, H-037
    within(20, || {
        let options = ConnectOptions::new().request_timeout(None);
        let (client, server) = session(Negotiation::simple(), &options, stubborn);
        let readers: Vec<_> = (0..8_u64)
            .map(|number| {
                let client = client.clone();
                spawn(move || {
                    let offset = number << 20;
                    let mut data = vec![0; 4 * MIB];
                    client.read_exact_at(&mut data, offset).expect("read");
                    assert!(data == content(offset, data.len()));
                })
            })
            .collect();
        let data = vec![1; 32 * MIB];
        client.write_all_at(&data, 0).expect("written");
        for reader in readers {
            reader.join().expect("no reader fails");
        }
        drop(client);
        server.join().expect("the script ends");
    });
}

#[test]
fn a_queue_takes_its_replies_while_it_writes() {
    // C-185, H-037
    within(20, || {
        let options = ConnectOptions::new().request_timeout(None);
        let (client, server) = session(Negotiation::simple(), &options, stubborn);
        let mut queue = client.queue();
        for number in 0..16 {
            queue.read(vec![0; MIB], number << 20).expect("submitted");
        }
        let write = queue
            .write(vec![1; 32 * MIB], 0, CommandFlags::NONE)
            .expect("submitted");
        queue.read(vec![0; MIB], 0).expect("submitted");
        let mut seen = 0;
        while let Some(completion) = queue.complete().expect("the connection holds") {
            seen += 1;
            if completion.cookie != write {
                assert_eq!(completion.into_buffer().expect("read").len(), MIB);
            }
        }
        assert_eq!(seen, 18);
        drop((queue, client));
        server.join().expect("the script ends");
    });
}

#[test]
fn a_writer_takes_the_replies_of_a_queue_that_does_not_wait() {
    // C-185
    within(20, || {
        let options = ConnectOptions::new().request_timeout(None);
        let (client, server) = session(Negotiation::simple(), &options, stubborn);
        let mut queue = client.queue();
        for number in 0..8 {
            queue.read(vec![0; MIB], number << 20).expect("submitted");
        }
        queue.send().expect("sent");
        client.write_all_at(&vec![1; 32 * MIB], 0).expect("written");
        let mut seen = 0;
        while let Some(completion) = queue.try_complete().expect("the connection holds") {
            seen += 1;
            assert_eq!(completion.into_buffer().expect("read").len(), MIB);
        }
        assert_eq!(seen, 8, "they were read by the writer");
        drop((queue, client));
        server.join().expect("the script ends");
    });
}

#[test]
fn a_writer_takes_over_from_a_reader_that_leaves() {
    // C-185: the writer waits for the stream while another thread reads, which then stops.
    within(20, || {
        let options = ConnectOptions::new().request_timeout(None);
        let (sender, receiver) = mpsc::channel();
        let (client, server) = session(Negotiation::simple(), &options, move |peer| {
            let queued = peer.request();
            let read = peer.request();
            sender.send(()).expect("the writer waits");
            let write = peer.request();
            pause(100); // until the writer cannot go on
            reply(peer, read);
            pause(50); // until the reader is gone
            reply(peer, queued);
            peer.hears(32 * MIB);
            peer.says(sr(0, write.cookie, []));
        });
        let mut queue = client.queue();
        queue.read(vec![0; 8 * MIB], 0).expect("submitted");
        queue.send().expect("sent");
        let reader = {
            let client = client.clone();
            spawn(move || client.read_exact_at(&mut [0; 512], 0).expect("read"))
        };
        receiver.recv().expect("the reader has asked");
        client.write_all_at(&vec![1; 32 * MIB], 0).expect("written");
        reader.join().expect("the reader is served");
        assert!(queue.complete().expect("read").is_some());
        server.join().expect("the script ends");
    });
}

fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::Timeout { .. })
}

#[test]
fn a_request_that_is_never_answered_times_out_alone() {
    // C-208, H-024
    within(20, || {
        let (client, server) = session(Negotiation::simple(), &with_timeout(), |peer| {
            let mut lost: Option<Seen> = None;
            let mut after = 0;
            loop {
                let request = peer.request();
                assert_ne!(lost.map(|lost| lost.cookie), Some(request.cookie));
                match request.command {
                    0 if request.offset == 0 => lost = Some(request),
                    0 => {
                        pause(2);
                        if request.offset == 1 << 20 {
                            // At last, and with contents that no caller must see.
                            let lost = lost.expect("it was asked for");
                            peer.says(sr(0, lost.cookie, vec![0xee; 100_000]));
                            after = 100;
                        }
                        reply(peer, request);
                        after += 1;
                    }
                    _ => return after > 100,
                }
            }
        });
        let over = Arc::new(AtomicBool::new(false));
        let others: Vec<_> = (1..4_u64)
            .map(|number| {
                let (client, over) = (client.clone(), over.clone());
                spawn(move || {
                    let mut data = vec![0; 5000]; // too short to become the poller
                    while !over.load(Ordering::Relaxed) {
                        client.read_exact_at(&mut data, number).expect("read");
                        assert!(data == content(number, data.len()));
                    }
                })
            })
            .collect();
        pause(20);
        let mut data = vec![0; 100_000];
        let error = client.read_exact_at(&mut data, 0).unwrap_err();
        assert!(is_timeout(&error), "{error:?}");
        says(&error, &["not answered within 3s"]);
        pause(20);
        over.store(true, Ordering::Relaxed);
        for other in others {
            other.join().expect("the others go on");
        }
        client.read_exact_at(&mut data, 1 << 20).expect("read");
        assert!(
            data == content(1 << 20, data.len()),
            "the late reply is gone"
        );
        client.read_exact_at(&mut data, 5).expect("read");
        assert!(data == content(5, data.len()));
        client.disconnect().expect("the session ends well");
        assert!(server.join().expect("the script ends"));
    });
}

#[test]
fn a_request_that_finds_no_room_times_out_too() {
    within(10, || {
        let limits = Limits {
            in_flight: 1,
            ..Limits::default()
        };
        let options = with_timeout().limits(limits);
        let (sender, receiver) = mpsc::channel();
        let (client, server) = session(Negotiation::simple(), &options, move |peer| {
            let lost = peer.request();
            receiver.recv().expect("both are given up");
            reply(peer, lost);
            stubborn(peer);
        });
        for _ in 0..2 {
            let error = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
            assert!(is_timeout(&error), "{error:?}");
        }
        sender.send(()).expect("the server waits");
        let mut data = [0; 512];
        client.read_exact_at(&mut data, 7).expect("read");
        assert_eq!(data[..], content(7, 512));
        drop(client);
        server.join().expect("the script ends");
    });
}

#[test]
fn a_free_place_in_flight_is_taken_while_another_thread_reads() {
    within(10, || {
        let limits = Limits {
            in_flight: 2,
            ..Limits::default()
        };
        let options = ConnectOptions::new().limits(limits).request_timeout(None);
        let (client, server) = session(Negotiation::simple(), &options, |peer| {
            let slow = peer.request();
            let second = peer.request();
            pause(50);
            reply(peer, second);
            let third = peer.request(); // while the first one still waits
            reply(peer, third);
            reply(peer, slow);
        });
        let threads: Vec<_> = (0..3)
            .map(|number| {
                let client = client.clone();
                pause(10);
                spawn(move || client.read_exact_at(&mut [0; 512], number).expect("read"))
            })
            .collect();
        for thread in threads {
            thread.join().expect("every thread is served");
        }
        server.join().expect("the script ends");
    });
}

#[test]
fn a_request_that_is_too_heavy_now_waits_and_lighter_ones_do_not_overtake_it() {
    within(10, || {
        let options = ConnectOptions::new().bytes_in_flight(8192);
        let (sender, receiver) = mpsc::channel();
        let (client, server) = session(Negotiation::simple(), &options, move |peer| {
            let first = peer.request();
            receiver.recv().expect("the others wait");
            reply(peer, first);
            let heavy = peer.request();
            assert_eq!(heavy.len, 100_000, "alone, any request may be in flight");
            reply(peer, heavy);
            let light = peer.request();
            assert_eq!(light.len, 512);
            reply(peer, light);
        });
        let read = |len: usize| {
            let client = client.clone();
            spawn(move || {
                let mut data = vec![0; len];
                client.read_exact_at(&mut data, 7).expect("read");
                assert_eq!(data, content(7, len));
            })
        };
        let waiting = |count: usize| {
            let text = format!("{client:?}");
            let list = text.split("heavy: [").nth(1)?.split(']').next()?;
            (list.split(',').filter(|place| !place.is_empty()).count() == count).then_some(())
        };
        let until = |done: &dyn Fn() -> bool| {
            while !done() {
                std::thread::yield_now();
            }
        };
        let first = read(4096);
        until(&|| format!("{client:?}").contains("weight: 4096"));
        let heavy = read(100_000);
        until(&|| waiting(1).is_some());
        let light = read(512);
        until(&|| waiting(2).is_some());
        sender.send(()).expect("the server waits");
        for thread in [first, heavy, light] {
            thread.join().expect("every thread is served");
        }
        server.join().expect("the script ends");
    });
}

#[test]
fn a_request_of_a_queue_times_out_as_a_completion() {
    within(10, || {
        let (client, server) = session(Negotiation::structured(), &with_timeout(), |peer| {
            peer.request(); // never answered
            let write = peer.request();
            peer.says(sr(0, write.cookie, []));
            assert_eq!(peer.request().command, 3);
            peer.rest();
        });
        let mut queue = client.queue();
        let read = queue.read(vec![0; 4096], 0).expect("submitted");
        let trim = queue.trim(0, 4096, CommandFlags::NONE).expect("submitted");
        let first = queue
            .complete()
            .expect("it holds")
            .expect("two are in flight");
        assert_eq!(first.cookie, trim);
        first.result.expect("it is done");
        let second = queue
            .complete()
            .expect("it holds")
            .expect("one is in flight");
        assert_eq!(second.cookie, read);
        assert!(is_timeout(&second.into_buffer().unwrap_err()));
        assert!(queue.complete().expect("it holds").is_none());
        let error = client.flush().unwrap_err();
        assert!(is_timeout(&error), "{error:?}");
        drop((queue, client));
        server.join().expect("the script ends");
    });
}

fn upload(client: &Client) -> Result<(), Error> {
    client.write_all_at(&vec![1; 16 * MIB], 0)
}

#[test]
fn a_write_that_is_taken_slowly_is_done_if_it_keeps_its_deadline() {
    within(60, || {
        let options = ConnectOptions::new().request_timeout(Some(10 * LIMIT));
        let (client, server) = session(Negotiation::simple(), &options, |peer| {
            let write = peer.request();
            for _ in 0..16 {
                pause(150);
                peer.hears(MIB);
            }
            peer.says(sr(0, write.cookie, []));
            peer.disconnect();
        });
        upload(&client).expect("written");
        drop(client);
        server.join().expect("the script ends");
    });
}

#[test]
fn a_write_has_one_deadline_however_much_of_it_is_taken() {
    // C-184
    within(60, || {
        let (client, server) = session(Negotiation::simple(), &with_timeout(), |peer| {
            peer.request();
            // The whole upload would take half a minute.
            while peer.try_hears(64 << 10).is_ok() {
                pause(100);
            }
        });
        let start = Instant::now();
        let error = upload(&client).unwrap_err();
        let took = start.elapsed();
        says(&error, &["the connection is over", "in time"]);
        assert!(took >= LIMIT, "{took:?}");
        assert!(took < LIMIT + Duration::from_millis(2500), "{took:?}");
        drop(client);
        server.join().expect("the script ends");
    });
}

/// The error of an upload of which the server reads nothing, but sends something.
fn stuck(limit: Duration, speak: impl FnOnce(&mut Peer, Seen) + Send + 'static) -> Error {
    let options = ConnectOptions::new().request_timeout(Some(limit));
    let (sender, receiver) = mpsc::channel();
    let (client, server) = session(Negotiation::simple(), &options, move |peer| {
        let write = peer.request();
        speak(peer, write);
        receiver.recv().expect("the client is done");
    });
    let error = upload(&client).expect_err("nothing is taken");
    assert!(client.is_lost(), "half a frame was sent");
    sender.send(()).expect("the server waits");
    server.join().expect("the script ends");
    error
}

#[test]
fn replies_are_taken_while_the_server_takes_no_request() {
    within(60, || {
        let start = Instant::now();
        let error = stuck(10 * LIMIT, |peer, write| {
            // The client is sending.
            pause(500);
            peer.says(sr(0, write.cookie ^ 1, []));
        });
        assert!(matches!(&error, Error::Lost(lost) if matches!(**lost, Lost::Protocol(_))));
        assert!(start.elapsed() < 5 * LIMIT, "long before the deadline");
    });
}

#[test]
fn a_refused_write_is_reported_even_if_the_server_never_reads_the_rest() {
    within(60, || {
        let error = stuck(LIMIT, |peer, write| peer.says(sr(28, write.cookie, [])));
        assert_eq!(error.errno(), Some(Errno::NoSpc), "{error:?}");
    });
}

#[test]
fn a_server_that_takes_nothing_is_given_up() {
    // C-184
    within(10, || {
        let (sender, receiver) = mpsc::channel();
        let (client, server) = session(Negotiation::simple(), &with_timeout(), move |peer| {
            peer.request();
            peer.hears(1000);
            receiver.recv().expect("it is given up");
            let rest = peer.rest().len();
            assert!(rest < 16 * MIB - 1000, "no other frame follows half of one");
        });
        let start = Instant::now();
        let error = upload(&client).unwrap_err();
        let took = start.elapsed();
        sender.send(()).expect("the server waits");
        assert!(matches!(&error, Error::Lost(lost) if matches!(**lost, Lost::Io(_))));
        assert!(took < LIMIT + Duration::from_millis(2500), "{took:?}");
        says(&error, &["the connection is over", "in time"]);
        says(&client.flush().unwrap_err(), &["in time"]);
        assert!(client.is_lost());
        drop(client);
        server.join().expect("the script ends");
    });
}

#[test]
fn a_timed_out_read_with_chunks_under_way_keeps_the_connection_in_step() {
    within(10, || {
        let (sender, receiver) = mpsc::channel();
        let (client, server) = session(Negotiation::structured(), &with_timeout(), move |peer| {
            let read = peer.request();
            // Half of a chunk, and then nothing for too long.
            let chunk = bytes::data(0, read.cookie, 0, content(0, 100_000));
            peer.says(&chunk[..50_000]);
            receiver.recv().expect("it is given up");
            peer.says(&chunk[50_000..]);
            peer.says(bytes::hole(bytes::D, read.cookie, 100_000, 100_000));
            let next = peer.request();
            peer.says(bytes::data(bytes::D, next.cookie, 9, content(9, 512)));
            peer.disconnect();
        });
        let error = client.read_exact_at(&mut vec![0; 200_000], 0).unwrap_err();
        assert!(is_timeout(&error), "{error:?}");
        sender.send(()).expect("the server waits");
        let mut data = [0; 512];
        client.read_exact_at(&mut data, 9).expect("read");
        assert_eq!(data[..], content(9, 512));
        client.disconnect().expect("the session ends well");
        server.join().expect("the script ends");
    });
}
