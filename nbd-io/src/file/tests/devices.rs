//! Disks that are full, disks that fail, and disks whose contents can be seen below the page cache.
//! Root makes them of files.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "file systems and devices are made by programs"
)]

use super::*;
use rustix::fs::{Advice, fadvise};
use std::{env, process::Command};

const MIB: u64 = 1 << 20;

/// Runs a program, and returns its output. Where the program cannot do its work a test is skipped,
/// with a line that says so, but it fails under `CI=true`.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output();
    let problem = match output {
        Ok(output) if output.status.success() => {
            return Some(String::from_utf8(output.stdout).unwrap().trim().to_owned());
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let skipped = format!(
        "skipped, since {program} {} failed: {problem}",
        arguments.join(" ")
    );
    let in_ci = env::var("CI").as_deref() == Ok("true");
    assert!(!in_ci || thread::panicking(), "{skipped}");
    eprintln!("{skipped}");
    None
}

/// A file system that is mounted for a test.
struct Mounted {
    directory: TempDir,
}

impl Mounted {
    fn new(arguments: &[&str]) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_str().unwrap();
        run("mount", &[arguments, &[at]].concat())?;
        Some(Self { directory })
    }

    /// One in memory with room for 1 MiB.
    fn small() -> Option<Self> {
        Self::new(&["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.directory.path().to_str().unwrap()]);
    }
}

/// A block device that is made of a file for a test.
struct Device {
    path: String,
    /// The contents of the disk, below the page cache of the device.
    behind: PathBuf,
}

impl Device {
    fn new(directory: &TempDir, len: u64) -> Option<Self> {
        Self::with(directory, len, &[])
    }

    fn with(directory: &TempDir, len: u64, arguments: &[&str]) -> Option<Self> {
        let has_loops = Path::new("/dev/loop-control").exists();
        if !has_loops {
            eprintln!("skipped, since this system has no loop devices");
            return None;
        }
        let behind = empty(directory, len);
        let arguments = [
            &["--find", "--show"],
            arguments,
            &[behind.to_str().unwrap()],
        ];
        let path = run("losetup", &arguments.concat())?;
        Some(Self { path, behind })
    }

    fn open(&self) -> File {
        File::open(&self.path).unwrap()
    }

    fn behind(&self) -> Vec<u8> {
        fs::read(&self.behind).unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run("losetup", &["--detach", &self.path]);
    }
}

#[test]
fn a_full_disk_is_enospc_and_loses_nothing() {
    // S-217, S-227
    let Some(disk) = Mounted::small() else { return };
    for fua in [false, true] {
        let path = empty(&disk.directory, 4 * MIB);
        let export = File::open(&path).unwrap();
        let block = [7; 64 << 10];
        let offsets = (0..4 * MIB).step_by(block.len());
        let mut written = 0;
        let failure = offsets
            .map(|offset| export.write(offset, &block, fua).map(|()| written += 1))
            .find_map(Result::err)
            .expect("there is not that much room");
        assert_eq!(failure.errno, Errno::NoSpc);
        let full = written * block.len() as u64;
        assert_eq!(failure.offset, Some(full));
        assert!((8..=16).contains(&written));
        let no_hole = export.write_zeroes(2 * MIB, 2 * MIB, NO_HOLE);
        assert_eq!(errno(no_hole), Errno::NoSpc);
        assert!(read(&export, 0, 8 * block.len()) == [7; 8 * (64 << 10)]);
        // No sync has failed.
        export.flush().unwrap();
        // Freed room is there for others.
        export.trim(0, 2 * MIB, false).unwrap();
        export.write_zeroes(MIB, 512 << 10, NO_HOLE).unwrap();
        export.write(MIB, &[9; 512 << 10], fua).unwrap();
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_read_only_device_is_a_read_only_export() {
    // S-091
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Device::with(&directory, MIB, &["--read-only"]) else {
        return;
    };
    // Opening for writing alone works: the system does not refuse it.
    let export = device.open();
    assert!(export_info(&export).is_read_only());
    assert_eq!(errno(export.write(0, &[1], false)), Errno::Perm);
}

#[test]
fn trim_is_not_advertised_for_a_device_that_cannot() {
    // A loop device trims by making holes in its file, and there are none on ramfs.
    for (system, trims) in [("tmpfs", true), ("ramfs", false)] {
        let Some(disk) = Mounted::new(&["-t", system, system]) else {
            return;
        };
        let Some(device) = Device::new(&disk.directory, MIB) else {
            return;
        };
        assert_eq!(export_info(&device.open()).can_trim(), trims, "on {system}");
    }
}

#[test]
fn a_device_that_has_grown_shows_its_new_size() {
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Device::new(&directory, MIB) else {
        return;
    };
    let export = device.open();
    shorten(&device.behind, 2 * MIB);
    let Some(_) = run("losetup", &["--set-capacity", &device.path]) else {
        return;
    };
    assert_eq!(export.size(), MIB);
    export.refresh();
    assert_eq!(export.size(), 2 * MIB);
    export.write(2 * MIB - 1, &[7], true).unwrap();
}

#[test]
fn a_block_device_is_an_export() {
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Device::new(&directory, 8 * MIB) else {
        return;
    };
    let export = device.open();
    assert_eq!(export.size(), 8 * MIB);
    assert_eq!(export.block_sizes().minimum(), 1);
    assert!(!export.finds_zeroes() && export.unit.is_power_of_two() && export.unit >= 512);
    assert_eq!(status(&export, 0, 8 * MIB), [(8 * MIB, DATA)]);
    let reader = File::open_read_only(&device.path).unwrap();
    assert!(export_info(&reader).is_read_only());

    let mut expected = vec![0; 8 << 20];
    let mut write = |offset: usize, len: usize, byte: u8| {
        expected[offset..offset + len].fill(byte);
        let data = vec![byte; len];
        export.write(offset as u64, &data, byte == 2).unwrap();
    };
    write(0, 8 << 20, 1);
    write(1000, 10_000, 2);
    write((8 << 20) - 7, 7, 3);
    for (offset, len) in [(0, 4096), (5001, 100), (9000, 100_001)] {
        for (offset, mode) in [(offset, ZeroMode::default()), (offset + MIB, NO_HOLE)] {
            export.write_zeroes(offset, len, mode).unwrap();
            let start = usize::try_from(offset).unwrap();
            expected[start..][..usize::try_from(len).unwrap()].fill(0);
        }
    }
    assert!(read(&export, 0, 8 << 20) == expected);
    export.flush().unwrap();
    assert!(device.behind() == expected);
    export.trim(1, 8 * MIB - 1, true).unwrap();
    assert_eq!(read(&export, 0, 1), [0]);
    assert_eq!(errno(export.write(8 * MIB, &[0], false)), Errno::NoSpc);
}

#[test]
fn a_block_device_that_makes_zeroes_makes_them_fast() {
    // S-155
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Device::new(&directory, 8 * MIB) else {
        return;
    };
    let export = device.open();
    export.write(0, &[7; 8 << 20], true).unwrap();
    let done = export.write_zeroes(100, 4 * MIB, FAST);
    if export.fast_zeroes {
        done.unwrap();
        assert!(is_zero(&read(&export, 100, 4 << 20)));
        export.flush().unwrap();
        assert!(allocated(&device.behind) <= 5 * MIB);
    } else {
        assert_eq!(errno(done), Errno::NotSup);
        assert!(read(&export, 0, 8 << 20) == [7; 8 << 20]);
    }
}

/// A write is on the disk when FUA or a flush said so, and not before by chance.
fn comes_onto_the_disk(open: impl Fn() -> File, is_on_disk: impl Fn(&[u8]) -> bool) {
    let mut seed = 0_u64;
    let mut secret = || {
        seed += 1;
        let words = (0..512).map(|word| (seed << 32 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.flat_map(u64::to_le_bytes).collect::<Vec<_>>()
    };
    for can in [true, false] {
        let mut export = open();
        export.write_durably = Ability::new(can);
        let (data, other) = (secret(), secret());
        export.write(0, &other, false).unwrap();
        assert!(!is_on_disk(&other), "this would show nothing");
        export.write(8192, &data, true).unwrap();
        assert!(is_on_disk(&data));
    }
    let export = open();
    let data = secret();
    export.write(0, &data, false).unwrap();
    assert!(!is_on_disk(&data), "this would show nothing");
    // By another connection, if each opens the disk itself.
    open().flush().unwrap();
    assert!(is_on_disk(&data));
    let zeroes = ZeroMode {
        fua: true,
        ..ZeroMode::default()
    };
    for hint in [false, true] {
        let data = secret();
        export.write(0, &data, false).unwrap();
        if hint {
            export.trim(64 << 10, 4096, true).unwrap();
        } else {
            export.write_zeroes(64 << 10, 4096, zeroes).unwrap();
        }
        assert!(is_on_disk(&data));
    }
}

#[test]
fn stable_writes_are_on_the_device() {
    // S-149, S-220, S-221, S-222
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Device::new(&directory, 8 * MIB) else {
        return;
    };
    comes_onto_the_disk(
        || device.open(),
        |data| {
            device
                .behind()
                .windows(data.len())
                .step_by(512)
                .any(|on| on == data)
        },
    );
}

#[test]
fn stable_writes_are_on_the_disk_of_the_file() {
    // S-149, S-220, S-221, S-222
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Device::new(&directory, 8 * MIB) else {
        return;
    };
    let Some(_) = run("mkfs.ext4", &["-q", "-O", "^has_journal", &device.path]) else {
        return;
    };
    let Some(mounted) = Mounted::new(&[&device.path]) else {
        return;
    };
    let path = empty(&mounted.directory, MIB);
    comes_onto_the_disk(
        || File::open(&path).unwrap(),
        |data| {
            device
                .behind()
                .windows(data.len())
                .step_by(512)
                .any(|on| on == data)
        },
    );
}

#[test]
fn a_sync_that_failed_is_never_forgotten() {
    // S-220, S-222
    let Some(disk) = Mounted::small() else { return };
    let Some(device) = Device::new(&disk.directory, 8 * MIB) else {
        return;
    };
    let check = |export: &File| {
        for _ in 0..2 {
            let failure = export.flush().unwrap_err();
            assert_eq!(failure.errno, Errno::Io);
            assert!(failure.message.as_str().starts_with("data was lost when"));
            assert_eq!(errno(export.write(0, &[1], true)), Errno::Io);
            let zeroes = ZeroMode {
                fua: true,
                ..ZeroMode::default()
            };
            assert_eq!(errno(export.write_zeroes(0, 4096, zeroes)), Errno::Io);
            assert_eq!(errno(export.trim(0, 4096, true)), Errno::Io);
        }
        // The rest still works.
        export.write(0, b"hello", false).unwrap();
        assert_eq!(read(export, 0, 5), b"hello");
    };
    // The cache takes more than the disk has room for.
    let export = device.open();
    export.write(0, &[7; 4 << 20], false).unwrap();
    assert!(matches!(errno(export.flush()), Errno::Io | Errno::NoSpc));
    check(&export);
    for can in [true, false] {
        let mut export = device.open();
        export.write_durably = Ability::new(can);
        let failed = export.write(5 * MIB, &[7; 1 << 20], true);
        assert!(matches!(errno(failed), Errno::Io | Errno::NoSpc));
        check(&export);
    }
}

#[test]
fn each_open_file_description_reports_a_failed_sync_once() {
    // The behaviour that syncs rely on, and the reason why they have to remember a failure.
    let Some(disk) = Mounted::small() else { return };
    let Some(device) = Device::new(&disk.directory, 8 * MIB) else {
        return;
    };
    let export = device.open();
    export.write(0, &[7; 4 << 20], false).unwrap();
    assert!(export.syncs.files.len() > 1);
    for file in &export.syncs.files {
        let file = file.lock().unwrap();
        assert!(file.sync_data().is_err());
        file.sync_data().unwrap();
    }
}

#[test]
fn a_cache_miss_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let Some(device) = Device::new(&directory, 8 * MIB) else {
        return;
    };
    let export = device.open();
    export.write(0, &[7; 1 << 20], true).unwrap();
    let forget = || fadvise(&export.file, 0, None, Advice::DontNeed).unwrap();
    let mut buf = vec![0; 64 << 10];
    forget();
    assert_eq!(export.read_now(0, &mut buf), None);
    // The beginning alone is not enough.
    read(&export, 0, 4096);
    forget();
    assert!(export.read_now.is_likely());
    read(&export, 0, 64 << 10);
    assert_eq!(export.read_now(0, &mut buf), Some(Ok(())));
    assert!(buf == [7; 64 << 10]);
    forget();
    export.cache(0, 64 << 10).unwrap();
    while export.read_now(0, &mut buf).is_none() {
        thread::yield_now();
    }
    assert!(buf == [7; 64 << 10]);
}
