//! A server that is killed, again and again, while its disk is written and read.

use super::{place, serve};
use crate::support::{Serving, run_nbd, succeeded};
use interop::run;
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Error};
use rustix::process::Signal;
use std::{
    env,
    hash::{BuildHasher, RandomState},
    ops::Range,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// The part that is written at once, in bytes, and the number of these in a disk of 4 MiB.
const UNIT: usize = 4096;
const UNITS: usize = 1024;
/// Units of a block of the disk, the whole of which a trim makes a hole.
const BLOCK: usize = 16;
/// The most units that one request changes.
const MOST: usize = 40;
const CONNECTIONS: usize = 4;
/// Threads, each of which has a request in flight.
const IN_FLIGHT: u64 = 12;

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

/// A content of a unit, and the number of the request that wrote it.
#[derive(Clone, Copy, Debug)]
struct Content {
    request: u64,
    filling: u64,
}

/// The contents that a unit may have after a crash: the first one was flushed last, and the others are
/// later.
struct Unit {
    possible: Vec<Content>,
    /// A request changes or reads it, and no other one does at the same time.
    is_used: bool,
}

impl Unit {
    fn last(&self) -> Content {
        *self.possible.last().unwrap()
    }

    /// This content is in the store, or a later one.
    fn stored(&mut self, request: u64) {
        self.possible.retain(|content| content.request >= request);
    }
}

struct Model {
    units: Mutex<Vec<Unit>>,
    requests: AtomicU64,
}

impl Model {
    fn new() -> Self {
        let zero = || Unit {
            possible: vec![Content {
                request: 0,
                filling: 0,
            }],
            is_used: false,
        };
        Self {
            units: Mutex::new((0..UNITS).map(|_| zero()).collect()),
            requests: AtomicU64::new(0),
        }
    }

    fn units(&self) -> MutexGuard<'_, Vec<Unit>> {
        self.units.lock().unwrap()
    }

    /// Takes units that no other request has, whole blocks if need be. A change adds its content.
    fn take(&self, random: &mut Random, blocks: bool, filling: Option<u64>) -> (u64, Range<usize>) {
        let mut units = self.units();
        // Under the lock, so that of two contents of a unit the later one has the higher number.
        let request = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let range = loop {
            let start = random.index(UNITS);
            let range = if blocks {
                let first = start / BLOCK;
                first * BLOCK..(first + 1 + random.index(2)).min(UNITS / BLOCK) * BLOCK
            } else {
                start..(start + 1 + random.index(MOST)).min(UNITS)
            };
            if !units[range.clone()].iter().any(|unit| unit.is_used) {
                break range;
            }
        };
        for unit in &mut units[range.clone()] {
            unit.is_used = true;
            if let Some(filling) = filling {
                unit.possible.push(Content { request, filling });
            }
        }
        (request, range)
    }

    /// Gives them back after a request that was answered.
    fn give_back(&self, range: Range<usize>, stored: Option<u64>) {
        for unit in &mut self.units()[range] {
            unit.is_used = false;
            if let Some(request) = stored {
                unit.stored(request);
            }
        }
    }

    fn flush(&self, client: &Client) -> Result<(), Error> {
        // A request that is not answered yet need not be covered.
        let answered: Vec<_> = {
            let units = self.units();
            let answered = |unit: &Unit| match &unit.possible[..] {
                [.., before, _] if unit.is_used => before.request,
                _ => unit.last().request,
            };
            units.iter().map(answered).collect()
        };
        client.flush()?;
        for (unit, request) in self.units().iter_mut().zip(answered) {
            unit.stored(request);
        }
        Ok(())
    }

    fn read(&self, client: &Client, random: &mut Random) -> Result<(), Error> {
        let (_, range) = self.take(random, false, None);
        let mut data = vec![0; range.len() * UNIT];
        client.read_exact_at(&mut data, offset(&range))?;
        for (unit, data) in range.clone().zip(data.chunks(UNIT)) {
            let last = self.units()[unit].last();
            assert_eq!(filling(unit, data), last.filling, "unit {unit}: {last:?}");
        }
        self.give_back(range, None);
        Ok(())
    }

    fn change(&self, client: &Client, random: &mut Random) -> Result<(), Error> {
        let fua = random.below(16) == 0;
        let flags = if fua {
            CommandFlags::FUA
        } else {
            CommandFlags::NONE
        };
        let kind = random.below(8);
        let filling = match kind {
            0 | 1 => 0,
            _ => 1 + random.below(u64::MAX >> 12),
        };
        let (request, range) = self.take(random, kind == 0, Some(filling));
        let (offset, len) = (offset(&range), range.len() * UNIT);
        match kind {
            0 => client.trim(offset, len as u64, flags)?,
            1 => client.write_zeroes(offset, len as u64, flags)?,
            _ => {
                let data: Vec<u8> = filled(filling).take(len).collect();
                client.write_all_at_with(&data, offset, flags)?;
            }
        }
        self.give_back(range, fua.then_some(request));
        Ok(())
    }

    /// Uses the disk until the server is gone.
    fn exercise(&self, client: &Client, mut random: Random) {
        loop {
            let done = match random.below(20) {
                0 => self.flush(client),
                1..6 => self.read(client, &mut random),
                _ => self.change(client, &mut random),
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// Reads all of the disk, where each unit has one of its contents.
    fn judge(&self, client: &Client) {
        let mut data = vec![0; UNITS * UNIT];
        client.read_exact_at(&mut data, 0).unwrap();
        for (at, (unit, data)) in self.units().iter_mut().zip(data.chunks(UNIT)).enumerate() {
            let found = filling(at, data);
            let possible = &unit.possible;
            let matching = possible.iter().rfind(|content| content.filling == found);
            let content = *matching.unwrap_or_else(|| panic!("unit {at}: {found}, {possible:?}"));
            unit.possible = vec![content];
            unit.is_used = false;
        }
    }
}

fn offset(range: &Range<usize>) -> u64 {
    (range.start * UNIT) as u64
}

/// The bytes of a content, without end.
fn filled(filling: u64) -> impl Iterator<Item = u8> {
    filling.to_le_bytes().into_iter().cycle()
}

/// The content of a unit, all of which has to be the same.
fn filling(unit: usize, data: &[u8]) -> u64 {
    let filling = u64::from_le_bytes(data[..8].try_into().unwrap());
    let whole = data.iter().copied().eq(filled(filling).take(UNIT));
    assert!(whole, "unit {unit} is torn");
    filling
}

/// Kills it so often, and looks at the disk each time.
pub(super) fn nothing_is_lost(begin: impl Fn() -> Serving, kills: u64) {
    let seed = RandomState::new().hash_one(0);
    eprintln!("seed {seed}");
    let mut random = Random(seed | 1);
    let model = Model::new();
    let options = ConnectOptions::new().connections(CONNECTIONS);
    for _ in 0..kills {
        let serving = begin();
        let client = options.connect(&serving.uri("disk")).unwrap();
        model.judge(&client);
        let life = Duration::from_millis(20 + random.below(200));
        thread::scope(|scope| {
            for thread in 1..=IN_FLIGHT {
                let random = Random((seed ^ random.below(u64::MAX)).wrapping_add(thread) | 1);
                let (model, client) = (&model, &client);
                scope.spawn(move || model.exercise(client, random));
            }
            // No event: it may be killed at any time.
            thread::sleep(life);
            serving.signal(Signal::KILL);
        });
    }
    let serving = begin();
    let client = options.connect(&serving.uri("disk")).unwrap();
    model.judge(&client);
    let requests = model.requests.load(Ordering::Relaxed);
    eprintln!("{requests} requests");
    assert!(requests > kills * IN_FLIGHT, "{requests} requests");
}

/// The number of times, of which there are more with the variable `KILLS`.
pub(super) fn kills(least: u64) -> u64 {
    env::var("KILLS").map_or(least, |text| text.parse().unwrap())
}

#[test]
fn nothing_flushed_is_lost_when_the_server_of_a_directory_is_killed() {
    run(|| {
        let (_dir, uri) = place();
        nothing_is_lost(|| serve(&uri, "--create 4M --dirty 1M"), kills(20));
        let checked = succeeded(&run_nbd(["object", "check", &uri]));
        assert!(checked.ends_with("all are whole\n"), "{checked}");
    });
}
