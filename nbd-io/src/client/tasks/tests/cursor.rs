//! A cursor, against an array of bytes.
//!
//! It is longer than 500 lines because all of it plays on one bench.

use super::{
    pipe::{Cut, Pipe},
    recovery::{self, Machine, policy},
    server::{Behaviour, Log, serve},
    sim::{Sim, join},
};
use crate::{
    Export, Fault, Faults, Faulty, Memory, NamedExports,
    client::{ConnectOptions, Error, tasks::Cursor},
    runtime::Runtime,
};
use nbd_proto::{BlockSizes, Command, Errno, client::Limits};
use proptest::prelude::*;
use std::{
    future::poll_fn,
    io::{self, ErrorKind, SeekFrom},
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

const SIZE: u64 = 10_240;

/// Enters an export over a stream that is cut at random, and logs the requests.
async fn enter(sim: &Sim, export: Arc<dyn Export>, cut: Cut) -> (Cursor<Sim>, Log) {
    let exports = Arc::new(NamedExports::single(export));
    let (server, log) = (sim.clone(), Log::default());
    let behaviour = Behaviour {
        log: log.clone(),
        ..Behaviour::default()
    };
    sim.on_connect(move |pipe: Pipe| {
        let pipe = pipe.cut(cut).capacity(700);
        serve(&server, pipe, exports.clone(), behaviour.clone());
        Ok(())
    });
    // Most operations take several requests.
    let limits = Limits {
        payload: 1024,
        ..Limits::default()
    };
    let options = ConnectOptions::with_runtime(sim.clone()).limits(limits);
    let client = options.connect("nbd://localhost").await.unwrap();
    (Cursor::new(client), log)
}

fn memory(minimum: u32) -> Arc<Memory> {
    let sizes = BlockSizes::new(minimum, 512, 4096).unwrap();
    Arc::new(Memory::new(SIZE).with_block_sizes(sizes))
}

async fn read(cursor: &mut Cursor<Sim>, len: usize) -> io::Result<Vec<u8>> {
    poll_fn(|cx| cursor.poll_read(cx, len).map_ok(<[u8]>::to_vec)).await
}

/// Reads so many bytes, or to the end of the export.
async fn read_all(cursor: &mut Cursor<Sim>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        match read(cursor, len - all.len()).await.unwrap() {
            none if none.is_empty() => break,
            some => all.extend(some),
        }
    }
    all
}

async fn write(cursor: &mut Cursor<Sim>, buf: &[u8]) -> io::Result<usize> {
    poll_fn(|cx| cursor.poll_write(cx, buf)).await
}

async fn flush(cursor: &mut Cursor<Sim>) -> io::Result<()> {
    poll_fn(|cx| cursor.poll_flush(cx)).await
}

/// Polls a future at most so many times, then drops it; its output if it was done.
async fn some_polls<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            polled => polled.map(Some),
        }
    })
    .await
}

fn contents(export: &Memory) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(export.size()).unwrap()];
    export.read(0, &mut all).unwrap();
    all
}

/// Bytes of which neighbours differ.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    let byte = |at| u8::try_from((at * 7 + seed) % 251).unwrap();
    (0..len).map(byte).collect()
}

