//! Disks in a directory, and the files there that are no objects.

use super::{place, sim::Sim};
use crate::{Directory, Layout, Options};
use futures_util::FutureExt;
use object_store::{ObjectStore, PutMode, path::Path as Location};
use std::{fs, path::Path, thread};

const MIB: u64 = 1 << 20;

#[test]
fn files_of_puts_that_a_crash_cut_off_are_removed_by_a_collection_when_they_are_old() {
    let sim = Sim::default();
    let temporary = tempfile::tempdir().unwrap();
    let directory = Directory::open(temporary.path()).unwrap();
    let at = place(&sim, directory);
    let below = temporary.path().join("disk");
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(0, &[1; 512]).await.unwrap();
        disk.flush().await.unwrap();
        let segments = fs::read_dir(below.join("seg"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let (old, new) = (segments.join("00000009#1"), segments.join("00000008#1"));
        for file in [&old, &new] {
            fs::write(file, b"a part").unwrap();
        }
        let yesterday = std::time::SystemTime::now() - std::time::Duration::from_secs(25 * 3600);
        fs::File::options()
            .write(true)
            .open(&old)
            .unwrap()
            .set_modified(yesterday)
            .unwrap();
        disk.collect_garbage().await.unwrap();
        assert!(!old.exists() && new.exists() && below.join("head#0").exists());
        assert_eq!(at.check(None, &Options::new()).await.unwrap().damages, []);
    });
}

/// The files below a directory that are no objects.
fn others(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(others(&path));
        } else {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            found.extend(name.contains('#').then_some(name));
        }
    }
    found
}

#[test]
#[cfg(unix)]
fn the_lock_of_a_deleted_object_goes_with_it() {
    let sim = Sim::default();
    let temporary = tempfile::tempdir().unwrap();
    let at = place(&sim, Directory::open(temporary.path()).unwrap());
    sim.run(async move {
        at.create(MIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        disk.write(0, &[1; 512]).await.unwrap();
        disk.flush().await.unwrap();
        // Those of the probes are gone.
        assert_eq!(others(temporary.path()), ["head#0"]);
        at.delete().await.unwrap();
        disk.write(0, &[2; 512]).await.unwrap();
        disk.flush().await.unwrap_err();
        assert_eq!(others(temporary.path()), [""; 0]);
    });
}

/// Whether a thread waits for the lock of this file.
#[cfg(target_os = "linux")]
fn is_waited_for(lock: &fs::File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let file = format!(":{} ", lock.metadata().unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    let mut lines = locks.lines();
    lines.any(|line| line.contains("->") && line.contains(&file))
}

#[test]
#[cfg(target_os = "linux")]
fn a_swap_that_waited_for_a_lock_that_was_removed_takes_the_new_one() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = Directory::open(temporary.path()).unwrap();
    let path = Location::from("head");
    let put = |content: &'static str, mode: PutMode| {
        let done = directory.put_opts(&path, content.into(), mode.into());
        done.now_or_never().unwrap()
    };
    let name = temporary.path().join("head#0");
    let lock = || {
        let file = fs::File::create(&name).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        file
    };
    let first = put("first", PutMode::Overwrite).unwrap();
    let removed = lock();
    thread::scope(|scope| {
        let swap = scope.spawn(|| put("swapped", PutMode::Update(first.into())));
        while !is_waited_for(&removed) {
            thread::yield_now();
        }
        fs::remove_file(&name).unwrap();
        let current = lock();
        drop(removed);
        while !is_waited_for(&current) {
            assert!(!swap.is_finished(), "it has the lock that was removed");
            thread::yield_now();
        }
        put("second", PutMode::Overwrite).unwrap();
        drop(current);
        let refused = swap.join().unwrap().unwrap_err();
        assert!(matches!(refused, object_store::Error::Precondition { .. }));
    });
}
