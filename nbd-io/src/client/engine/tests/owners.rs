//! Owners that come and go, and the places of their reads.

use super::*;

/// Bytes of a simple reply before its payload.
const HEADER: usize = 16;

#[test]
fn an_owner_that_leaves_has_nothing_and_its_number_is_used_again() {
    let mut bench = Bench::new();
    bench.submit(0, Kind::Owned, 1);
    bench.submit(0, Kind::Flush, 0);
    bench.answer(1, false);
    bench.deliver(0, usize::MAX);
    let owner = bench.owners[0];
    assert!(bench.engine.is_done(owner));
    bench.engine.leave(owner);
    assert_eq!(bench.engine.enter(), owner);
    assert!(!bench.engine.is_done(owner), "that was for the last one");
    bench.answer(0, false);
    bench.deliver(0, usize::MAX);
    assert_eq!(bench.engine.in_flight(), 0);
    assert!(bench.engine.take(owner).is_none());
    // The same with nothing in flight, and a result that it has not taken.
    bench.submit(0, Kind::Flush, 0);
    bench.answer(0, false);
    bench.deliver(0, usize::MAX);
    assert!(bench.engine.is_done(owner));
    bench.engine.leave(owner);
    assert_eq!(bench.engine.enter(), owner);
    assert!(!bench.engine.is_done(owner), "that was for the last one");
}

#[test]
fn a_refusal_is_seen_before_it_is_taken() {
    for fails in [true, false] {
        let mut bench = Bench::new();
        read_one(&mut bench);
        let owner = bench.owners[0];
        assert!(!bench.engine.has_refused(owner));
        bench.answer(0, fails);
        bench.deliver(0, usize::MAX);
        assert_eq!(bench.engine.has_refused(owner), fails);
    }
}

#[test]
fn a_short_payload_is_read_with_what_follows_it_and_a_long_one_to_its_place() {
    const DIRECT: usize = 16 << 10;
    for len in [DIRECT - 1, DIRECT] {
        let mut bench = Bench::new();
        bench.submit(0, Kind::Owned, len);
        // A lone read would be expected in its place.
        read_one(&mut bench);
        bench.answer(0, false);
        assert!(bench.deliver_exactly(&ReadPlan::Inbox, None, HEADER));
        let plan = bench.plan(None);
        assert_eq!(matches!(plan, ReadPlan::Owned(..)), len == DIRECT);
    }
}

#[test]
fn a_lone_read_is_expected_in_its_place_unless_it_is_short() {
    const AHEAD: usize = 2 << 10;
    for len in [AHEAD - 1, AHEAD] {
        let mut bench = Bench::new();
        bench.submit(0, Kind::Owned, len);
        let plan = bench.plan(None);
        assert_eq!(matches!(plan, ReadPlan::Ahead { .. }), len == AHEAD);
    }
}

#[test]
fn only_its_owner_reads_into_a_lent_buffer() {
    for (reader, spills) in [(0, false), (1, true)] {
        let mut bench = Bench::new();
        bench.submit(0, Kind::Lent, 512);
        bench.answer(0, false);
        assert!(bench.deliver_exactly(&ReadPlan::Inbox, Some(reader), HEADER + 512));
        let done = bench.engine.take(bench.owners[0]).unwrap();
        let Sink::Lent { spill, .. } = &done.sink else {
            panic!("{:?}", done.sink);
        };
        assert_eq!(spill.is_some(), spills);
    }
}

#[test]
fn a_hole_is_zero_in_every_buffer_and_by_every_reader() {
    for reader in [Some(0), Some(1), None] {
        for kind in [Kind::Owned, Kind::New, Kind::Lent] {
            let mut bench = Bench::with(true);
            bench.submit(0, kind, 512);
            let (cookie, offset) = (bench.known[0].cookie, bench.known[0].offset);
            bench.lent[0].fill(7);
            if matches!(kind, Kind::Owned) {
                bench.engine.owned(cookie).unwrap().fill(7);
            }
            let hole = [&offset.to_be_bytes()[..], &512_u32.to_be_bytes()].concat();
            bench.chunk(1, 2, cookie.as_u64(), &hole);
            assert!(bench.deliver_exactly(&ReadPlan::Inbox, reader, usize::MAX));
            let mut done = bench.engine.take(bench.owners[0]).unwrap();
            done.settle(&mut bench.lent[0]);
            let at = cookie.slot() * LONGEST;
            let got = match done.sink {
                Sink::Owned(buffer) => buffer,
                _ => bench.lent[0][at..at + 512].to_vec(),
            };
            assert!(got == [0; 512], "{kind:?} by {reader:?}");
        }
    }
}
