use super::*;
use crate::export_info;
use crate::model::{DATA, HOLE, NO_HOLE, Operation, ZERO, errno, operations, play, read, status};
use proptest::prelude::*;
use std::thread;

/// An export of some pages that does not end with one.
const SIZE: usize = 5 * PAGE + 700;

proptest! {
    #[test]
    fn it_behaves_like_an_array_of_bytes(operations in operations(SIZE, PAGE)) {
        // S-218, S-224, S-225
        let export = Memory::new(SIZE as u64);
        let mut model = vec![0; SIZE];
        for (operation, range) in operations {
            let (offset, len) = (range.start as u64, range.len() as u64);
            play(&export, &mut model, &operation, range.clone());
            match operation {
                Operation::Zero(mode) if mode.no_hole => {
                    let extents = status(&export, offset, len);
                    prop_assert!(extents.iter().all(|(_, status)| status & 1 == 0));
                }
                Operation::Trim => prop_assert!(is_zero(&model[range])),
                _ => {}
            }
        }
        prop_assert!(read(&export, 0, SIZE) == model);
        let pages: usize = export.stripes.iter().map(|stripe| stripe.read().len()).sum();
        prop_assert_eq!(export.allocated(), pages as u64 * PAGE_LEN);
        export.trim(0, SIZE as u64, false).unwrap();
        prop_assert_eq!(export.allocated(), 0);
    }
}

#[test]
fn zeroes_are_reported_where_no_page_has_data() {
    let export = Memory::new(4 << 20);
    let page = PAGE as u64;
    export.write(2 * page, &[7; PAGE], false).unwrap();
    let no_hole = ZeroMode {
        no_hole: true,
        ..ZeroMode::default()
    };
    export.write_zeroes(4 * page, page, no_hole).unwrap();
    for (pages, content) in [
        (0..1, Content::Zeroes),
        (0..2, Content::Zeroes),
        (3..5, Content::Zeroes),
        (4..100, Content::Zeroes),
        (0..3, Content::Data),
        (2..4, Content::Data),
        (1..6, Content::Data),
    ] {
        // From the middle of the first page on.
        let (start, end) = (pages.start * page + 100, pages.end * page);
        let mut buf = vec![0xee; usize::try_from(end - start).unwrap()];
        assert_eq!(export.read_unless_zero(start, &mut buf).unwrap(), content);
        if content == Content::Data {
            assert!(buf == read(&export, start, buf.len()), "{pages:?}");
        } else {
            assert!(is_zero(&read(&export, start, buf.len())), "{pages:?}");
        }
    }
    let errno = export
        .read_unless_zero(4 << 20, &mut [0])
        .unwrap_err()
        .errno;
    assert_eq!(errno, Errno::Inval);
}

#[test]
fn a_tebibyte_costs_only_its_written_pages() {
    const SIZE: u64 = 1 << 40;
    let export = Memory::new(SIZE);
    assert_eq!(export.allocated(), 0);
    assert_eq!(status(&export, 0, SIZE), [(SIZE, HOLE)]);
    for offset in [0, 1 << 30, 1 << 35, SIZE - 1] {
        export.write(offset, &[1], false).unwrap();
    }
    export.write(1 << 20, &[0; 1 << 20], false).unwrap();
    assert_eq!(export.allocated(), 4 * PAGE_LEN);
    assert_eq!(
        status(&export, 0, SIZE),
        [
            (PAGE_LEN, DATA),
            ((1 << 30) - PAGE_LEN, HOLE),
            (PAGE_LEN, DATA),
            ((1 << 35) - (1 << 30) - PAGE_LEN, HOLE),
            (PAGE_LEN, DATA),
            (SIZE - (1 << 35) - 2 * PAGE_LEN, HOLE),
            (PAGE_LEN, DATA),
        ]
    );
    assert_eq!(read(&export, SIZE - 2, 2), [0, 1]);
    export.trim(1, SIZE - 1, false).unwrap();
    assert_eq!(export.allocated(), PAGE_LEN);
    export.write_zeroes(0, SIZE, ZeroMode::default()).unwrap();
    assert_eq!(export.allocated(), 0);
}

#[test]
fn the_largest_sizes_work_up_to_their_last_byte() {
    for size in [i64::MAX as u64, u64::MAX] {
        let export = Memory::new(size);
        export.write(size - 3, b"end", false).unwrap();
        assert_eq!(read(&export, size - 4, 4), b"\0end");
        let last = (size - 3) / PAGE_LEN * PAGE_LEN;
        assert_eq!(
            status(&export, 0, size),
            [(last, HOLE), (size - last, DATA)]
        );
        export.write_zeroes(size - 1, 1, NO_HOLE).unwrap();
        export.trim(1, size - 1, false).unwrap();
        assert_eq!(export.allocated(), 0);
        assert_eq!(errno(export.read(size, &mut [0])), Errno::Inval);
    }
}

