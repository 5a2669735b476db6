use super::{DialId, Join, Membership, Next};
use crate::client::{ConnectionState, Error, Lost, Reconnect};
use nbd_proto::{Command, Errno, ExportInfo, Failure, TransmissionFlags};
use proptest::prelude::*;
use std::{io, sync::Arc, time::Duration};

mod model;

const SECOND: Duration = Duration::from_secs(1);

/// A connection, which is compared by identity.
#[derive(Debug)]
struct Link;

fn export(flags: TransmissionFlags) -> ExportInfo {
    ExportInfo::new(4096, flags)
}

fn writable() -> ExportInfo {
    export(TransmissionFlags::SEND_FLUSH | TransmissionFlags::CAN_MULTI_CONN)
}

fn policy() -> Reconnect {
    Reconnect::new().delay(Duration::from_millis(100), SECOND)
}

/// Members that have been open for long, at 1000 s.
fn started(
    policy: Reconnect,
    export: &ExportInfo,
    count: usize,
) -> (Membership<Link>, Vec<Arc<Link>>, Duration) {
    let mut members = Membership::new(Some(policy), export);
    let links: Vec<_> = (0..count).map(|_| Arc::new(Link)).collect();
    for link in &links {
        members.add(link.clone(), Duration::ZERO);
    }
    (members, links, 1000 * SECOND)
}

fn why() -> Arc<Lost> {
    Arc::new(Lost::Closed)
}

fn refused() -> Error {
    Error::Connect {
        to: "here".into(),
        source: Arc::new(io::ErrorKind::ConnectionRefused.into()),
    }
}

fn dialed(next: Next) -> (DialId, Option<Duration>) {
    match next {
        Next::Dial { dial, by } => (dial, by),
        other => panic!("{other:?}"),
    }
}

