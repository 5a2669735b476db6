//! The oracle's own proof: mistakes made on purpose are noticed.

use nbd_io::mutation::Mutation;
use nbd_sim::{plan::Plan, run::run};

/// Within so many seeds.
const SEEDS: u64 = 300;

#[test]
fn every_mistake_is_found() {
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
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
}
