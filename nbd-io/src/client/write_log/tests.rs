//! The log beside a server that crashes.

mod world;

use super::*;
use crate::client::Lost;
use bytes::Bytes;
use nbd_proto::CommandFlags;
use proptest::prelude::*;
use world::{InFlight, Kind, Step, World, steps};

fn write(offset: u64, payload: Vec<u8>) -> Request {
    Request::Write {
        offset,
        payload: Bytes::from(payload),
        flags: CommandFlags::NONE,
    }
}

fn kept(log: &WriteLog) -> Vec<u64> {
    let (_, requests) = log.replay();
    let offset = |request: &Request| request.change().unwrap().start;
    requests.iter().map(offset).collect()
}

#[test]
fn a_flush_covers_writes_answered_before_it_was_sent() {
    let mut log = WriteLog::new(10_000);
    let epoch = log.epoch();
    for number in 0..3 {
        assert!(log.reserve(WriteLog::cost(10)));
        assert!(log.change(epoch, false, Some(write(number, vec![0; 10]))));
    }
    assert!(log.flush(epoch, 2));
    assert_eq!(kept(&log), [2]);
    assert!(log.flush(epoch, 1), "an older one says nothing new");
    assert_eq!(kept(&log), [2]);
}

#[test]
fn a_failed_flush_is_reported_for_the_changes_that_it_should_have_covered() {
    let failure = |log: &mut WriteLog, answered| match log.cover(log.epoch(), answered) {
        Coverage::Failed(error) => Some(error.to_string()),
        _ => None,
    };
    let (first, second) = (Error::Unflushed, Error::lost(Lost::GivenUp));
    let mut log = WriteLog::new(0);
    let old = log.epoch();
    for _ in 0..4 {
        assert!(log.change(old, false, None));
    }
    log.flush_failed(old, 2, &first);
    // A server may forget its failure, and say that a later flush succeeded.
    assert!(log.flush(old, 4));
    assert_eq!(failure(&mut log, 2), Some(first.to_string()));
    assert_eq!(failure(&mut log, 3), None);
    // An older failure does not take the place of a newer one, and a newer one of an older one.
    log.flush_failed(old, 1, &second);
    assert_eq!(failure(&mut log, 2), Some(first.to_string()));
    log.flush_failed(old, 3, &second);
    assert_eq!(failure(&mut log, 3), Some(second.to_string()));
    log.end_epoch();
    log.flush_failed(old, 4, &first);
    assert_eq!(failure(&mut log, 4), None, "of a connection that was lost");
}

#[test]
fn nothing_of_an_epoch_that_is_over_counts() {
    let mut log = WriteLog::new(10_000);
    let old = log.epoch();
    assert!(log.reserve(2 * WriteLog::cost(10)));
    assert!(log.change(old, false, Some(write(0, vec![0; 10]))));
    log.end_epoch();
    assert!(!log.change(old, false, Some(write(1, vec![0; 10]))));
    assert!(!log.flush(old, 1));
    assert_eq!(kept(&log), [0]);
    assert!(log.needs_replay());
    let (epoch, _) = log.replay();
    log.end_epoch();
    assert!(!log.replayed(epoch), "there was another loss");
    assert!(log.needs_replay());
    assert!(log.replayed(log.epoch()));
    assert!(!log.needs_replay());
    assert_eq!(kept(&log), [0], "it is not flushed yet");
}

/// The changes to be written again, each with its range and first byte.
fn replayed(log: &WriteLog) -> Vec<(std::ops::Range<u64>, Option<u8>)> {
    let (_, requests) = log.replay();
    let shown = |request: &Request| match request {
        Request::Write { payload, .. } => (request.range(), Some(payload[0])),
        _ => (request.range(), None),
    };
    requests.iter().map(shown).collect()
}

fn answered(log: &mut WriteLog, request: Request) {
    assert!(log.reserve(WriteLog::cost(request.weight())));
    assert!(log.change(log.epoch(), false, Some(request)));
}

#[test]
fn no_byte_is_written_again_that_a_later_change_has_overwritten() {
    // A server that crashes in the middle must not be left with the bytes of the first, if the
    // second was forced to stable storage.
    let mut log = WriteLog::new(10_000);
    answered(&mut log, write(10, vec![1; 30]));
    answered(&mut log, write(20, vec![2; 10]));
    assert_eq!(
        replayed(&log),
        [(10..20, Some(1)), (30..40, Some(1)), (20..30, Some(2))]
    );
    let zeroes = |offset, len| Request::WriteZeroes {
        offset,
        len,
        flags: CommandFlags::NONE,
    };
    answered(&mut log, zeroes(0, 25));
    assert_eq!(
        replayed(&log),
        [(30..40, Some(1)), (25..30, Some(2)), (0..25, None)]
    );
    // All that it covers, and all that it touches at both ends.
    answered(&mut log, write(25, vec![3; 20]));
    assert_eq!(replayed(&log), [(0..25, None), (25..45, Some(3))]);
    answered(&mut log, write(0, vec![4; 100]));
    assert_eq!(replayed(&log), [(0..100, Some(4))]);
}