fn not_restored(members: &Membership<Link>) -> (u32, Arc<Error>) {
    match members.state() {
        ConnectionState::Over(lost) => match &**lost {
            Lost::NotRestored { attempts, source } => (*attempts, source.clone()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lost_connection_is_dialed_at_once_and_joins() {
    let (mut members, links, now) = started(policy(), &writable(), 1);
    assert_eq!(members.next(now), Next::Wait(None));
    let loss = members.lost(&links[0], &why(), now).unwrap();
    assert!(loss.given_up.is_empty() && loss.ends_epoch);
    assert!(
        members.lost(&links[0], &why(), now).is_none(),
        "it is lost once"
    );
    assert!(matches!(
        members.state(),
        ConnectionState::Reconnecting { attempt: 0, .. }
    ));
    let (dial, by) = dialed(members.next(now));
    assert_eq!(by, Some(now + 300 * SECOND));
    assert!(matches!(
        members.state(),
        ConnectionState::Reconnecting { attempt: 1, .. }
    ));
    assert_eq!(members.next(now), Next::Wait(None), "it is being dialed");
    let link = Arc::new(Link);
    assert!(matches!(
        members.join(dial, &link, false, now),
        Join::Joined
    ));
    assert!(members.is_member(&link) && members.is_complete());
    assert!(matches!(members.state(), ConnectionState::Connected));
}

#[test]
fn delays_double_up_to_the_longest_and_jitter_takes_at_most_a_half() {
    for _ in 0..50 {
        let (mut members, links, mut now) = started(policy(), &writable(), 1);
        let _ = members.lost(&links[0], &why(), now);
        for whole in [100, 200, 400, 800, 1000, 1000] {
            let (dial, _) = dialed(members.next(now));
            members.failed(dial, refused(), now);
            let Next::Wait(Some(due)) = members.next(now) else {
                panic!("it is tried again");
            };
            let whole = Duration::from_millis(whole);
            assert!(
                (whole / 2..=whole).contains(&(due - now)),
                "{:?}",
                due - now
            );
            now = due;
        }
    }
}

#[test]
fn the_last_attempt_begins_when_the_time_is_over_and_not_before() {
    for _ in 0..50 {
        let policy = policy()
            .delay(SECOND, 10 * SECOND)
            .total_time(Some(12 * SECOND));
        let (mut members, links, start) = started(policy, &writable(), 1);
        let _ = members.lost(&links[0], &why(), start);
        let (mut now, mut last) = (start, start);
        while !members.is_over() {
            match members.next(now) {
                Next::Dial { dial, by } => {
                    last = now;
                    // The last member gets its time, too.
                    assert!(by.unwrap() >= (now + 5 * SECOND).max(start + 12 * SECOND));
                    members.failed(dial, refused(), now);
                }
                Next::Wait(due) => now = due.unwrap(),
                Next::Over => {}
            }
        }
        assert_eq!(last, start + 12 * SECOND);
    }
}

#[test]
fn an_attempt_that_ends_after_the_deadline_is_the_last() {
    let policy = policy().total_time(Some(SECOND));
    let (mut members, links, now) = started(policy, &writable(), 1);
    let _ = members.lost(&links[0], &why(), now);
    let (dial, by) = dialed(members.next(now));
    assert_eq!(by, Some(now + 5 * SECOND));
    members.failed(dial, refused(), now + 5 * SECOND);
    assert_eq!(not_restored(&members).0, 1);
    assert_eq!(members.next(now + 9 * SECOND), Next::Over);
}

#[test]
fn a_loss_that_is_noticed_late_is_dialed_all_the_same() {
    let policy = policy().total_time(Some(Duration::ZERO));
    let (mut members, links, now) = started(policy, &writable(), 1);
    let _ = members.lost(&links[0], &why(), now);
    let later = now + 1000 * SECOND;
    let (dial, by) = dialed(members.next(later));
    assert_eq!(by, Some(later + 5 * SECOND));
    members.failed(dial, refused(), later);
    assert_eq!(not_restored(&members).0, 1);
}

#[test]
fn a_connection_that_does_not_last_counts_as_an_attempt_that_failed() {
    // H-038
    let (mut members, links, mut now) = started(policy().attempts(Some(3)), &writable(), 1);
    let _ = members.lost(&links[0], &why(), now);
    let mut count = 0;
    while !members.is_over() {
        match members.next(now) {
            Next::Dial { dial, .. } => {
                count += 1;
                let link = Arc::new(Link);
                assert!(matches!(
                    members.join(dial, &link, false, now),
                    Join::Joined
                ));
                let _ = members.lost(&link, &why(), now);
            }
            Next::Wait(due) => now = due.unwrap(),
            Next::Over => {}
        }
    }
    assert_eq!(count, 3);
    assert_eq!(not_restored(&members).0, 3);
}

#[test]
fn all_are_given_up_when_one_is_lost_unless_the_export_is_read_only() {
    let read_only = export(TransmissionFlags::READ_ONLY | TransmissionFlags::SEND_FLUSH);
    for (export, ends) in [(writable(), true), (read_only, false)] {
        let (mut members, links, now) = started(policy(), &export, 3);
        let loss = members.lost(&links[1], &why(), now).unwrap();
        assert_eq!(loss.ends_epoch, ends);
        assert_eq!(loss.given_up.len(), if ends { 2 } else { 0 });
        assert_eq!(members.is_member(&links[0]), !ends);
        assert_eq!(
            matches!(members.state(), ConnectionState::Connected),
            !ends,
            "{:?}",
            members.state()
        );
    }
}

#[test]
fn the_first_replays_and_the_others_wait_and_then_have_a_member_probed() {
    // C-192
    let (mut members, links, now) = started(policy(), &writable(), 3);
    let _ = members.lost(&links[0], &why(), now);
    let dials = [(); 3].map(|()| dialed(members.next(now)).0);
    let links = [(); 3].map(|()| Arc::new(Link));
    let mut join = |at: usize, needs_replay| members.join(dials[at], &links[at], needs_replay, now);
    assert!(matches!(join(1, true), Join::Replay));
    assert!(matches!(join(0, true), Join::Wait));
    assert!(matches!(join(1, true), Join::Replay), "it may ask again");
    assert!(!members.replayed(dials[0]), "that is another one");
    assert!(members.replayed(dials[1]));
    let mut join = |at: usize| members.join(dials[at], &links[at], false, now);
    assert!(matches!(join(1), Join::Joined));
    let Join::Probe(other) = join(0) else {
        panic!("the first has to answer");
    };
    assert!(Arc::ptr_eq(&other, &links[1]));
    members.probed(dials[0], &other);
    let mut join = |at: usize| members.join(dials[at], &links[at], false, now);
    assert!(matches!(join(0), Join::Joined));
    // A probe that was answered before its member was lost proves nothing about the next member.
    assert!(matches!(join(2), Join::Probe(_)));
    members.probed(dials[2], &links[1]);
    let _ = members.lost(&links[1], &why(), now);
    assert!(matches!(
        members.join(dials[2], &links[2], true, now),
        Join::Replay
    ));
}

#[test]
fn a_replay_that_fails_is_left_to_another_connection() {
    let (mut members, links, now) = started(policy(), &writable(), 2);
    let _ = members.lost(&links[0], &why(), now);
    let dials = [(); 2].map(|()| dialed(members.next(now)).0);
    let link = Arc::new(Link);
    assert!(matches!(
        members.join(dials[0], &link, true, now),
        Join::Replay
    ));
    assert!(matches!(
        members.join(dials[1], &link, true, now),
        Join::Wait
    ));
    members.failed(dials[0], Error::Lost(why()), now);
    assert!(matches!(
        members.join(dials[1], &link, true, now),
        Join::Replay
    ));
}

#[test]
fn a_permanent_error_is_not_retried() {
    // H-039
    let changed = Error::lost(Lost::Changed { what: "its size" });
    let refusal = |errno| Error::Failed {
        command: Command::Write,
        source: Failure::new(errno),
    };
    for (error, replays, last) in [
        (changed.clone(), false, true),
        (changed, true, true),
        (refusal(Errno::NoSpc), true, true),
        (refusal(Errno::Shutdown), true, false),
        (refusal(Errno::NoSpc), false, false),
        (refused(), false, false),
    ] {
        let (mut members, links, now) = started(policy(), &writable(), 1);
        let _ = members.lost(&links[0], &why(), now);
        let (dial, _) = dialed(members.next(now));
        if replays {
            let join = members.join(dial, &Arc::new(Link), true, now);
            assert!(matches!(join, Join::Replay));
        }
        members.failed(dial, error.clone(), now);
        assert_eq!(members.is_over(), last, "{error:?}");
    }
}

#[test]
fn one_that_rests_is_dialed_again_when_another_is_lost_that_has_lasted() {
    let (mut members, links, now) = started(policy().attempts(Some(1)), &writable(), 2);
    let _ = members.lost(&links[0], &why(), now);
    let dials = [(); 2].map(|()| dialed(members.next(now)).0);
    let link = Arc::new(Link);
    assert!(matches!(
        members.join(dials[0], &link, false, now),
        Join::Joined
    ));
    members.failed(dials[1], refused(), now);
    let later = now + 1000 * SECOND;
    assert_eq!(members.next(later), Next::Wait(None), "it rests");
    let _ = members.lost(&link, &why(), later);
    let dials = [(); 2].map(|()| dialed(members.next(later)).0);
    let join = members.join(dials[0], &link, false, later);
    assert!(matches!(join, Join::Joined));
    members.failed(dials[1], refused(), later);
    // This member has not lasted.
    let _ = members.lost(&link, &why(), later);
    assert_eq!(members.next(later + 1000 * SECOND), Next::Over);
}

#[test]
fn without_a_policy_the_others_go_on_and_nothing_is_dialed() {
    let mut members = Membership::new(None, &writable());
    let links = [(); 2].map(|()| Arc::new(Link));
    for link in &links {
        members.add(link.clone(), SECOND);
    }
    let loss = members.lost(&links[0], &why(), SECOND).unwrap();
    assert!(loss.given_up.is_empty() && !loss.ends_epoch);
    assert!(matches!(members.state(), ConnectionState::Connected));
    assert_eq!(members.next(9 * SECOND), Next::Wait(None));
    assert!(members.redial(SECOND).is_none());
    let _ = members.lost(&links[1], &why(), SECOND);
    let ConnectionState::Over(lost) = members.state() else {
        panic!("none is left");
    };
    assert!(matches!(**lost, Lost::Closed), "{lost:?}");
}

#[test]
fn a_redial_gives_up_open_connections_and_skips_the_backoff() {
    let (mut members, links, now) = started(policy(), &writable(), 2);
    let _ = members.lost(&links[0], &why(), now);
    let first = dialed(members.next(now)).0;
    let second = dialed(members.next(now)).0;
    let link = Arc::new(Link);
    assert!(matches!(
        members.join(first, &link, false, now),
        Join::Joined
    ));
    members.failed(second, refused(), now);
    let third = dialed(members.next(now + SECOND)).0;
    let now = now + SECOND;
    let loss = members.redial(now).unwrap();
    assert!(Arc::ptr_eq(&loss.given_up[0], &link));
    assert!(loss.ends_epoch);
    assert!(matches!(
        members.state(),
        ConnectionState::Reconnecting { .. }
    ));
    // The dial that was under way is of no use any more.
    assert!(!members.is_wanted(third));
    members.failed(third, refused(), now);
    assert!(matches!(
        members.join(third, &link, false, now),
        Join::Unwanted
    ));
    let dials = [(); 2].map(|()| dialed(members.next(now)).0);
    assert!(dials.iter().all(|dial| members.is_wanted(*dial)));
    assert!(
        !members.is_wanted(third),
        "another one of the same member is"
    );
}

#[test]
fn the_members_can_be_asked_about() {
    let (mut members, links, now) = started(policy(), &writable(), 2);
    assert_eq!(members.count(), 2);
    assert!(members.is_complete() && members.reconnects() && !members.is_closing());
    let _ = members.lost(&links[0], &why(), now);
    assert_eq!(members.count(), 2);
    assert!(!members.is_complete());
    let _ = members.close();
    assert!(members.is_closing());
    assert!(!Membership::<Link>::new(None, &writable()).reconnects());
}

#[test]
fn nothing_joins_after_the_end() {
    let (mut members, links, now) = started(policy(), &writable(), 2);
    let _ = members.lost(&links[0], &why(), now);
    let (dial, _) = dialed(members.next(now));
    assert!(members.close().unwrap().is_empty());
    assert!(members.close().is_none(), "it is closed once");
    assert!(matches!(members.state(), ConnectionState::Over(_)));
    assert!(matches!(
        members.join(dial, &Arc::new(Link), false, now),
        Join::Unwanted
    ));
    assert_eq!(members.next(now), Next::Over);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_order_of_events_keeps_answered_writes_and_comes_to_an_end(
        connections in 1..5_usize,
        read_only in any::<bool>(),
        keeps in any::<bool>(),
        attempts in proptest::option::of(1..5_u32),
        total in proptest::option::of(1..30_u64),
        events in proptest::collection::vec(any::<(u8, u8, u16)>(), 0..200),
    ) {
        let policy = policy().attempts(attempts).total_time(total.map(Duration::from_secs));
        let mut model = model::Model::new(policy, connections, read_only, keeps);
        for (kind, which, time) in events {
            model.event(kind, which.into(), Duration::from_millis(u64::from(time) / 8));
            model.check();
        }
        model.comes_to_rest();
    }
}
