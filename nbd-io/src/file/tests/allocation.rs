//! Reports of holes, and their cost.

use super::*;

#[test]
fn holes_are_kept_and_reported() {
    // S-218
    const MIB: u64 = 1 << 20;
    for directory in directories() {
        let path = empty(&directory, MIB);
        let export = File::open(&path).unwrap();
        assert!(export.finds_zeroes());
        assert_eq!(status(&export, 0, MIB), [(MIB, HOLE)]);
        export.write(MIB / 2 + 10, &[7; 10], false).unwrap();
        assert_eq!(
            status(&export, 0, MIB),
            [
                (MIB / 2, HOLE),
                (PAGE_LEN, DATA),
                (MIB / 2 - PAGE_LEN, HOLE)
            ]
        );
        assert_eq!(status(&export, MIB / 2 + 1, 10), [(10, DATA)]);
        assert_eq!(status(&export, 1, 10), [(10, HOLE)]);
        assert_eq!(export.allocation(MIB, 0).unwrap().len, 0);
        assert!(is_zero(&read(&export, 0, PAGE)));
        assert!(allocated(&path) < MIB / 2);
        export.trim(0, MIB, true).unwrap();
        assert_eq!(status(&export, 0, MIB), [(MIB, HOLE)]);
        assert!(allocated(&path) < PAGE_LEN);
    }
}

#[test]
fn a_file_without_holes_is_not_searched_until_one_is_made() {
    // S-210, S-213
    for directory in directories() {
        let path = full(&directory, 8 * PAGE);
        let export = File::open(&path).unwrap();
        assert!(!export.finds_zeroes());
        assert_eq!(status(&export, 0, 8 * PAGE_LEN), [(8 * PAGE_LEN, DATA)]);
        export.trim(PAGE_LEN, PAGE_LEN, false).unwrap();
        assert!(export.finds_zeroes());
        assert_eq!(
            status(&export, 0, 8 * PAGE_LEN),
            [(PAGE_LEN, DATA), (PAGE_LEN, HOLE), (6 * PAGE_LEN, DATA)]
        );
    }
}

#[test]
fn data_that_was_found_is_not_looked_for_again() {
    for directory in directories() {
        let path = full(&directory, 8 * PAGE);
        shorten(&path, 16 * PAGE_LEN);
        let export = File::open(&path).unwrap();
        let data = Extent {
            len: PAGE_LEN,
            status: DATA,
        };
        assert_eq!(export.allocation(0, PAGE_LEN).unwrap(), data);
        // Another file descriptor makes holes, which only a search would find.
        let other = File::open(&path).unwrap();
        other.trim(0, 8 * PAGE_LEN, false).unwrap();
        for page in 0..8 {
            assert_eq!(export.allocation(page * PAGE_LEN, PAGE_LEN).unwrap(), data);
        }
        export.trim(2 * PAGE_LEN, PAGE_LEN, false).unwrap();
        assert_eq!(status(&export, 2 * PAGE_LEN, PAGE_LEN), [(PAGE_LEN, HOLE)]);
    }
}

#[test]
fn several_ranges_of_data_are_not_looked_for_again() {
    for directory in directories() {
        let path = full(&directory, 8 * PAGE);
        let export = File::open(&path).unwrap();
        for hole in [1, 4, 6] {
            export.trim(hole * PAGE_LEN, PAGE_LEN, false).unwrap();
        }
        let data = |page: u64, pages: u64| {
            let found = export.allocation(page * PAGE_LEN, 8 * PAGE_LEN - page * PAGE_LEN);
            assert_eq!(
                found.unwrap(),
                Extent {
                    len: pages * PAGE_LEN,
                    status: DATA
                }
            );
        };
        let all = || [(0, 1), (2, 2), (5, 1), (7, 1)].map(|(page, pages)| data(page, pages));
        all();
        // Another file descriptor makes holes, which only a search would find.
        let other = File::open(&path).unwrap();
        other.trim(0, 8 * PAGE_LEN, false).unwrap();
        all();
    }
}

#[test]
fn a_read_finds_holes_without_a_search_for_where_data_ends() {
    const KIB: u64 = 1 << 10;
    for directory in directories() {
        let path = full(&directory, 1 << 20);
        let export = File::open(&path).unwrap();
        export.trim(200 * KIB, 300 * KIB, false).unwrap();
        let quick = |offset, len| {
            let Extent { len, status } = export.quick_allocation(offset, len).unwrap();
            (len, status)
        };
        assert_eq!(quick(0, 4 * KIB), (4 * KIB, DATA));
        assert_eq!(quick(199 * KIB, 4 * KIB), (4 * KIB, DATA));
        assert_eq!(quick(4 * KIB, 1000 * KIB), (252 * KIB, DATA));
        assert_eq!(quick(256 * KIB, 700 * KIB), (244 * KIB, HOLE));
        assert_eq!(quick(256 * KIB, 4 * KIB), (4 * KIB, HOLE));
        assert_eq!(quick(500 * KIB, 1), (1, DATA));
        assert_eq!(quick(500 * KIB, 524 * KIB), (524 * KIB, DATA));
        assert_eq!(export.holes.data_end(0), None);
        // Results of a search are used again.
        assert_eq!(
            status(&export, 0, 1 << 20),
            [(200 * KIB, DATA), (300 * KIB, HOLE), (524 * KIB, DATA)]
        );
        assert_eq!(quick(0, 1 << 20), (200 * KIB, DATA));
    }
}

#[test]
fn extents_are_whole_blocks() {
    // S-212
    for directory in directories() {
        let path = empty(&directory, 40 * PAGE_LEN + 100);
        let block = 4 * PAGE_LEN;
        let sizes = BlockSizes::new(16_384, 65_536, 1 << 20).unwrap();
        let export = File::open(&path).unwrap().with_block_sizes(sizes);
        for page in [9, 21, 22] {
            export.write(page * PAGE_LEN, &[7; PAGE], false).unwrap();
        }
        assert_eq!(
            status(&export, 0, 40 * PAGE_LEN),
            [
                (2 * block, HOLE),
                (block, DATA),
                (2 * block, HOLE),
                (block, DATA),
                (4 * block, HOLE)
            ]
        );
    }
}

#[test]
fn a_file_system_without_seek_hole_has_data_only() {
    // S-213
    for directory in directories() {
        let can = [true, true, true, true, true, false];
        let export = hampered(File::open(empty(&directory, 1 << 20)).unwrap(), can);
        assert!(!export.finds_zeroes());
        assert_eq!(status(&export, 0, 1 << 20), [(1 << 20, DATA)]);
    }
}

#[test]
fn a_truncated_end_is_no_hole() {
    // S-218
    for directory in directories() {
        let path = empty(&directory, 1 << 20);
        let export = File::open(&path).unwrap();
        shorten(&path, 100_000);
        assert_eq!(
            status(&export, 0, 1 << 20),
            [(99_840, HOLE), ((1 << 20) - 99_840, DATA)]
        );
        assert_eq!(status(&export, 100_000, 10), [(10, DATA)]);
        shorten(&path, 0);
        assert_eq!(status(&export, 0, 1 << 20), [(1 << 20, DATA)]);
    }
}
