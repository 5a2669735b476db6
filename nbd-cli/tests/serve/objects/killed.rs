//! A server that is killed, again and again, while its disk is written.

use super::{place, serve};
use crate::support::Serving;
use interop::run;
use nbd_blocking::{Client, CommandFlags};
use rustix::process::Signal;
use std::{
    env,
    hash::{BuildHasher, RandomState},
    thread,
    time::Duration,
};

/// The part that is written at once, in bytes, and the number of these in a disk of 4 MiB.
const UNIT: usize = 4096;
const UNITS: usize = 1024;
/// The most units that one request changes.
const MOST: usize = 40;

/// A reproducible source of numbers.
struct Random(u64);

impl Random {
    fn index(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap()
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// The content that each unit may have: the first one was flushed last, the others came later.
struct Model(Vec<Vec<u64>>);

impl Model {
    fn flushed(&mut self) {
        for possible in &mut self.0 {
            possible.drain(..possible.len() - 1);
        }
    }
}

/// A unit of which all is its number.
fn filled(number: u64) -> impl Iterator<Item = u8> {
    number.to_le_bytes().into_iter().cycle().take(UNIT)
}

/// Changes the disk until the server is gone.
fn change(client: &Client, model: &mut Model, random: &mut Random, number: &mut u64) {
    loop {
        let first = random.index(UNITS);
        let units = first..(first + 1 + random.index(MOST)).min(UNITS);
        let (offset, len) = ((first * UNIT) as u64, (units.len() * UNIT) as u64);
        let kind = random.below(10);
        let fua = random.below(8) == 0;
        let flags = if fua {
            CommandFlags::FUA
        } else {
            CommandFlags::NONE
        };
        let done = if kind == 0 {
            let flushed = client.flush();
            if flushed.is_ok() {
                model.flushed();
            }
            flushed
        } else {
            let zeroes = kind < 3;
            *number += 1;
            let content = if zeroes { 0 } else { *number };
            for possible in &mut model.0[units.clone()] {
                possible.push(content);
            }
            let done = if zeroes {
                client.write_zeroes(offset, len, flags)
            } else {
                let data: Vec<u8> = units.clone().flat_map(|_| filled(content)).collect();
                client.write_all_at_with(&data, offset, flags)
            };
            if done.is_ok() && fua {
                for possible in &mut model.0[units] {
                    *possible = vec![content];
                }
            }
            done
        };
        if done.is_err() {
            return;
        }
    }
}

/// Reads all of the disk, where each unit has one of its contents.
fn judge(client: &Client, model: &mut Model) {
    let mut data = vec![0; UNIT];
    for (unit, possible) in model.0.iter_mut().enumerate() {
        client
            .read_exact_at(&mut data, (unit * UNIT) as u64)
            .unwrap();
        let number = u64::from_le_bytes(data[..8].try_into().unwrap());
        assert!(
            data.iter().copied().eq(filled(number)),
            "unit {unit} is torn"
        );
        assert!(
            possible.contains(&number),
            "unit {unit} has {number}, expected one of {possible:?}"
        );
        *possible = vec![number];
    }
}

/// Kills it so often, and looks at the disk each time.
pub(super) fn nothing_is_lost(begin: impl Fn() -> Serving, kills: u64) {
    let seed = RandomState::new().hash_one(0);
    eprintln!("seed {seed}");
    let mut random = Random(seed | 1);
    let mut model = Model(vec![vec![0]; UNITS]);
    let mut number = 0;
    for _ in 0..kills {
        let serving = begin();
        let client = nbd_blocking::connect(&serving.uri("disk")).unwrap();
        judge(&client, &mut model);
        let life = Duration::from_millis(20 + random.below(300));
        thread::scope(|scope| {
            scope.spawn(|| {
                // No event: it may be killed at any time.
                thread::sleep(life);
                serving.signal(Signal::KILL);
            });
            change(&client, &mut model, &mut random, &mut number);
        });
    }
    let serving = begin();
    judge(
        &nbd_blocking::connect(&serving.uri("disk")).unwrap(),
        &mut model,
    );
    assert!(number > kills, "{number} changes");
}

/// The number of times, of which there are more with the variable `KILLS`.
pub(super) fn kills(least: u64) -> u64 {
    env::var("KILLS").map_or(least, |text| text.parse().unwrap())
}

#[test]
fn nothing_flushed_is_lost_when_the_server_of_a_directory_is_killed() {
    run(|| {
        let (_dir, uri) = place();
        nothing_is_lost(|| serve(&uri, "--create 4M --dirty 1M"), kills(8));
    });
}