#[test]
fn it_reads_writes_and_seeks_like_a_file_of_fixed_length() {
    let sim = Sim::new(1);
    sim.run(async {
        let (mut cursor, log) = enter(&sim, memory(1), Cut::Whole).await;
        assert_eq!((cursor.position(), cursor.client().size()), (0, SIZE));
        assert_eq!(write(&mut cursor, b"start").await.unwrap(), 5);
        assert_eq!(cursor.position(), 5);
        assert_eq!(cursor.seek(SeekFrom::End(-3)).unwrap(), 10_237);
        assert_eq!(write(&mut cursor, b"the end").await.unwrap(), 3);
        assert_eq!(write(&mut cursor, b"more").await.unwrap(), 0);
        assert_eq!(read(&mut cursor, 9).await.unwrap(), b"");
        flush(&mut cursor).await.unwrap();
        assert!(log.lock().unwrap().last().unwrap().starts_with("Flush"));
        assert_eq!(cursor.seek(SeekFrom::Current(-3)).unwrap(), 10_237);
        assert_eq!(read_all(&mut cursor, 9).await, b"the");
        assert_eq!(cursor.seek(SeekFrom::Start(20_000)).unwrap(), 20_000);
        assert_eq!(read(&mut cursor, 9).await.unwrap(), b"");
        assert_eq!(write(&mut cursor, &[0; 9]).await.unwrap(), 0);
        for wrong in [SeekFrom::Current(-20_001), SeekFrom::End(-10_241)] {
            let error = cursor.seek(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(cursor.position(), 20_000);
        }
        let before = log.lock().unwrap().len();
        cursor.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(read(&mut cursor, 0).await.unwrap(), b"");
        assert_eq!(write(&mut cursor, b"").await.unwrap(), 0);
        assert_eq!(log.lock().unwrap().len(), before, "nothing was asked for");
        assert_eq!(read_all(&mut cursor, 5).await, b"start");
    });
}

#[test]
fn an_operation_has_a_limit() {
    let sim = Sim::new(1);
    sim.run(async {
        let export = Arc::new(Memory::new(5 << 20));
        let exports = Arc::new(NamedExports::single(export));
        let server = sim.clone();
        sim.on_connect(move |pipe: Pipe| {
            serve(&server, pipe, exports.clone(), Behaviour::default());
            Ok(())
        });
        let options = ConnectOptions::with_runtime(sim.clone());
        let client = options.connect("nbd://localhost").await.unwrap();
        let mut cursor = Cursor::new(client);
        let data = pattern(3 << 20, 1);
        assert_eq!(write(&mut cursor, &data).await.unwrap(), 2 << 20);
        cursor.seek(SeekFrom::Start(0)).unwrap();
        let back = read(&mut cursor, 3 << 20).await.unwrap();
        assert!(back == data[..2 << 20]);
    });
}

#[test]
fn a_read_that_is_dropped_at_any_poll_loses_nothing() {
    for cut in [Cut::Random, Cut::Bytes] {
        let mut polls = 0;
        loop {
            let sim = Sim::new(polls as u64);
            let done = sim.run(async {
                let export = memory(1);
                let all = pattern(10_240, 3);
                export.write(0, &all, false).unwrap();
                let (mut cursor, log) = enter(&sim, export, cut).await;
                cursor.seek(SeekFrom::Start(40)).unwrap();
                let first = some_polls(read(&mut cursor, 900), polls).await;
                let done = first.is_some();
                let mut got = first.map_or(Vec::new(), Result::unwrap);
                assert_eq!(cursor.position(), 40 + got.len() as u64);
                got.extend(read_all(&mut cursor, 900 - got.len()).await);
                // The dropped request is not made again.
                assert_eq!(log.lock().unwrap().len(), 1);
                // More and fewer bytes than were asked for before.
                let second = some_polls(read(&mut cursor, 50), polls).await;
                got.extend(second.map_or(Vec::new(), Result::unwrap));
                let third = some_polls(read(&mut cursor, 5000), polls).await;
                got.extend(third.map_or(Vec::new(), Result::unwrap));
                got.extend(read(&mut cursor, 10).await.unwrap());
                got.extend(read_all(&mut cursor, 20_000).await);
                assert!(got == all[40..]);
                done
            });
            if done {
                break;
            }
            polls += 1 + polls / 30;
        }
        assert!(polls > 1, "not even begun");
    }
}

#[test]
fn a_write_that_is_dropped_at_any_poll_was_taken_or_was_not() {
    for cut in [Cut::Random, Cut::Bytes] {
        let mut waited = false;
        let mut polls = 0;
        loop {
            let sim = Sim::new(polls as u64);
            let done = sim.run(async {
                let export = memory(1);
                let all = pattern(3000, 5);
                let (mut cursor, _) = enter(&sim, export.clone(), cut).await;
                assert_eq!(write(&mut cursor, &all[..1500]).await.unwrap(), 1500);
                let second = some_polls(write(&mut cursor, &all[1500..]), polls).await;
                let taken = second.as_ref().map_or(0, |n| *n.as_ref().unwrap());
                assert_eq!(cursor.position(), 1500 + taken as u64);
                // The same again, with other bytes if none of the first ones was accepted.
                let mut all = all;
                if taken == 0 {
                    all.truncate(1500);
                    all.extend(pattern(1500, 77));
                }
                let mut at = 1500 + taken;
                while at < all.len() {
                    at += write(&mut cursor, &all[at..]).await.unwrap();
                }
                flush(&mut cursor).await.unwrap();
                assert!(contents(&export)[..3000] == all);
                second.is_some()
            });
            waited |= !done && polls > 0;
            if done {
                break;
            }
            polls += 1 + polls / 30;
        }
        assert!(waited, "the second write waits for the first one");
    }
}

#[test]
fn a_flush_that_is_dropped_at_any_poll_can_be_retried() {
    // C-191
    for cut in [Cut::Random, Cut::Bytes] {
        let mut polls = 0;
        loop {
            let sim = Sim::new(polls as u64);
            let done = sim.run(async {
                let export = memory(1);
                let (mut cursor, log) = enter(&sim, export.clone(), cut).await;
                write(&mut cursor, &[7; 900]).await.unwrap();
                let first = some_polls(flush(&mut cursor), polls).await;
                // A dropped flush says nothing about later writes.
                write(&mut cursor, &[8; 900]).await.unwrap();
                flush(&mut cursor).await.unwrap();
                let log = log.lock().unwrap();
                let last = log.iter().rposition(|line| line.starts_with("Write"));
                assert!(last.unwrap() < log.len() - 1, "{log:?}");
                assert!(log.last().unwrap().starts_with("Flush"), "{log:?}");
                assert!(contents(&export)[900..1800].iter().all(|byte| *byte == 8));
                first.is_some()
            });
            if done {
                break;
            }
            polls += 1 + polls / 30;
        }
        assert!(polls > 2, "not even begun");
    }
}

#[test]
fn accepted_bytes_are_written_although_the_cursor_is_dropped() {
    let sim = Sim::new(1);
    sim.run(async {
        let export = memory(1);
        let (mut cursor, _) = enter(&sim, export.clone(), Cut::Random).await;
        assert_eq!(write(&mut cursor, &[7; 9000]).await.unwrap(), 9000);
        drop(cursor);
        sim.sleep(Duration::from_millis(1)).await;
        assert!(contents(&export)[..9000].iter().all(|byte| *byte == 7));
    });
    assert_eq!(sim.tasks(), 0);
}

#[test]
fn a_finished_write_of_a_cursor_does_not_block_other_writers() {
    let sim = Sim::new(1);
    sim.run(async {
        let export = memory(512);
        let (mut cursor, _) = enter(&sim, export.clone(), Cut::Random).await;
        // Parts of blocks, which are written by read-modify-write.
        for len in [100, 5000] {
            cursor.seek(SeekFrom::Start(0)).unwrap();
            write(&mut cursor, &vec![7; len]).await.unwrap();
            let client = cursor.client().clone();
            client.write(vec![8; len], 10).await.unwrap();
            flush(&mut cursor).await.unwrap();
            assert!(
                contents(&export)[10..10 + len]
                    .iter()
                    .all(|byte| *byte == 8)
            );
        }
    });
}

#[test]
fn a_failed_write_is_reported_once_by_the_next_call() {
    let sim = Sim::new(1);
    sim.run(async {
        let faults = Faults::new();
        let disk = Faulty::new(memory(1), faults.clone());
        let (mut cursor, _) = enter(&sim, Arc::new(disk), Cut::Random).await;
        let failure = || Fault::failure(Errno::NoSpc, "full").on(Command::Write);
        let failed = |error: io::Error| {
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            let inner = error.get_ref().unwrap().downcast_ref::<Error>();
            assert_eq!(inner.unwrap().errno(), Some(Errno::NoSpc));
        };
        faults.add(failure());
        assert_eq!(write(&mut cursor, &[1; 100]).await.unwrap(), 100);
        failed(write(&mut cursor, &[1; 100]).await.unwrap_err());
        assert_eq!(cursor.position(), 100, "the second was not taken");
        assert_eq!(write(&mut cursor, &[1; 100]).await.unwrap(), 100);
        failed(flush(&mut cursor).await.unwrap_err());
        flush(&mut cursor).await.unwrap();
        // A read does not report it, and leaves it to the next call.
        assert_eq!(write(&mut cursor, &[1; 100]).await.unwrap(), 100);
        assert_eq!(read(&mut cursor, 10).await.unwrap(), [0; 10]);
        cursor.seek(SeekFrom::End(0)).unwrap();
        failed(write(&mut cursor, &[1; 100]).await.unwrap_err());
        assert_eq!(write(&mut cursor, &[1; 100]).await.unwrap(), 0);
        faults.clear();
        cursor.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(write(&mut cursor, &[1; 100]).await.unwrap(), 100);
        flush(&mut cursor).await.unwrap();
    });
}

#[test]
fn after_a_loss_a_cursor_of_a_new_epoch_can_flush() {
    let sim = Sim::new(1);
    let machine = Machine::start(&sim, false);
    sim.run(async {
        let options = recovery::options(&sim, policy());
        let client = options.connect("nbd://localhost").await.unwrap();
        let mut cursor = Cursor::new(client);
        for _ in 0..2 {
            write(&mut cursor, &[1; 10]).await.unwrap();
            // The read waits for the write.
            read(&mut cursor, 10).await.unwrap();
            machine.kill();
            read(&mut cursor, 10).await.unwrap();
            let error = flush(&mut cursor).await.unwrap_err();
            assert!(error.to_string().contains("flushed"), "{error}");
            flush(&mut cursor).await.unwrap_err();
            cursor = Cursor::new(cursor.client().new_epoch());
            flush(&mut cursor).await.unwrap();
        }
    });
}

#[test]
fn failed_reads_and_flushes_can_be_tried_again() {
    let sim = Sim::new(1);
    sim.run(async {
        let faults = Faults::new();
        let disk = Faulty::new(memory(1), faults.clone());
        let (mut cursor, _) = enter(&sim, Arc::new(disk), Cut::Random).await;
        faults.add(
            Fault::failure(Errno::Perm, "scratched")
                .on(Command::Read)
                .touching(50..51),
        );
        let error = read(&mut cursor, 100).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert_eq!(cursor.position(), 0);
        assert_eq!(read_all(&mut cursor, 50).await, [0; 50]);
        assert!(read(&mut cursor, 100).await.is_err());
        faults.add(
            Fault::failure(Errno::Io, "unplugged")
                .on(Command::Flush)
                .times(1),
        );
        assert!(flush(&mut cursor).await.is_err());
        faults.clear();
        flush(&mut cursor).await.unwrap();
        assert_eq!(read(&mut cursor, 100).await.unwrap(), [0; 100]);
    });
}

#[test]
fn impossible_calls_fail_at_once() {
    let sim = Sim::new(1);
    sim.run(async {
        let export = Arc::new(Memory::new(SIZE).read_only());
        let (mut cursor, log) = enter(&sim, export, Cut::Whole).await;
        let error = write(&mut cursor, &[1; 100]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(cursor.position(), 0);
        assert!(log.lock().unwrap().is_empty());
        let client = cursor.client().clone();
        client.disconnect().await.unwrap();
        let error = read(&mut cursor, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected);
    });
}

#[test]
fn a_reader_and_a_writer_in_two_tasks_are_both_woken() {
    for seed in 0..60 {
        let sim = Sim::new(seed);
        sim.run(async {
            let (cursor, _) = enter(&sim, memory(1), Cut::Random).await;
            let cursor = Mutex::new(cursor);
            let reader = async {
                let mut total = 0;
                while total < 5000 {
                    let read = poll_fn(|cx| {
                        let mut cursor = cursor.lock().unwrap();
                        cursor.poll_read(cx, 500).map_ok(<[u8]>::len)
                    });
                    match read.await.unwrap() {
                        0 => {
                            cursor.lock().unwrap().seek(SeekFrom::Start(0)).unwrap();
                        }
                        n => total += n,
                    }
                }
            };
            let writer = async {
                for round in 0..20 {
                    let n = poll_fn(|cx| cursor.lock().unwrap().poll_write(cx, &[1; 300])).await;
                    if n.unwrap() == 0 || round % 5 == 0 {
                        cursor.lock().unwrap().seek(SeekFrom::Start(0)).unwrap();
                    }
                    if round % 3 == 0 {
                        poll_fn(|cx| cursor.lock().unwrap().poll_flush(cx))
                            .await
                            .unwrap();
                    }
                }
            };
            join(reader, writer).await;
        });
    }
}

/// One call, which is dropped after so many polls if it is not done before.
#[derive(Clone, Debug)]
enum Step {
    Read(usize, usize),
    Write(usize, usize),
    Flush(usize),
    Seek(SeekFrom),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let polls = || prop_oneof![Just(usize::MAX), 0_usize..12];
    let len = || prop_oneof![0_usize..3, 0_usize..700, 0_usize..5000];
    let place = 0..SIZE + 500;
    let way = -(SIZE.cast_signed())..500_i64;
    let step = prop_oneof![
        4 => (len(), polls()).prop_map(|(len, polls)| Step::Read(len, polls)),
        4 => (len(), polls()).prop_map(|(len, polls)| Step::Write(len, polls)),
        1 => polls().prop_map(Step::Flush),
        2 => place.prop_map(|place| Step::Seek(SeekFrom::Start(place))),
        1 => way.clone().prop_map(|way| Step::Seek(SeekFrom::End(way))),
        1 => way.prop_map(|way| Step::Seek(SeekFrom::Current(way))),
    ];
    proptest::collection::vec(step, 0..60)
}

/// Makes the calls on an array of bytes, too.
async fn follow(sim: &Sim, steps: Vec<Step>, minimum: u32) {
    let export = memory(minimum);
    let (mut cursor, _) = enter(sim, export.clone(), Cut::Random).await;
    let mut model = contents(&export);
    let mut place = 0_usize;
    let end = model.len();
    for (number, step) in steps.into_iter().enumerate() {
        let left = end.saturating_sub(place);
        match step {
            Step::Read(len, polls) => {
                if let Some(got) = some_polls(read(&mut cursor, len), polls).await {
                    let got = got.unwrap();
                    assert_eq!(got.is_empty(), len.min(left) == 0);
                    assert!(got.len() <= len && model[place.min(end)..].starts_with(&got));
                    place += got.len();
                }
            }
            Step::Write(len, polls) => {
                let data = pattern(len, number);
                if let Some(n) = some_polls(write(&mut cursor, &data), polls).await {
                    let n = n.unwrap();
                    assert_eq!(n, len.min(left));
                    if n > 0 {
                        model[place..place + n].copy_from_slice(&data[..n]);
                        place += n;
                    }
                }
            }
            Step::Flush(polls) => {
                if let Some(flushed) = some_polls(flush(&mut cursor), polls).await {
                    flushed.unwrap();
                    assert!(contents(&export) == model);
                }
            }
            Step::Seek(to) => {
                let (from, way) = match to {
                    SeekFrom::Start(place) => (0, place.cast_signed()),
                    SeekFrom::End(way) => (end, way),
                    SeekFrom::Current(way) => (place, way),
                };
                let new = (from as u64).checked_add_signed(way);
                assert_eq!(cursor.seek(to).ok(), new);
                place = new.map_or(place, |new| usize::try_from(new).unwrap());
            }
        }
        assert_eq!(cursor.position(), place as u64);
    }
    flush(&mut cursor).await.unwrap();
    assert!(contents(&export) == model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_behaves_like_an_array_of_bytes(
        steps in steps(),
        seed in any::<u64>(),
        minimum in prop_oneof![Just(1_u32), Just(512)],
    ) {
        let sim = Sim::new(seed);
        sim.run(follow(&sim, steps, minimum));
    }
}
