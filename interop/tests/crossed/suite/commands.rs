//! Every command and every flag.

use crate::{
    clients::Disk,
    exports::{Call, SLOW},
    servers::{SIZE, Serving},
};
use interop::{KIB, MIB, pattern};
use nbd_io::{Memory, ZeroMode, client::Error};
use nbd_proto::{CommandFlags, Errno, HeaderStyle, Misuse};

const NONE: CommandFlags = CommandFlags::NONE;
const FUA: CommandFlags = CommandFlags::FUA;

pub(super) fn all_reach_the_storage(disk: &impl Disk, serving: &Serving) {
    let spy = &serving.spy;
    let _before = spy.calls();
    let mut expected = Vec::new();
    let (offset, len) = (4 * KIB, 20_000);
    let data = pattern(3, len);
    for (flags, fua) in [(NONE, false), (FUA, true)] {
        disk.write(offset, &data, flags).unwrap();
        expected.push(Call::Write { offset, len, fua });
    }
    assert!(disk.read(offset, 20_000).unwrap() == data);

    for (flags, no_hole, fast, fua) in [
        (NONE, false, false, false),
        (CommandFlags::NO_HOLE, true, false, false),
        (CommandFlags::FAST_ZERO, false, true, false),
        (FUA, false, false, true),
        (FUA | CommandFlags::NO_HOLE, true, false, true),
        (
            FUA | CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            true,
            true,
            true,
        ),
    ] {
        let offset = offset + expected.len() as u64;
        disk.write_zeroes(offset, 1000, flags).unwrap();
        let mode = ZeroMode { no_hole, fast, fua };
        let len = 1000;
        expected.push(Call::Zeroes { offset, len, mode });
    }
    let mut zeroed = data;
    zeroed[2..1007].fill(0);
    assert!(disk.read(offset, 20_000).unwrap() == zeroed);

    // Fast zeroes fail where they are slow.
    let (offset, len) = (SLOW.start, 4 * KIB);
    spy.put(offset, &[7; 4096]);
    let slow = disk.write_zeroes(offset, len, CommandFlags::FAST_ZERO);
    assert_eq!(slow.unwrap_err().errno(), Some(Errno::NotSup));
    assert_eq!(disk.read(offset, 4096).unwrap(), [7; 4096]);
    let mode = ZeroMode {
        fast: true,
        ..ZeroMode::default()
    };
    expected.push(Call::Zeroes { offset, len, mode });

    for (flags, fua) in [(NONE, false), (FUA, true)] {
        disk.trim(offset, len, flags).unwrap();
        expected.push(Call::Trim { offset, len, fua });
    }
    disk.cache(offset, MIB).unwrap();
    let len = MIB;
    expected.push(Call::Cache { offset, len });
    disk.flush().unwrap();
    expected.push(Call::Flush);

    // The whole export in one request.
    let (offset, len, mode) = (0, SIZE, ZeroMode::default());
    disk.write_zeroes(offset, len, NONE).unwrap();
    expected.push(Call::Zeroes { offset, len, mode });
    assert_eq!(spy.allocated(), 0);

    let mut calls = spy.calls();
    calls.retain(|call| !matches!(call, Call::Read { .. } | Call::Status { .. }));
    assert_eq!(calls, expected);
}

/// Each context describes the actual contents, and reads of ranges with holes are complete.
pub(super) fn holes_are_described(disk: &impl Disk) {
    const PAGE: u64 = Memory::PAGE;
    const PAGES: u64 = SIZE / PAGE;
    disk.write_zeroes(0, SIZE, NONE).unwrap();
    let mut contents = vec![0; usize::try_from(SIZE).unwrap()];
    let mut status = vec![3; usize::try_from(PAGES).unwrap()];
    // Data at the start and the end, and around the middle of a page; zeroes that take up space.
    for (seed, page, pages) in [(1, 0, 1), (2, 7, 3), (3, 64, 40), (4, PAGES - 1, 1)] {
        let data = pattern(seed, pages * PAGE);
        disk.write(page * PAGE, &data, NONE).unwrap();
        let at = usize::try_from(page * PAGE).unwrap();
        contents[at..at + data.len()].copy_from_slice(&data);
        let page = usize::try_from(page).unwrap();
        status[page..page + usize::try_from(pages).unwrap()].fill(0);
    }
    disk.write_zeroes(80 * PAGE, 2 * PAGE, CommandFlags::NO_HOLE)
        .unwrap();
    let at = usize::try_from(80 * PAGE).unwrap();
    contents[at..at + usize::try_from(2 * PAGE).unwrap()].fill(0);
    status[80..82].fill(2);
    assert!(disk.read(0, contents.len()).unwrap() == contents);
    let (offset, len) = (6 * PAGE + 1, 5 * 32 * 1024);
    let part = &contents[usize::try_from(offset).unwrap()..][..len];
    assert!(disk.read(offset, len).unwrap() == part);

    let df = disk.read_with(offset, len, CommandFlags::DF);
    let of_all = disk.block_status(0, SIZE, NONE);
    if disk.mode() == HeaderStyle::Simple {
        assert!(matches!(df, Err(Error::Misuse(Misuse::Flags { .. }))));
        assert!(matches!(of_all, Err(Error::Misuse(Misuse::NoContext))));
        return;
    }
    assert!(df.unwrap() == part);
    let of_all = of_all.unwrap();
    assert_eq!(of_all.len(), 2);

    let mut expected: Vec<(u64, u64, [u64; 2])> = Vec::new();
    for (page, status) in (0..).zip(status) {
        let status = [status, page * PAGE / MIB % 2];
        match expected.last_mut() {
            Some(last) if last.2 == status => last.1 += PAGE,
            _ => expected.push((page * PAGE, PAGE, status)),
        }
    }
    // Contexts have the order in which the server announced them.
    let ours = disk.contexts();
    let order = ["base:allocation", "x-spy:parity"].map(|name| {
        let is =
            |context: &nbd_proto::client::Context| context.name.as_ref().unwrap().as_str() == name;
        ours.iter().position(is).unwrap()
    });
    let found: Vec<_> = disk
        .extents(0..SIZE)
        .unwrap()
        .iter()
        .map(|run| {
            let status = order.map(|at| run.status[at]);
            (run.offset, run.len, status)
        })
        .collect();
    assert_eq!(found, expected);
    let inside = disk.extents(PAGE + 5..7 * PAGE + 6).unwrap();
    let lens: Vec<u64> = inside.iter().map(|run| run.len).collect();
    assert_eq!(lens, [6 * PAGE - 5, 6]);

    let one = disk.block_status(0, SIZE, CommandFlags::REQ_ONE).unwrap();
    assert!(one.iter().all(|context| context.extents.len() == 1));
    let parity = ours[order[1]].id;
    let some = disk.block_status_of(&[parity], MIB, MIB);
    if disk.mode() == HeaderStyle::Extended {
        let some = some.unwrap();
        assert_eq!((some.len(), some[0].id), (1, parity));
        assert_eq!(some[0].extents[0].status, 1);
    } else {
        assert!(matches!(some, Err(Error::Misuse(_))));
    }
}
