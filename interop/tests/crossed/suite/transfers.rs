//! Data there and back, with a copy in memory to compare it with.

use crate::{
    clients::Disk,
    servers::{SIZE, Serving},
    waiting::flight::Request,
};
use interop::{KIB, MIB, assert_same, pattern};
use nbd_io::Fault;
use nbd_proto::{Command, CommandFlags};
use std::{thread, time::Duration};

const NONE: CommandFlags = CommandFlags::NONE;

/// Around the sizes of copies, of buffers aside, of pages, and of large requests.
const SIZES: [usize; 12] = [
    1, 511, 512, 513, 4095, 4096, 4097, 32_768, 65_537, 100_003, 524_288, 1_048_577,
];

/// Writes all sizes to places of their own, along with requests that change nothing; then reads
/// them in another order, and once more as a whole.
pub(crate) fn are_verified(disk: &impl Disk, depth: usize) {
    let mut expected = vec![0; usize::try_from(SIZE).unwrap()];
    let mut requests = vec![Request::Zeroes {
        offset: 4 * MIB,
        len: 4 * MIB,
        flags: CommandFlags::NO_HOLE,
    }];
    let mut places = Vec::new();
    let mut at = 0;
    for (seed, len) in SIZES.iter().chain(&SIZES[..11]).enumerate() {
        let len = *len;
        let data = pattern(seed as u64 + depth as u64, len as u64);
        expected[at..at + len].copy_from_slice(&data);
        places.push((at, len));
        let flags = if seed % 5 == 0 {
            CommandFlags::FUA
        } else {
            NONE
        };
        let offset = at as u64;
        requests.push(Request::Write {
            offset,
            data,
            flags,
        });
        requests.push(match seed % 3 {
            0 => Request::Flush,
            1 => Request::Cache { offset, len: 4096 },
            _ => Request::Trim {
                offset: 7 * MIB,
                len: 64 * KIB,
                flags,
            },
        });
        at += len;
    }
    assert!(at < 4 << 20);
    disk.write_zeroes(at as u64, 4 * MIB - at as u64, NONE)
        .unwrap();
    let count = requests.len();
    let answers = disk.together(requests, depth);
    assert_eq!(answers.len(), count);
    for answer in answers {
        answer.unwrap();
    }

    places.rotate_left(depth);
    places.reverse();
    let read = |(at, len): &(usize, usize)| Request::Read {
        offset: *at as u64,
        len: *len,
    };
    let answers = disk.together(places.iter().map(read).collect(), depth);
    assert_eq!(answers.len(), places.len());
    for ((at, len), answer) in places.into_iter().zip(answers) {
        assert_same(&answer.unwrap(), &expected[at..at + len], at as u64);
    }
    let len = (4 << 20) + 5;
    let whole = disk.read(0, len).unwrap();
    assert_same(&whole, &expected[..len], 0);
}

/// Reads of which some are slow, so that replies come in another order than requests.
pub(super) fn overtake_each_other(disk: &impl Disk, serving: &Serving) {
    const BLOCK: u64 = 8 * KIB;
    let contents = pattern(77, 64 * BLOCK);
    serving.spy.put(0, &contents);
    let slow = Fault::delay(Duration::from_millis(3)).on(Command::Read);
    let before = serving.faults.hits();
    for block in [0, 3, 17] {
        let range = block * BLOCK..(block + 1) * BLOCK;
        serving.faults.add(slow.clone().touching(range));
    }
    let order: Vec<u64> = (0..64).map(|at| at * 37 % 64).collect();
    let read = |block: &u64| Request::Read {
        offset: block * BLOCK,
        len: 8 << 10,
    };
    let answers = disk.together(order.iter().map(read).collect(), 16);
    for (block, answer) in order.iter().zip(answers) {
        let at = usize::try_from(block * BLOCK).unwrap();
        assert_same(
            &answer.unwrap(),
            &contents[at..at + (8 << 10)],
            block * BLOCK,
        );
    }
    assert_eq!(serving.faults.hits() - before, 3);
    serving.faults.clear();
}

/// Four threads, each in a part of its own.
pub(super) fn of_threads_are_verified(disk: &impl Disk) {
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            scope.spawn(move || {
                for round in 0..40 {
                    let offset = thread * MIB + round * 20_000;
                    let data = pattern(thread << 32 | round, 1 + round * 700);
                    disk.write(offset, &data, NONE).unwrap();
                    assert_same(&disk.read(offset, data.len()).unwrap(), &data, offset);
                }
                disk.flush().unwrap();
            });
        }
    });
}
