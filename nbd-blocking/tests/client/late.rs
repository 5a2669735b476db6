//! Writes that are answered after their timeout, by a server with a minimum block size.

use crate::support::{
    bytes, pause,
    script::{Negotiation, Peer, session},
    spawn, within,
};
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Error, Lost};
use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

const BLOCK: usize = 4096;

/// The timeout of a request. Other requests have to be done well before that.
const TIMEOUT: Duration = Duration::from_secs(2);

fn negotiation() -> Negotiation {
    Negotiation {
        size: 1 << 20,
        block_sizes: Some((4096, 4096, 1 << 20)),
        ..Negotiation::simple()
    }
}

fn options() -> ConnectOptions {
    ConnectOptions::new().request_timeout(Some(TIMEOUT))
}

/// Carries out every write at once but the first, which waits for `go_on`, or is never carried out
/// if its sender is dropped.
fn late(peer: &mut Peer, go_on: mpsc::Receiver<()>) -> Vec<u8> {
    let disk = Arc::new(Mutex::new(vec![0; 1 << 20]));
    let writer = peer.stream.try_clone().expect("sockets can be cloned");
    let writer = Arc::new(Mutex::new(Peer {
        stream: writer,
        one_byte: false,
    }));
    let mut go_on = Some(go_on);
    let mut held = None;
    loop {
        let request = peer.request();
        let at = usize::try_from(request.offset).expect("the disk is small");
        let len = usize::try_from(request.len).expect("the disk is small");
        let data = match request.command {
            0 => {
                let data = disk.lock().expect("no panics")[at..at + len].to_vec();
                let mut writer = writer.lock().expect("no panics");
                writer.says(bytes::sr(0, request.cookie, data));
                continue;
            }
            1 => peer.hears(len),
            2 => break,
            _ => vec![0; len],
        };
        let (disk, writer) = (disk.clone(), writer.clone());
        let carry_out = move || {
            disk.lock().expect("no panics")[at..at + len].copy_from_slice(&data);
            let mut writer = writer.lock().expect("no panics");
            writer.says(bytes::sr(0, request.cookie, []));
        };
        match go_on.take() {
            None => carry_out(),
            Some(go_on) => {
                held = Some(spawn(move || {
                    if go_on.recv().is_ok() {
                        carry_out();
                    }
                }));
            }
        }
    }
    held.expect("there was a change")
        .join()
        .expect("the client is still there");
    Arc::try_unwrap(disk)
        .expect("all is done")
        .into_inner()
        .expect("no panics")
}

/// A way to change the first block, or a part of it.
type Change = fn(&Client) -> Result<(), Error>;

const CHANGES: [(Change, std::ops::Range<usize>, u8); 6] = [
    (|client| client.write_all_at(&[1; 100], 0), 0..100, 1),
    (|client| client.write_all_at(&[2; 100], 2000), 2000..2100, 2),
    (|client| client.write_all_at(&[3; BLOCK], 0), 0..BLOCK, 3),
    (
        |client| client.write_zeroes(0, 4096, CommandFlags::NONE),
        0..BLOCK,
        0,
    ),
    (
        |client| client.trim(0, 4096, CommandFlags::NONE),
        0..BLOCK,
        0,
    ),
    (
        |client| {
            let mut queue = client.queue();
            queue.write(vec![4; BLOCK], 0, CommandFlags::NONE)?;
            let done = queue.complete()?.expect("one is outstanding");
            done.result
        },
        0..BLOCK,
        4,
    ),
];

fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::Timeout { .. })
}

#[test]
fn a_change_that_comes_late_undoes_none_that_was_acknowledged_afterwards() {
    within(15, || {
        thread::scope(|scope| {
            for (first, _, _) in &CHANGES {
                for (second, range, value) in &CHANGES {
                    scope.spawn(move || {
                        let (go_on, receiver) = mpsc::channel();
                        let (client, server) =
                            session(negotiation(), &options(), |peer| late(peer, receiver));
                        let error = first(&client).expect_err("it is not answered");
                        assert!(is_timeout(&error), "{error:?}");
                        thread::scope(|scope| {
                            let other = scope.spawn(|| second(&client));
                            pause(200); // the client may send an illegal request
                            go_on.send(()).expect("it waits");
                            other.join().expect("no panics").expect("written");
                        });
                        client.disconnect().expect("the session ends well");
                        let disk = server.join().expect("the script ends");
                        assert!(
                            disk[range.clone()].iter().all(|byte| byte == value),
                            "an acknowledged write is gone: {value}"
                        );
                    });
                }
            }
        });
    });
}

