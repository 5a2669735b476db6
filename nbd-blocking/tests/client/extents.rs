//! Extents of any range.

use crate::{
    ranges::{MIB, enter},
    support::{
        Random,
        bytes::{self, D, status},
        model::Model,
        says,
        script::{Negotiation, session},
        within,
    },
};
use nbd_blocking::{ConnectOptions, ContextName, Error, Misuse, nbd_io::client::StatusRuns};
use std::{thread, time::Duration};

/// Extents of two contexts that a scripted server reports bit by bit.
#[test]
fn extents_are_merged_cut_and_put_beside_each_other() {
    // C-246, C-247, C-248, C-249
    within(10, || {
        let negotiation = Negotiation {
            size: 10_000,
            contexts: vec![(5, "base:allocation"), (0, "x-test:other")],
            ..Negotiation::structured()
        };
        let options = ConnectOptions::new()
            .context(ContextName::base_allocation())
            .context(ContextName::new("x-test:other").expect("a name"));
        let (client, server) = session(negotiation, &options, |peer| {
            let first = peer.request();
            assert_eq!((first.command, first.offset, first.len), (7, 1000, 8000));
            // In the other order; the second goes behind the end of the export.
            peer.says(status(0, first.cookie, 0, &[(3000, 7), (100_000, 8)]));
            let cut = [(500, 0), (500, 0), (1000, 3), (2000, 0)];
            peer.says(status(D, first.cookie, 5, &cut));
            let second = peer.request();
            assert_eq!((second.offset, second.len), (5000, 4000));
            peer.says(status(0, second.cookie, 5, &[(4000, 0)]));
            peer.says(status(D, second.cookie, 0, &[(1, 8), (9999, 8)]));
        });
        let extents: Result<Vec<_>, _> = client.extents(1000..9000).collect();
        let extents = extents.expect("answered").into_iter();
        let rows = extents.map(|run| (run.offset, run.len, run.status));
        let run = |offset, len, status: [u64; 2]| (offset, len, status.to_vec());
        assert_eq!(
            rows.collect::<Vec<_>>(),
            [
                run(1000, 1000, [0, 7]),
                run(2000, 1000, [3, 7]),
                run(3000, 1000, [0, 7]),
                run(4000, 5000, [0, 8]),
            ]
        );
        server.join().expect("the script ends");
        let none: Vec<_> = client.extents(7..7).collect();
        assert!(none.is_empty());
    });
}

#[test]
fn extents_of_any_range_never_leave_it() {
    within(10, || {
        for block in [1, 4096] {
            let model = Model::new(MIB).block_sizes(block, 4096, 1 << 20);
            let (stream, disk) = model.unix();
            let mut random = Random::new(3);
            for _ in 0..20 {
                let start = random.below(250) * 4096;
                disk.lock().expect("no panics")[start..start + 4096].fill(1);
            }
            let client = ConnectOptions::new()
                .context(ContextName::base_allocation())
                .connect_over(stream, None)
                .expect("entered");
            for _ in 0..50 {
                let start = random.below(MIB) as u64;
                let end =
                    start + 1 + random.below(MIB - usize::try_from(start).expect("short")) as u64;
                let mut at = start;
                let mut before = None;
                for run in client.extents(start..end.min(MIB as u64)) {
                    let run = run.expect("answered");
                    assert_eq!(run.offset, at);
                    assert!(run.len > 0);
                    assert_ne!(before.replace(run.status.clone()), Some(run.status));
                    at += run.len;
                }
                assert_eq!(at, end.min(MIB as u64));
            }
        }
    });
}

#[test]
fn extents_that_end_inside_a_block_are_asked_for_again() {
    // C-250
    within(10, || {
        let negotiation = Negotiation {
            size: 3 * 4096,
            block_sizes: Some((4096, 4096, 1 << 20)),
            contexts: vec![(1, "base:allocation")],
            ..Negotiation::structured()
        };
        let options = ConnectOptions::new().context(ContextName::base_allocation());
        let (client, server) = session(negotiation, &options, |peer| {
            let first = peer.request();
            assert_eq!((first.offset, first.len), (0, 3 * 4096));
            peer.says(status(D, first.cookie, 1, &[(4608, 0), (512, 3)]));
            let second = peer.request();
            assert_eq!((second.offset, second.len), (4096, 2 * 4096));
            peer.says(status(D, second.cookie, 1, &[(512, 0)]));
        });
        let extents: Vec<_> = client.extents(100..9000).collect();
        assert_eq!(extents.len(), 2, "{extents:?}");
        let known = extents[0].as_ref().expect("answered");
        assert_eq!((known.offset, known.len), (100, 3996));
        let error = extents[1].as_ref().unwrap_err();
        says(error, &["the extents end inside of the first block"]);
        server.join().expect("the script ends");
    });
}

#[test]
fn an_extent_is_made_of_a_bounded_number_of_answers_in_a_bounded_time() {
    within(30, || {
        let negotiation = Negotiation {
            size: 1 << 50,
            contexts: vec![(1, "base:allocation")],
            ..Negotiation::structured()
        };
        let options = ConnectOptions::new().context(ContextName::base_allocation());
        let most = StatusRuns::MERGED_ANSWERS.into();
        let (client, server) = session(negotiation, &options, move |peer| {
            for byte in 0..2 * most {
                let asked = peer.request();
                assert_eq!(asked.offset, byte);
                peer.says(status(D, asked.cookie, 1, &[(1, 0)]));
            }
            for pause in [Duration::ZERO, StatusRuns::MERGE_TIME] {
                let asked = peer.request();
                thread::sleep(pause);
                peer.says(status(D, asked.cookie, 1, &[(4096, 0)]));
            }
            // No more requests follow.
            peer.disconnect();
        });
        let mut extents = client.extents(0..1 << 50);
        for (offset, len) in [(0, most), (most, most), (2 * most, 8192)] {
            let run = extents.next().expect("some").expect("answered");
            assert_eq!((run.offset, run.len), (offset, len));
        }
        drop(extents);
        drop(client);
        server.join().expect("the script ends");
    });
}

#[test]
fn an_error_ends_the_extents() {
    within(10, || {
        let negotiation = Negotiation {
            contexts: vec![(1, "base:allocation")],
            ..Negotiation::structured()
        };
        let options = ConnectOptions::new().context(ContextName::base_allocation());
        let (client, server) = session(negotiation, &options, |peer| {
            let first = peer.request();
            peer.says(status(D, first.cookie, 1, &[(4096, 0)]));
            let second = peer.request();
            peer.says(bytes::error(D, second.cookie, 5, "no more", None));
        });
        let mut extents = client.extents(0..1 << 30);
        // Known extents come before the error.
        let known = extents.next().expect("known").expect("answered");
        assert_eq!((known.offset, known.len), (0, 4096));
        says(
            &extents.next().expect("an error").unwrap_err(),
            &["no more"],
        );
        assert!(extents.next().is_none());
        server.join().expect("the script ends");
        let error = enter(Model::new(MIB))
            .extents(0..10)
            .next()
            .expect("an error");
        let error = error.unwrap_err();
        assert!(
            matches!(error, Error::Misuse(Misuse::NoContext)),
            "{error:?}"
        );
    });
}
