//! The oracles without a fuzzer: the seeds, past crashes, and random inputs.

use oracles::{ORACLES, seeds};
use std::{collections::BTreeMap, fs, panic, path::PathBuf};

/// Random inputs for each oracle.
const CASES: u64 = 3000;

fn corpus(target: &str) -> PathBuf {
    let oracles = env!("CARGO_MANIFEST_DIR");
    [oracles, "..", "corpus", target].iter().collect()
}

/// All files of a target, by their names.
fn kept(target: &str) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(corpus(target)).expect("every target has seeds");
    files
        .map(|file| {
            let file = file.expect("a readable directory");
            let name = file.file_name().into_string().expect("a name in ASCII");
            (name, fs::read(file.path()).expect("a readable file"))
        })
        .collect()
}

/// A small generator whose numbers are the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("a remainder fits")
    }

    fn byte(&mut self) -> u8 {
        // Numbers on the wire are mostly small.
        match self.below(3) {
            0 => u8::try_from(self.below(16)).expect("it is small"),
            _ => u8::try_from(self.below(256)).expect("it is small"),
        }
    }

    /// A few changes of the kind that fuzzers make.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 => bytes.insert(at, self.byte()),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.truncate(at),
                3 => {
                    let end = bytes.len().min(at + self.below(32));
                    let copy = bytes[at..end].to_vec();
                    let to = self.below(bytes.len() + 1);
                    bytes.splice(to..to, copy);
                }
                _ if at < bytes.len() => bytes[at] = self.byte(),
                _ => {}
            }
        }
    }
}

fn check(name: &str, input: &[u8], oracle: oracles::Oracle) {
    if panic::catch_unwind(|| oracle(input)).is_err() {
        let place = std::env::temp_dir().join(format!("{name}-crash"));
        fs::write(&place, input).expect("a writable directory");
        panic!(
            "{name} does not hold for the contents of {}",
            place.display()
        );
    }
}

#[test]
fn the_oracles_hold_for_all_that_is_kept() {
    for (target, oracle) in ORACLES {
        for (name, input) in kept(target) {
            eprintln!("{target}/{name}");
            oracle(&input);
        }
    }
}

/// Run with `UPDATE_SEEDS=1` to write them after a change.
#[test]
fn the_seeds_are_kept() {
    let update = std::env::var_os("UPDATE_SEEDS").is_some();
    for (target, name, seed) in seeds::all() {
        let file = corpus(target).join(name);
        if update {
            fs::create_dir_all(corpus(target)).expect("a writable directory");
            fs::write(&file, &seed).expect("a writable file");
        }
        let kept = fs::read(&file).unwrap_or_default();
        assert!(kept == seed, "{}: run with UPDATE_SEEDS=1", file.display());
    }
}

fn random_inputs(target: &str) {
    let (_, oracle) = ORACLES
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let seeds: Vec<_> = kept(target).into_values().collect();
    let cases = std::env::var("CASES").map_or(CASES, |cases| cases.parse().expect("a number"));
    for case in 0..cases {
        let mut input: Vec<u8> = if case % 2 == 0 {
            let len = random.below(300);
            (0..len).map(|_| random.byte()).collect()
        } else {
            seeds[random.below(seeds.len())].clone()
        };
        random.mutate(&mut input);
        check(target, &input, oracle);
    }
}

macro_rules! random_inputs {
    ($($target:ident)*) => {
        $(#[test]
        fn $target() {
            random_inputs(stringify!($target));
        })*

        #[test]
        fn every_oracle_gets_random_inputs() {
            let tested = [$(stringify!($target)),*];
            assert_eq!(tested.to_vec(), ORACLES.map(|(name, _)| name).to_vec());
        }
    };
}

mod random {
    use super::*;

    random_inputs! {
        client_negotiation
        client_transmission
        loopback
        object_format
        server_negotiation
        server_transmission
        uri
        wire
    }
}
