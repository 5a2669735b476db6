mod allocation;
#[cfg(target_os = "linux")]
mod devices;
mod opening;

use super::*;
use crate::export_info;
use crate::model::{DATA, HOLE, NO_HOLE, errno, is_zero, operations, play, read, status};
use proptest::prelude::*;
use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};
use tempfile::TempDir;

const PAGE: usize = 4096;
const PAGE_LEN: u64 = 4096;

/// Some pages, of which the last one is not whole.
const SIZE: usize = 9 * PAGE + 700;

const FAST: ZeroMode = ZeroMode {
    no_hole: false,
    fast: true,
    fua: false,
};

/// A directory on each kind of file system that there is: on disk, and in memory.
fn directories() -> Vec<TempDir> {
    let mut directories = vec![tempfile::tempdir().unwrap()];
    directories.extend(tempfile::tempdir_in("/dev/shm").ok());
    directories
}

/// A file of `len` bytes that are all hole.
fn empty(directory: &TempDir, len: u64) -> PathBuf {
    static FILES: AtomicU64 = AtomicU64::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = directory.path().join(number.to_string());
    fs::File::create_new(&path).unwrap().set_len(len).unwrap();
    path
}

/// A file of `len` sevens without a hole.
fn full(directory: &TempDir, len: usize) -> PathBuf {
    let path = empty(directory, 0);
    fs::write(&path, vec![7; len]).unwrap();
    // A file system may allocate blocks only later.
    fs::File::open(&path).unwrap().sync_all().unwrap();
    path
}

fn allocated(path: &Path) -> u64 {
    fs::File::open(path).unwrap().sync_all().unwrap();
    fs::metadata(path).unwrap().blocks() * STAT_BLOCK
}

fn shorten(path: &Path, len: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

/// Switches off operations of the file system by these bits.
fn hampered(mut export: File, can: [bool; 6]) -> File {
    let abilities = [
        &mut export.punch_hole,
        &mut export.zero_range,
        &mut export.allocate,
        &mut export.write_durably,
        &mut export.read_now,
        &mut export.seek,
    ];
    for (ability, can) in abilities.into_iter().zip(can) {
        *ability = Ability::new(can);
    }
    export
}

proptest! {
    // Each case writes to a real disk.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_behaves_like_an_array_of_bytes(
        operations in operations(SIZE, PAGE),
        can in any::<[bool; 6]>(),
        unit in prop_oneof![Just(1_u64), Just(512), Just(4096)],
    ) {
        // S-218, S-223, S-224, S-225
        for directory in directories() {
            let path = empty(&directory, SIZE as u64);
            for can in [[true; 6], can] {
                let mut export = hampered(File::open(&path).unwrap(), can);
                export.unit = unit;
                let mut model = read(&export, 0, SIZE);
                for (operation, range) in &operations {
                    play(&export, &mut model, operation, range.clone());
                }
                prop_assert!(fs::read(&path).unwrap() == model);
            }
        }
    }
}

#[test]
fn any_size_works_up_to_its_last_byte() {
    // S-104
    for directory in directories() {
        for size in [0, 1, 511, 513, 4097, 100_001, (1 << 40) + 3] {
            let export = File::open(empty(&directory, size)).unwrap();
            assert_eq!((export.size(), export_info(&export).size), (size, size));
            let reported: u64 = status(&export, 0, size).iter().map(|extent| extent.0).sum();
            assert_eq!(reported, size);
            assert_eq!(errno(export.read(size, &mut [0])), Errno::Inval);
            assert_eq!(errno(export.write(size, &[0], true)), Errno::NoSpc);
            if size > 0 {
                export.write(size - 1, &[7], true).unwrap();
                assert_eq!(read(&export, size - 1, 1), [7]);
                export.write_zeroes(0, size, ZeroMode::default()).unwrap();
                assert_eq!(read(&export, size - 1, 1), [0]);
                export.trim(0, size, false).unwrap();
                export.cache(0, size).unwrap();
            }
            export.flush().unwrap();
        }
    }
}

#[test]
fn a_file_that_shrank_is_an_error_and_never_zeroes() {
    // S-202
    for directory in directories() {
        let path = full(&directory, 64_000);
        let export = File::open(&path).unwrap();
        shorten(&path, 10_000);
        let mut buf = [0; 20_000];
        let failure = export.read(0, &mut buf).unwrap_err();
        assert_eq!((failure.errno, failure.offset), (Errno::Io, Some(10_000)));
        assert_eq!(
            failure.message.as_str(),
            "the file ends at or before 10000 and was longer"
        );
        assert_ne!(export.read_now(0, &mut buf), Some(Ok(())));
        let failure = export.read(50_000, &mut buf[..1]).unwrap_err();
        assert_eq!(failure.offset, Some(50_000));
        assert_eq!(read(&export, 0, 10_000), [7; 10_000]);
        // Neither hints nor zeroes by the file system bring back the truncated end.
        export.trim(20_000, 10_000, false).unwrap();
        for no_hole in [false, true] {
            let _ = export.write_zeroes(30_000, 10_000, ZeroMode { no_hole, ..FAST });
        }
        export.cache(0, 64_000).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
    }
}