#[test]
fn changes_with_room_between_them_are_all_written_again() {
    let mut log = WriteLog::new(10_000);
    for (value, offset) in [(1, 50), (2, 100), (3, 0)] {
        answered(&mut log, write(offset, vec![value; 10]));
    }
    assert_eq!(
        replayed(&log),
        [(50..60, Some(1)), (100..110, Some(2)), (0..10, Some(3))]
    );
}

#[test]
fn a_trim_overwrites_nothing_because_a_server_may_ignore_it() {
    let mut log = WriteLog::new(10_000);
    answered(&mut log, write(0, vec![1; 10]));
    let (offset, len, flags) = (0, 10, CommandFlags::NONE);
    answered(&mut log, Request::Trim { offset, len, flags });
    assert_eq!(replayed(&log), [(0..10, Some(1)), (0..10, None)]);
    answered(&mut log, write(5, vec![2; 5]));
    assert_eq!(
        replayed(&log),
        [(0..5, Some(1)), (0..5, None), (5..10, Some(2))]
    );
}

#[test]
fn a_loss_is_reported_only_if_data_may_be_lost() {
    let mut log = WriteLog::new(0);
    log.end_epoch();
    assert_eq!(log.losses(), 0);
    assert!(log.change(log.epoch(), true, None));
    log.end_epoch();
    assert_eq!(log.losses(), 0, "it was forced");
    assert!(log.change(log.epoch(), false, None));
    assert!(log.flush(log.epoch(), log.answered()));
    log.end_epoch();
    assert_eq!(log.losses(), 0, "it was flushed");
    assert!(log.change(log.epoch(), false, None));
    log.end_epoch();
    log.end_epoch();
    assert_eq!(log.losses(), 1);
}

#[test]
fn an_entry_takes_no_more_memory_than_it_counts_for() {
    // A queue takes up to twice as much as there is in it.
    assert!(2 * size_of::<Entry>() as u64 <= OVERHEAD);
}

proptest! {
    #[test]
    fn no_order_of_replies_losses_and_crashes_loses_answered_writes(
        limit in 0..4_u64,
        steps in prop::collection::vec(steps(), 0..200),
    ) {
        // For up to so many writes; those that there is no room for are forced here.
        let mut world = World::new((2 * limit + 1) * WriteLog::cost(10));
        for step in steps {
            match step {
                Step::Write { block, forced } if !world.is_locked(block) => {
                    world.values = world.values.wrapping_add(1);
                    let keeps = world.log.reserve(WriteLog::cost(10));
                    let value = world.values;
                    world.send(Kind::Write { block, value, forced, keeps });
                }
                Step::Write { .. } => {}
                Step::Flush => world.send_flush(false),
                Step::Look(n) if !world.uncovered.is_empty() => {
                    world.look(n % world.uncovered.len());
                }
                Step::Look(_) => {}
                Step::GiveUp => world.give_up(),
                Step::Fail(n) => {
                    let flushes = |at: &usize| {
                        let request: &InFlight = &world.in_flight[*at];
                        !request.executed && matches!(request.kind, Kind::Flush { .. })
                    };
                    let waiting: Vec<_> = (0..world.in_flight.len()).filter(flushes).collect();
                    if let Some(at) = waiting.get(n % waiting.len().max(1)) {
                        world.fail(*at);
                        world.reply(*at);
                    }
                }
                Step::Execute(n) => {
                    let waiting: Vec<usize> = (0..world.in_flight.len())
                        .filter(|at| !world.in_flight[*at].executed)
                        .collect();
                    if let Some(at) = waiting.get(n % waiting.len().max(1)) {
                        world.execute(*at);
                    }
                }
                Step::Reply(n) => {
                    let executed: Vec<usize> = (0..world.in_flight.len())
                        .filter(|at| world.in_flight[*at].executed)
                        .collect();
                    if let Some(at) = executed.get(n % executed.len().max(1)) {
                        world.reply(*at);
                    }
                }
                Step::Crash(bits) => {
                    world.crash(bits);
                    world.lose();
                    world.check();
                }
                Step::CrashTwice(bits, after) => {
                    world.crash(bits);
                    world.end_epoch();
                    let _ = world.begin_replay(after);
                    world.crash(!bits);
                    world.log.end_epoch();
                    world.replay();
                    world.check();
                }
                Step::Lose => {
                    world.lose();
                    world.check();
                }
            }
            let taken = world.log.kept + world.log.reserved;
            prop_assert!(taken <= world.limit, "{taken} of {}", world.limit);
        }
        // When all requests are answered, reserved room has been given back.
        while !world.in_flight.is_empty() || !world.uncovered.is_empty() {
            if world.in_flight.is_empty() {
                world.look(0);
                continue;
            }
            if !world.in_flight[0].executed {
                world.execute(0);
            }
            world.reply(0);
        }
        world.check();
        prop_assert_eq!(world.log.reserved, 0);
        let answered = world.log.answered();
        prop_assert!(world.log.flush(world.log.epoch(), answered));
        prop_assert_eq!(world.log.kept, 0);
    }
}