#[test]
fn to_wait_for_a_change_that_is_never_answered_takes_no_longer_than_a_request_may() {
    within(20, || {
        let (go_on, receiver) = mpsc::channel();
        let (client, server) = session(negotiation(), &options(), |peer| late(peer, receiver));
        assert!(is_timeout(
            &client.write_all_at(&[1; 100], 0).expect_err("late")
        ));
        thread::scope(|scope| {
            for (change, _, _) in &CHANGES {
                scope.spawn(|| {
                    let start = Instant::now();
                    let error = change(&client).expect_err("it has to wait");
                    assert!(is_timeout(&error), "{error:?}");
                    assert!(start.elapsed() >= TIMEOUT, "{:?}", start.elapsed());
                });
            }
        });
        // Other calls do not wait.
        client.write_all_at(&[5; 100], 4096).expect("written");
        client.write_all_at(&[6; 2 * BLOCK], 8192).expect("written");
        client.read_exact_at(&mut [0; BLOCK], 0).expect("read");
        drop(go_on);
        drop(client);
        server.join().expect("the script ends");
    });
}

#[test]
fn a_call_that_waits_for_a_late_write_fails_when_the_connection_is_lost() {
    within(15, || {
        let (client, server) = session(negotiation(), &options(), |peer| {
            let read = peer.request();
            peer.says(bytes::sr(0, read.cookie, [0; BLOCK]));
            peer.request();
            peer.hears(BLOCK);
            // The next request is a distant read.
            peer.request();
        });
        assert!(is_timeout(
            &client.write_all_at(&[1; 100], 0).expect_err("late")
        ));
        thread::scope(|scope| {
            let waits = scope.spawn(|| client.write_all_at(&[2; 100], 100));
            pause(100);
            let far = client.read_exact_at(&mut [0; 1], 8192);
            for error in [far, waits.join().expect("no panics")] {
                let Err(Error::Lost(lost)) = error else {
                    panic!("{error:?}");
                };
                assert!(matches!(*lost, Lost::Closed | Lost::Io(_)), "{lost:?}");
            }
        });
        server.join().expect("the script ends");
    });
}

#[test]
fn a_queue_that_is_dropped_leaves_nothing_that_undoes_a_later_part() {
    within(15, || {
        let (go_on, receiver) = mpsc::channel();
        let (client, server) = session(negotiation(), &options(), |peer| late(peer, receiver));
        let mut queue = client.queue();
        queue
            .write(vec![9; BLOCK], 0, CommandFlags::NONE)
            .expect("submitted");
        // A queue does not wait for its own writes.
        queue
            .write(vec![8; BLOCK], 0, CommandFlags::NONE)
            .expect("submitted");
        drop(queue);
        thread::scope(|scope| {
            let part = scope.spawn(|| client.write_all_at(&[1; 100], 0));
            pause(200);
            go_on.send(()).expect("it waits");
            part.join().expect("no panics").expect("written");
        });
        client.disconnect().expect("the session ends well");
        let disk = server.join().expect("the script ends");
        assert_eq!(disk[..100], [1; 100]);
        assert_eq!(disk[100..BLOCK], [9; BLOCK - 100]);
    });
}

#[test]
fn an_answer_that_came_in_time_counts_though_the_caller_comes_too_late() {
    within(15, || {
        let (answered, is_answered) = mpsc::channel();
        let (client, server) = session(negotiation(), &options(), move |peer| {
            let read = peer.request();
            peer.says(bytes::sr(0, read.cookie, [7; BLOCK]));
            answered.send(()).expect("the test waits");
            peer.request();
        });
        let mut queue = client.queue();
        queue.read(vec![0; BLOCK], 0).expect("submitted");
        queue.send().expect("sent");
        is_answered.recv().expect("the script goes on");
        thread::sleep(TIMEOUT + Duration::from_millis(1));
        let done = queue.complete().expect("the connection is there");
        let data = done.expect("one is outstanding").into_buffer();
        assert_eq!(data.expect("read"), [7; BLOCK]);
        drop((queue, client));
        server.join().expect("the script ends");
    });
}
