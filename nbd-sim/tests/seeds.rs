//! Seeds that every build runs, and checks that their results mean something.

use nbd_sim::{
    history::Kind,
    plan::{Fault, Plan},
    run::run,
    shrink::{from_ranges, shrink, to_ranges},
};
use std::collections::BTreeMap;

#[test]
fn no_fault_breaks_a_promise_in_some_hundred_seeds() {
    let mut hits = BTreeMap::<_, u64>::new();
    for seed in 0..400 {
        let report = run(&Plan::new(seed), false);
        let replay = format!("cargo run --release -p nbd-sim -- --first {seed} --seeds 1");
        assert!(report.wrong.is_empty(), "{replay}: {:#?}", report.wrong);
        for (fault, (_, hit)) in report.events.coverage {
            *hits.entry(fault).or_default() += hit;
        }
    }
    // A fault that hits nothing proves nothing.
    assert_eq!(hits.len(), 18, "{hits:?}");
    for (fault, hit) in &hits {
        assert!(*hit > 0, "{fault} hit nothing: {hits:?}");
    }
}

#[test]
fn no_fault_breaks_a_promise_of_a_disk_on_an_object_store() {
    let mut hits = BTreeMap::<_, u64>::new();
    for seed in 0..200 {
        let report = run(&Plan::new(seed).on_object_store(), false);
        let replay = format!("cargo run --release -p nbd-sim -- --object --first {seed} --seeds 1");
        assert!(report.wrong.is_empty(), "{replay}: {:#?}", report.wrong);
        for (fault, (_, hit)) in report.events.coverage {
            *hits.entry(fault).or_default() += hit;
        }
    }
    for fault in [
        "answer of the store lost",
        "store refuses",
        "outage of the store",
    ] {
        assert!(hits[fault] > 0, "{fault} hit nothing: {hits:?}");
    }
}

#[test]
fn a_seed_goes_the_same_way_each_time() {
    let plans = (0..40).map(Plan::new);
    let on_store = (0..40).map(|seed| Plan::new(seed).on_object_store());
    for plan in plans.chain(on_store) {
        let seed = plan.seed;
        let (first, second) = (run(&plan, true), run(&plan, true));
        assert!(first.log == second.log, "seed {seed}");
        assert!(first.log.contains("the end"));
    }
}

#[test]
fn a_plan_is_shrunk_to_what_makes_it_fail() {
    let is_crash = |fault: &Fault| matches!(fault, Fault::Crash { .. });
    let flushes = |plan: &Plan| {
        let tasks = plan.clients.iter().flat_map(|client| &client.tasks);
        let ops = tasks.flatten();
        ops.filter(|op| op.kind == Kind::Flush).count()
    };
    let fails =
        |plan: &Plan| plan.faults.iter().any(|(_, fault)| is_crash(fault)) && flushes(plan) > 1;
    let mut plans = (0..).map(Plan::new);
    let plan = plans.find(|plan| fails(plan) && plan.items() > 40).unwrap();
    let left_out = shrink(&plan, fails);
    assert_eq!(plan.items() - left_out.len(), 3);
    let replayed = from_ranges(&to_ranges(&left_out)).unwrap();
    let shrunk = plan.clone().without(&replayed);
    assert_eq!((shrunk.faults.len(), flushes(&shrunk)), (1, 2));
    assert!(from_ranges("1-x").is_err());
}