#[test]
fn nothing_outside_of_a_trimmed_range_is_touched() {
    // S-224
    let export = Memory::new(4 * PAGE_LEN);
    export.write(0, &[7; 4 * PAGE], false).unwrap();
    export.trim(PAGE_LEN - 1, PAGE_LEN + 2, false).unwrap();
    let mut expected = vec![7; 4 * PAGE];
    expected[PAGE - 1..2 * PAGE + 1].fill(0);
    assert!(read(&export, 0, 4 * PAGE) == expected);
    assert_eq!(
        status(&export, 0, 4 * PAGE_LEN),
        [(PAGE_LEN, DATA), (PAGE_LEN, HOLE), (2 * PAGE_LEN, DATA)]
    );
}

#[test]
fn a_page_is_freed_by_its_last_piece() {
    let export = Memory::new(PAGE_LEN);
    export.write(0, &[7; PAGE], false).unwrap();
    for block in 0..8 {
        assert_eq!(export.allocated(), PAGE_LEN);
        export.trim(block * 4096, 4096, false).unwrap();
    }
    assert_eq!(export.allocated(), 0);
}

#[test]
fn zeroes_without_a_hole_are_allocated() {
    // S-225
    let export = Memory::new(8 * PAGE_LEN);
    export.write(PAGE_LEN, &[7; PAGE], false).unwrap();
    export
        .write_zeroes(PAGE_LEN / 2, 3 * PAGE_LEN, NO_HOLE)
        .unwrap();
    assert_eq!(export.allocated(), 4 * PAGE_LEN);
    assert_eq!(
        status(&export, 0, 8 * PAGE_LEN),
        [(4 * PAGE_LEN, ZERO), (4 * PAGE_LEN, HOLE)]
    );
    assert!(is_zero(&read(&export, 0, 8 * PAGE)));
    export.write(5, &[1], false).unwrap();
    assert_eq!(
        status(&export, 0, 8 * PAGE_LEN),
        [(PAGE_LEN, DATA), (3 * PAGE_LEN, ZERO), (4 * PAGE_LEN, HOLE)]
    );
    // A range that is written with zeroes may still be reported as data, and as allocated.
    export.write(PAGE_LEN, &[0; PAGE], false).unwrap();
    assert_eq!(export.allocated(), 4 * PAGE_LEN);
}

#[test]
fn zeroes_without_a_hole_have_room_for_every_later_write() {
    // S-217
    let export = Memory::new(8 * PAGE_LEN).with_limit(2 * PAGE_LEN + 1);
    export.write_zeroes(0, PAGE_LEN, NO_HOLE).unwrap();
    export.write(4 * PAGE_LEN, &[7], false).unwrap();
    let failure = export.write(PAGE_LEN, &[7], false).unwrap_err();
    assert_eq!(
        (failure.errno, failure.offset),
        (Errno::NoSpc, Some(PAGE_LEN))
    );
    let mut at = 0;
    for (len, status) in status(&export, 0, 8 * PAGE_LEN) {
        let data = vec![9; usize::try_from(len).unwrap()];
        assert_eq!(export.write(at, &data, false).is_err(), status & 1 == 1);
        at += len;
    }
    // Zeroes that may be a hole need no room, and make some.
    export
        .write_zeroes(0, 8 * PAGE_LEN, ZeroMode::default())
        .unwrap();
    export.write(PAGE_LEN, &[7], false).unwrap();
}

#[test]
fn zeroes_that_have_no_room_use_up_none() {
    let export = Memory::new(1 << 62).with_limit(16 * PAGE_LEN);
    assert_eq!(
        errno(export.write_zeroes(0, 1 << 62, NO_HOLE)),
        Errno::NoSpc
    );
    assert_eq!(export.allocated(), 0);
}

#[test]
fn a_long_run_is_reported_in_pieces_that_are_merged() {
    let len = (MAX_SCAN + 10) * PAGE_LEN;
    let export = Memory::new(len + PAGE_LEN);
    export.write_zeroes(0, len, NO_HOLE).unwrap();
    assert_eq!(
        export.allocation(512, len - 512).unwrap(),
        Extent {
            len: MAX_SCAN * PAGE_LEN - 512,
            status: ZERO
        }
    );
    assert_eq!(status(&export, 512, len), [(len - 512, ZERO), (512, HOLE)]);
}