#[test]
fn zeroes_take_up_nothing_unless_they_must_not_be_a_hole() {
    // S-225
    const LEN: u64 = 16 * PAGE_LEN;
    for directory in directories() {
        // By the file system, by allocating and writing, and by writing alone.
        for can in [
            [true; 6],
            [false, false, true, true, true, true],
            [false; 6],
        ] {
            let path = full(&directory, 16 * PAGE);
            let export = hampered(File::open(&path).unwrap(), can);
            let zeroes = ZeroMode::default();
            export.write_zeroes(0, LEN, zeroes).unwrap();
            assert!(is_zero(&fs::read(&path).unwrap()));
            assert_eq!(allocated(&path) < PAGE_LEN, can[0], "{can:?}");

            let path = empty(&directory, LEN);
            let export = hampered(File::open(&path).unwrap(), can);
            export.write(PAGE_LEN, &[7; PAGE], false).unwrap();
            export.write_zeroes(100, LEN - 200, NO_HOLE).unwrap();
            assert!(is_zero(&fs::read(&path).unwrap()));
            assert!(allocated(&path) >= LEN, "{can:?}");
        }
    }
}

#[test]
fn zeroes_end_where_they_were_to_end() {
    for directory in directories() {
        for can in [[true; 6], [false, true, true, true, true, true], [false; 6]] {
            for unit in [1, 512, 4096] {
                for fua in [false, true] {
                    let path = full(&directory, SIZE);
                    let mut export = hampered(File::open(&path).unwrap(), can);
                    export.unit = unit;
                    let mode = ZeroMode {
                        fua,
                        ..ZeroMode::default()
                    };
                    export.write_zeroes(1000, 20_001, mode).unwrap();
                    let mut expected = vec![7; SIZE];
                    expected[1000..21_001].fill(0);
                    assert!(fs::read(&path).unwrap() == expected);
                    export.write_zeroes(5000, 1, mode).unwrap();
                    export.write_zeroes(SIZE as u64 - 1, 1, mode).unwrap();
                    expected[SIZE - 1] = 0;
                    assert!(fs::read(&path).unwrap() == expected);
                }
            }
        }
    }
}

