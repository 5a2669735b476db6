//! The oracle's own proof: mistakes made on purpose are noticed.

use nbd_io::mutation::Mutation;
use nbd_sim::{plan::Plan, run::run, threads::run_many};

/// Within so many seeds. A snapshot that does not look for a collection is found by one seed of some 4,000, and a
/// change of the order of requests may make it another one: `nbd-sim --object --mutation UncountedSnapshot`,
/// built with the feature `mutations`, finds it.
const SEEDS: u64 = 300;

/// The mistakes of code that the blocking client shares.
const SHARED: [Mutation; 4] = [
    Mutation::DropReplay,
    Mutation::ReorderReplay,
    Mutation::EarlyFlush,
    Mutation::MergedStatus,
];

/// The mistakes that lose data of a disk on an object store.
const LOSING: [Mutation; 3] = [
    Mutation::EarlyFlush,
    Mutation::DropReplay,
    Mutation::SilentLoss,
];

/// The mistakes of disks on an object store alone.
const ON_STORE: [Mutation; 2] = [Mutation::CollectSnapshots, Mutation::UncountedSnapshot];

/// Those of a writer that another one has fenced. They are looked for in runs in which it goes on late.
const FENCED: [Mutation; 2] = [Mutation::UnconditionalCommit, Mutation::UncheckedWriter];

/// Whether commits of a killed server go on when the next one has the disk.
fn goes_on_late(plan: &Plan) -> bool {
    let after = plan.object.as_ref().and_then(|object| object.zombies_after);
    after.is_some_and(|after| !after.is_zero())
}

/// Looks among the runs on an object store that fit.
#[track_caller]
fn is_found_on_store(mutation: Mutation, seeds: u64, fits: fn(&Plan) -> bool) {
    Mutation::make(Some(mutation));
    let plans = (0..seeds).map(|seed| Plan::new(seed).on_object_store());
    let found = plans
        .filter(fits)
        .find(|plan| !run(plan, false).wrong.is_empty());
    Mutation::make(None);
    let seed = found.map(|plan| plan.seed);
    eprintln!("{mutation:?}, on an object store: seed {seed:?}");
    assert!(seed.is_some(), "on an object store, {mutation:?}");
}

/// All mistakes are the process's, so that one test makes them one after the other.
#[test]
fn every_mistake_is_found() {
    let mut missed = Vec::new();
    let is_of_all =
        |mutation: &Mutation| !ON_STORE.contains(mutation) && !FENCED.contains(mutation);
    for mutation in Mutation::ALL.into_iter().filter(is_of_all) {
        Mutation::make(Some(mutation));
        let found = (0..SEEDS).find(|seed| !run(&Plan::new(*seed), false).wrong.is_empty());
        Mutation::make(None);
        match found {
            Some(seed) => eprintln!("{mutation:?}: seed {seed}"),
            None => missed.push(mutation),
        }
        // It is the mistake that was noticed.
        if let Some(seed) = found {
            let wrong = run(&Plan::new(seed), false).wrong;
            assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
        }
    }
    assert!(missed.is_empty(), "in {SEEDS} seeds: {missed:?}");
    for mutation in LOSING.into_iter().chain(ON_STORE) {
        is_found_on_store(mutation, SEEDS, |_| true);
    }
    for mutation in FENCED {
        is_found_on_store(mutation, 4 * SEEDS, goes_on_late);
    }
    for mutation in SHARED {
        Mutation::make(Some(mutation));
        let mut parts = (0..SEEDS).step_by(20);
        let found = parts.find(|first| !run_many(*first..first + 20).unwrap().wrong.is_empty());
        Mutation::make(None);
        eprintln!("{mutation:?}, the blocking client: seeds from {found:?} on");
        assert!(found.is_some(), "the blocking client, {mutation:?}");
    }
}