#[test]
fn holes_are_reported_up_to_the_next_page_of_any_stripe() {
    let export = Memory::new(1000 * PAGE_LEN);
    for page in [3, 64, 65, 130, 131, 700] {
        export.write(page * PAGE_LEN, &[1], false).unwrap();
    }
    let pages: Vec<_> = status(&export, 0, 1000 * PAGE_LEN)
        .into_iter()
        .map(|(len, status)| (len / PAGE_LEN, status))
        .collect();
    assert_eq!(
        pages,
        [
            (3, HOLE),
            (1, DATA),
            (60, HOLE),
            (2, DATA),
            (64, HOLE),
            (2, DATA),
            (568, HOLE),
            (1, DATA),
            (299, HOLE)
        ]
    );
    assert_eq!(
        status(&export, 3 * PAGE_LEN + 1, 10),
        [(10, DATA)],
        "an extent does not pass the end of its request"
    );
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let export = Memory::new(PAGE_LEN);
    export.write(0, b"kept", false).unwrap();
    let export = export.read_only();
    assert!(export_info(&export).is_read_only());
    assert_eq!(errno(export.write(0, b"lost", false)), Errno::Perm);
    assert_eq!(errno(export.trim(0, 4, false)), Errno::Perm);
    assert_eq!(errno(export.write_zeroes(0, 4, NO_HOLE)), Errno::Perm);
    assert_eq!(read(&export, 0, 4), b"kept");
}

#[test]
fn a_range_that_passes_the_end_is_refused() {
    let export = Memory::new(1000);
    for (offset, len) in [(1000, 1), (0, 1001), (u64::MAX, 2), (999, u64::MAX)] {
        if let Ok(len) = usize::try_from(len.min(2000)) {
            assert_eq!(errno(export.read(offset, &mut vec![0; len])), Errno::Inval);
            assert_eq!(
                errno(export.write(offset, &vec![1; len], false)),
                Errno::NoSpc
            );
        }
        assert_eq!(
            errno(export.write_zeroes(offset, len, NO_HOLE)),
            Errno::NoSpc
        );
        assert_eq!(errno(export.trim(offset, len, false)), Errno::Inval);
        assert_eq!(errno(export.cache(offset, len)), Errno::Inval);
        assert_eq!(errno(export.allocation(offset, len)), Errno::Inval);
    }
    assert_eq!(export.allocated(), 0);
}

#[test]
fn it_offers_all_there_is() {
    let sizes = BlockSizes::new(512, 65_536, 1 << 20).unwrap();
    let export = Memory::new(1 << 20)
        .with_block_sizes(sizes)
        .with_description("a disk");
    let info = export_info(&export);
    assert!(info.can_flush() && info.can_fua() && info.can_trim() && info.can_fast_zero());
    assert!(info.can_cache() && info.can_multi_conn() && !info.is_read_only());
    assert!(!info.can_df() && !info.can_filter_block_status() && !info.is_rotational());
    assert_eq!(info.block_sizes, Some(sizes));
    assert_eq!(info.description, Some("a disk".into()));
    export.flush().unwrap();
    export.cache(0, 1 << 20).unwrap();
    assert_eq!(export.allocated(), 0);
    assert!(!export.may_block() && export.finds_zeroes());
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the threads that use it are others'"
)]
fn threads_see_whole_sectors_and_their_own_writes() {
    const SECTORS: u64 = 512;
    let export = Memory::new(SECTORS * 512);
    thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let export = &export;
            scope.spawn(move || {
                let byte = seed.to_le_bytes()[0];
                let mut random = seed;
                for _ in 0..3000 {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let sector = (random >> 33) % (SECTORS - 16);
                    match random >> 62 {
                        0 => export.trim(sector * 512, 16 * 512, false).unwrap(),
                        1 => export.write_zeroes(sector * 512, 512, NO_HOLE).unwrap(),
                        _ => export.write(sector * 512, &[byte; 16 * 512], true).unwrap(),
                    }
                    for sector in read(export, sector * 512, 16 * 512).chunks(512) {
                        assert!(sector.iter().all(|byte| *byte == sector[0]), "torn");
                    }
                    let reported: u64 = status(export, 0, export.size()).iter().map(|e| e.0).sum();
                    assert_eq!(reported, export.size());
                }
            });
        }
    });
    let pages: usize = export
        .stripes
        .iter()
        .map(|stripe| stripe.read().len())
        .sum();
    assert_eq!(export.allocated(), pages as u64 * PAGE_LEN);
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the threads that use it are others'"
)]
fn threads_that_write_apart_lose_nothing() {
    const EACH: usize = 64;
    let export = Memory::new(4 * EACH as u64 * 4096);
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let export = &export;
            // Blocks of all threads share every page.
            scope.spawn(move || {
                for block in 0..EACH as u64 {
                    let at = (block * 4 + thread) * 4096;
                    let byte = thread.to_le_bytes()[0] + 1;
                    export.write(at, &[byte; 4096], false).unwrap();
                    assert!(read(export, at, 4096).iter().all(|b| *b == byte));
                }
            });
        }
    });
    for (block, bytes) in read(&export, 0, 4 * EACH * 4096).chunks(4096).enumerate() {
        let byte = (block % 4).to_le_bytes()[0] + 1;
        assert!(bytes.iter().all(|b| *b == byte), "block {block}");
    }
}