#[test]
fn fast_zeroes_are_refused_before_anything_is_changed() {
    // S-155, S-229
    for directory in directories() {
        let path = full(&directory, SIZE);
        for no_hole in [false, true] {
            let export = hampered(File::open(&path).unwrap(), [false; 6]);
            let mode = ZeroMode { no_hole, ..FAST };
            let refused = export.write_zeroes(0, SIZE as u64, mode);
            assert_eq!(errno(refused), Errno::NotSup);
            assert!(fs::read(&path).unwrap() == [7; SIZE]);
            // A device that is sent all zeroes may have its own command for that, but not a fast
            // one.
            let mut export = File::open(&path).unwrap();
            (export.fast_zeroes, export.punch_hole) = (false, Ability::new(false));
            let refused = export.write_zeroes(0, SIZE as u64, mode);
            assert_eq!(errno(refused), Errno::NotSup);
            // Less than a block can only be written.
            let mut export = File::open(&path).unwrap();
            export.unit = 4096;
            assert_eq!(errno(export.write_zeroes(4000, 4000, mode)), Errno::NotSup);
            assert!(fs::read(&path).unwrap() == [7; SIZE]);
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn fast_zeroes_are_made_where_the_file_system_can() {
    // S-155
    for directory in directories() {
        let path = full(&directory, SIZE);
        let export = File::open(&path).unwrap();
        export.write_zeroes(100, 20_000, FAST).unwrap();
        assert!(is_zero(&read(&export, 100, 20_000)));
        let export = File::open(full(&directory, SIZE)).unwrap();
        let mode = ZeroMode {
            no_hole: true,
            ..FAST
        };
        // A file system in memory has no call for these.
        match export.write_zeroes(100, 20_000, mode) {
            Ok(()) => assert!(is_zero(&read(&export, 100, 20_000))),
            Err(failure) => {
                assert_eq!(failure.errno, Errno::NotSup);
                assert!(read(&export, 0, SIZE) == [7; SIZE]);
            }
        }
    }
}

#[test]
fn a_range_that_passes_the_end_is_refused() {
    // S-159
    let directory = tempfile::tempdir().unwrap();
    let path = full(&directory, 1000);
    let export = File::open(&path).unwrap();
    for (offset, len) in [(1000, 1), (0, 1001), (u64::MAX, 2), (999, u64::MAX)] {
        if let Ok(len) = usize::try_from(len.min(2000)) {
            let mut buf = vec![0; len];
            assert_eq!(errno(export.read(offset, &mut buf)), Errno::Inval);
            let now = export.read_now(offset, &mut buf).unwrap();
            assert_eq!(errno(now), Errno::Inval);
            assert_eq!(errno(export.write(offset, &buf, false)), Errno::NoSpc);
        }
        let mode = ZeroMode::default();
        assert_eq!(errno(export.write_zeroes(offset, len, mode)), Errno::NoSpc);
        assert_eq!(errno(export.trim(offset, len, false)), Errno::Inval);
        assert_eq!(errno(export.cache(offset, len)), Errno::Inval);
        assert_eq!(errno(export.allocation(offset, len)), Errno::Inval);
    }
    assert!(fs::read(&path).unwrap() == [7; 1000]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_in_memory_is_not_waited_for() {
    let is_in_memory = |directory: &str| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        mounts.any(|mount| mount[1] == directory && mount[2] == "tmpfs")
    };
    if !is_in_memory("/dev/shm") {
        eprintln!("skipped: /dev/shm is no file system in memory");
        return;
    }
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let export = File::open(full(&directory, 4096)).unwrap();
    assert!(!export.may_block() && !export.refresh_may_block());
    let mut buf = [0; 4096];
    assert_eq!(export.read_now(0, &mut buf), Some(Ok(())));
    assert!(buf == [7; 4096]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_of_a_local_disk_is_described_without_waiting() {
    let (ext4, nfs, tmpfs) = (0xef53, 0x6969, 0x0102_1994);
    for (magic, regular, may_block, refresh_may_block) in [
        (ext4, true, true, false),
        (nfs, true, true, true),
        (tmpfs, true, false, false),
        // A device.
        (tmpfs, false, true, false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut export = File::open(full(&directory, 4096)).unwrap();
        export.storage = host::Storage::of(magic, regular);
        assert_eq!(export.may_block(), may_block, "{magic:x}");
        assert_eq!(export.refresh_may_block(), refresh_may_block, "{magic:x}");
    }
}

#[test]
fn cached_data_is_read_at_once() {
    for directory in directories() {
        let path = full(&directory, SIZE);
        let export = File::open(&path).unwrap();
        read(&export, 0, SIZE);
        let mut buf = vec![0; SIZE];
        match export.read_now(0, &mut buf) {
            Some(done) => {
                done.unwrap();
                assert!(buf == [7; SIZE]);
            }
            None => assert!(!export.read_now.is_likely(), "it was just read"),
        }
        let may_block = export.may_block();
        let export = hampered(export, [false; 6]);
        assert_eq!(export.read_now(0, &mut buf).is_none(), may_block);
    }
}

#[test]
fn writes_are_seen_through_other_file_descriptors() {
    // S-223, S-095
    for directory in directories() {
        let path = empty(&directory, 1 << 20);
        let (one, other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        for fua in [false, true] {
            let byte = if fua { 1 } else { 2 };
            one.write(1000, &[byte; 1000], fua).unwrap();
            assert_eq!(read(&other, 1000, 1000), [byte; 1000]);
        }
        other.flush().unwrap();
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the threads that use it are others'"
)]
fn no_hole_is_reported_where_a_thread_wrote() {
    // S-217, S-219
    const BLOCKS: u64 = 64;
    for directory in directories() {
        let path = empty(&directory, 4 * BLOCKS * PAGE_LEN);
        let export = File::open(&path).unwrap();
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let export = &export;
                scope.spawn(move || {
                    let byte = thread.to_le_bytes()[0] + 1;
                    for block in (0..BLOCKS).chain(0..BLOCKS) {
                        let at = (block * 4 + thread) * PAGE_LEN;
                        export.write(at, &[byte; PAGE], block % 16 == 0).unwrap();
                        assert_eq!(status(export, at, PAGE_LEN), [(PAGE_LEN, DATA)]);
                        assert_eq!(read(export, at, PAGE), [byte; PAGE]);
                        if block % 3 == 0 {
                            export.trim(at, PAGE_LEN, false).unwrap();
                            assert_eq!(status(export, at, PAGE_LEN), [(PAGE_LEN, HOLE)]);
                            assert!(is_zero(&read(export, at, PAGE)));
                            export.write(at, &[byte; PAGE], false).unwrap();
                        }
                    }
                });
            }
        });
        for (block, bytes) in fs::read(&path).unwrap().chunks(PAGE).enumerate() {
            let byte = (block % 4).to_le_bytes()[0] + 1;
            assert!(bytes.iter().all(|b| *b == byte), "block {block}");
        }
    }
}
