//! Writes that are kept until they are flushed: their order, and their number.

use super::{Machine, negotiation, options, policy, read};
use crate::support::{
    bytes,
    host::{Host, disk},
    spawn, within,
};
use nbd_blocking::{Client, CommandFlags, Errno, Queue};
use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

const NONE: CommandFlags = CommandFlags::NONE;

fn connect(machine: &Machine, limit: u64) -> Client {
    machine.connect(&options(policy().keep_unflushed(limit)))
}

/// The commands that the server received since the last call.
fn commands(machine: &Machine) -> Vec<u16> {
    let mut disk = machine.disk.lock().expect("no panics");
    let commands = disk.commands();
    disk.log.clear();
    commands
}

fn complete(queue: &mut Queue) {
    let done = queue.complete().expect("answered").expect("one");
    done.result.expect("carried out");
}

#[test]
fn the_last_write_is_there_after_a_crash_whichever_caller_reads_first() {
    within(10, || {
        let machine = Machine::start();
        let client = connect(&machine, 1 << 20);
        let mut queue = client.queue();
        queue.write(vec![1; 512], 0, NONE).expect("submitted");
        queue.send().expect("sent");
        // This reads the reply to the first write, which the queue has not looked at yet.
        client.write_all_at(&[2; 512], 0).expect("written");
        complete(&mut queue);
        machine.kill();
        assert_eq!(read(&client, 0, 512), [2; 512]);
        client.flush().expect("nothing is lost");
        assert_eq!(
            machine.disk.lock().expect("no panics").stable[..512],
            [2; 512]
        );
    });
}

#[test]
fn a_write_that_is_not_awaited_is_kept_too() {
    within(10, || {
        let machine = Machine::start();
        let client = connect(&machine, 1 << 20);
        let mut queue = client.queue();
        queue.write(vec![1; 512], 0, NONE).expect("submitted");
        queue.send().expect("sent");
        drop(queue);
        assert_eq!(read(&client, 0, 512), [1; 512]);
        machine.kill();
        assert_eq!(read(&client, 0, 512), [1; 512]);
    });
}

#[test]
fn a_write_that_there_is_no_room_for_is_flushed_before_it_counts() {
    within(10, || {
        let machine = Machine::start();
        let client = connect(&machine, 2000);
        for round in 0..4 {
            client
                .write_all_at(&[1; 600], round * 600)
                .expect("written");
        }
        assert_eq!(commands(&machine), [1, 1, 1, 3, 1]);
    });
}

/// The server's replies to flushes, of which the first comes when all writes have come: eight threads
/// write more than there is room to keep.
fn flushes_of_eight_writers(errno: u32) -> (Vec<Result<(), Option<Errno>>>, usize) {
    const WRITERS: usize = 8;
    let came = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let served = disk(super::SIZE);
    let seen = came.clone();
    let host = Host::start(move |number, peer| {
        peer.try_negotiate(&negotiation())?;
        loop {
            let (request, payload) = peer.try_request()?;
            let (counts, changed) = &*seen;
            let mut counts = counts.lock().expect("no panics");
            counts.0 += usize::from(request.command == 1);
            counts.1 += usize::from(request.command == 3);
            changed.notify_all();
            let missing = |counts: &mut (usize, usize)| request.command == 3 && counts.0 < WRITERS;
            // Not for ever: a write may have chosen this connection, too, before it was loaded with
            // the flush, and is read after that.
            let waited = changed.wait_timeout_while(counts, Duration::from_secs(1), missing);
            drop(waited.expect("no panics"));
            let data = served
                .lock()
                .expect("no panics")
                .carry_out(number, request, &payload);
            let errno = if request.command == 3 { errno } else { 0 };
            peer.try_says(bytes::sr(errno, request.cookie, data))?;
        }
    });
    // Each thread has a connection that no other one holds up.
    let options = options(policy().keep_unflushed(1000)).connections(WRITERS + 1);
    let client = options.connect(&host.uri()).expect("entered");
    let threads: Vec<_> = (0..WRITERS as u64)
        .map(|number| {
            let client = client.clone();
            spawn(move || client.write_all_at(&[1; 4000], number * 4096))
        })
        .collect();
    let written = threads.into_iter().map(|thread| {
        let written = thread.join().expect("no panics");
        written.map_err(|error| error.errno())
    });
    let written = written.collect();
    let flushes = came.0.lock().expect("no panics").1;
    (written, flushes)
}

