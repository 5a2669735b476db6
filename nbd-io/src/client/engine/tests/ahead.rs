//! Replies that are read as if they were the expected ones.

use super::{
    super::{ReadPlan, receive::MISPLACED},
    Bench, Kind,
};

#[test]
fn the_reply_to_a_lone_read_comes_straight_to_its_place() {
    for (kind, by) in [(Kind::Owned, None), (Kind::Lent, Some(0))] {
        let mut bench = Bench::new();
        bench.submit(0, kind, 20_000);
        bench.answer(0, false);
        let plan = bench.plan(by);
        assert_eq!((plan.front(), plan.direct()), (16, 20_000));
        bench.deliver_as_planned(&plan, by, usize::MAX);
        assert!(!bench.engine.is_split);
        bench.settle();
        assert!(bench.known[0].over);
    }
}

#[test]
fn a_reply_that_was_not_expected_is_taken_in_all_the_same() {
    for (kind, by) in [(Kind::Owned, None), (Kind::Lent, Some(0))] {
        for n in [17, 16 + 2000, 16 + 20_000, usize::MAX] {
            let mut bench = Bench::new();
            bench.submit(0, kind, 20_000);
            let plan = bench.plan(by);
            assert_eq!(plan.direct(), 20_000);
            // Another request is sent and answered while the reply to the first one is read.
            bench.submit(1, Kind::Owned, 30_000);
            bench.answer(1, false);
            bench.deliver_as_planned(&plan, by, n);
            assert_eq!(bench.engine.is_split, n > 16 + MISPLACED);
            bench.settle();
            bench.finish();
            assert!(bench.known.iter().all(|known| known.over));
        }
    }
}

#[test]
fn the_first_part_of_a_reply_is_not_overwritten_by_the_second() {
    for (kind, by) in [(Kind::Owned, None), (Kind::Lent, Some(0))] {
        let mut bench = Bench::with(true);
        bench.submit(0, kind, 20_000);
        bench.answer(8, false);
        let first = bench.ends[0];
        bench.deliver_as_planned(&ReadPlan::Inbox, by, first);
        let plan = bench.plan(by);
        assert_eq!(plan, ReadPlan::Inbox);
        bench.deliver_as_planned(&plan, by, usize::MAX);
        bench.settle();
        assert!(bench.known[0].over);
    }
}