/// Eight writers, several times. Two flushes will do, one for the writes that were answered before it
/// was sent and one for the others, but the system may hold up any thread.
fn share_flushes(errno: u32, expected: &Result<(), Option<Errno>>) {
    const ROUNDS: usize = 5;
    let mut flushes = 0;
    for _ in 0..ROUNDS {
        let (written, count) = flushes_of_eight_writers(errno);
        assert!(
            written.iter().all(|written| written == expected),
            "{written:?}"
        );
        assert!((1..=8).contains(&count), "{count}");
        flushes += count;
    }
    assert!(flushes < 8 * ROUNDS, "each write has a flush of its own");
}

#[test]
fn writes_that_there_is_no_room_for_share_flushes() {
    within(20, || share_flushes(0, &Ok(())));
}

#[test]
fn a_flush_that_fails_fails_the_writes_that_wait_for_it() {
    within(20, || share_flushes(5, &Err(Some(Errno::Io))));
}

#[test]
fn a_write_longer_than_the_limit_is_not_kept() {
    within(10, || {
        let machine = Machine::start();
        let client = connect(&machine, 100_000);
        client.write_all_at(&[1; 512], 0).expect("written");
        client.write_all_at(&[2; 500_000], 0).expect("written");
        assert_eq!(commands(&machine), [1, 1, 3]);
        machine.kill();
        assert_eq!(read(&client, 0, 500_000), [2; 500_000]);
        assert_eq!(commands(&machine), [0], "nothing is written again");
    });
}

#[test]
fn a_write_that_is_too_long_to_be_kept_is_sent_again_after_a_crash_before_its_flush() {
    within(10, || {
        // The second request, which is the flush, is the end of the first connection.
        let machine = Machine::start_with(|number, count| number > 0 || count < 1);
        let client = connect(&machine, 100_000);
        client.write_all_at(&[2; 500_000], 0).expect("written");
        assert_eq!(commands(&machine), [1, 3, 1, 3]);
        assert_eq!(read(&client, 0, 500_000), [2; 500_000]);
    });
}

#[test]
fn writes_that_a_queue_has_no_room_to_keep_complete_when_they_are_flushed() {
    within(10, || {
        let machine = Machine::start();
        let client = connect(&machine, 10_000);
        let mut queue = client.queue();
        for number in 0..8 {
            let data = vec![number; 4000];
            queue
                .write(data, u64::from(number) * 4000, NONE)
                .expect("submitted");
        }
        while queue.outstanding() > 0 {
            complete(&mut queue);
        }
        assert!(queue.complete().expect("it is not over").is_none());
        let asked = commands(&machine);
        assert!(asked.starts_with(&[1; 8]), "{asked:?}");
        let flushes = asked.len() - 8;
        assert!((1..=6).contains(&flushes), "{asked:?}");
        machine.kill();
        for number in 0..8 {
            assert_eq!(
                read(&client, u64::from(number) * 4000, 4000),
                [number; 4000]
            );
        }
        client.flush().expect("nothing is lost");
    });
}

#[test]
fn a_write_of_a_queue_that_is_lost_before_its_flush_fails_and_kept_writes_are_there() {
    within(10, || {
        // The third request, which is the flush of the queue, is the end of the first connection.
        let machine = Machine::start_with(|number, count| number > 0 || count < 2);
        let client = connect(&machine, 1000);
        client.write_all_at(&[1; 512], 0).expect("written");
        let mut queue = client.queue();
        // There is no room for two.
        queue.write(vec![2; 512], 256, NONE).expect("submitted");
        let error = match queue.complete() {
            Ok(done) => done.expect("one").result.expect_err("not flushed"),
            Err(error) => error,
        };
        assert!(error.is_lost(), "{error:?}");
        // Only submitted writes are replayed.
        let expected = [[1; 512], [0; 512]].concat();
        assert_eq!(read(&client, 0, 1024), expected);
        client.flush().expect("nothing is lost");
        assert_eq!(commands(&machine), [1, 1, 1, 0, 3]);
        let disk = machine.disk.lock().expect("no panics");
        assert_eq!(disk.stable[..1024], expected);
    });
}

#[test]
fn a_queue_that_is_not_read_from_does_not_keep_others_from_writing() {
    within(10, || {
        let machine = Machine::start();
        let client = connect(&machine, 5000);
        let mut queue = client.queue();
        queue.write(vec![1; 4000], 0, NONE).expect("submitted");
        let other = client.clone();
        let writer = spawn(move || other.write_all_at(&[2; 4000], 8192).expect("written"));
        writer.join().expect("no panics");
        complete(&mut queue);
        machine.kill();
        assert_eq!(read(&client, 0, 4000), [1; 4000]);
        assert_eq!(read(&client, 8192, 4000), [2; 4000]);
    });
}
