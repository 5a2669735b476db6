//! Bringing data onto stable storage, and never forgetting that it failed.

use super::host;
use crate::errno::failure;
use nbd_proto::{Errno, Failure};
use std::{
    fs::File,
    io,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Limit of calls under way at the same time, where the system allows several.
const CONCURRENT: usize = 8;

/// The calls that bring written data onto stable storage.
///
/// A system that cannot write a page says so once for each time that the file was opened, and may
/// then forget the page. A later call succeeds, although the page that it should cover is lost; so
/// does one at the same time, if the other was the one that the error went to. The first failure is
/// therefore final, and the file is opened once for each of the calls that are under way at the
/// same time.
#[derive(Debug)]
pub(super) struct Syncs {
    /// The same file, opened several times, each for one call at a time.
    pub(super) files: Vec<Mutex<File>>,
    next: AtomicUsize,
    lost: OnceLock<Failure>,
}

impl Syncs {
    /// Takes a file that no other thread syncs, and opens it again if it is open for writing. Where
    /// that cannot be done, calls wait for each other.
    pub(super) fn new(file: File, read_only: bool) -> Self {
        let again = if read_only { 0 } else { CONCURRENT - 1 };
        let mut files: Vec<_> = (0..again).map_while(|_| host::reopen(&file).ok()).collect();
        files.push(file);
        Self {
            files: files.into_iter().map(Mutex::new).collect(),
            next: AtomicUsize::new(0),
            lost: OnceLock::new(),
        }
    }

    /// Calls `sync`, unless it would have nothing to say any more. It fails if data may be lost.
    pub(super) fn run<T>(&self, sync: impl FnOnce(&File) -> io::Result<T>) -> Result<T, Failure> {
        // Until a failure is noted no other thread gets the file, which would know nothing of it.
        let file = self.file();
        if let Some(first) = self.lost.get() {
            return Err(Failure {
                message: format!(
                    "data was lost when an earlier sync failed: {}",
                    first.message
                )
                .into(),
                ..Errno::Io.into()
            });
        }
        sync(&file).map_err(|error| {
            let failure = failure(&error);
            self.lost.get_or_init(|| failure.clone());
            failure
        })
    }

    /// One of the files: the first that is free, or else the next in turn.
    fn file(&self) -> MutexGuard<'_, File> {
        let free = self.files.iter().find_map(|file| file.try_lock().ok());
        free.unwrap_or_else(|| {
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.files.len();
            let file = self.files[turn].lock();
            file.unwrap_or_else(PoisonError::into_inner)
        })
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the threads that use it are others'"
)]
mod tests {
    use super::*;
    use std::{
        io::ErrorKind,
        sync::{
            Barrier,
            atomic::{AtomicBool, Ordering},
        },
        thread,
    };

    /// Syncs of a file that is open for writing, or only for reading and therefore opened once.
    fn syncs(read_only: bool) -> Syncs {
        Syncs::new(tempfile::tempfile().unwrap(), read_only)
    }

    #[test]
    fn after_a_failure_nothing_is_stable_any_more() {
        // S-220, S-222
        let syncs = syncs(false);
        assert_eq!(syncs.run(|_| Ok(1)), Ok(1));
        let failed = syncs.run(|_| Err::<(), _>(ErrorKind::StorageFull.into()));
        assert_eq!(failed.unwrap_err().errno, Errno::NoSpc);
        for _ in 0..2 {
            let failure = syncs.run(|_| Ok(())).unwrap_err();
            assert_eq!(failure.errno, Errno::Io);
            assert!(failure.message.as_str().contains("no storage space"));
        }
    }

    #[test]
    fn no_file_is_synced_twice_at_the_same_time() {
        // S-220, S-222
        let syncs = syncs(true);
        let failing = AtomicBool::new(false);
        thread::scope(|scope| {
            let failed = scope.spawn(|| {
                syncs.run(|_| {
                    failing.store(true, Ordering::SeqCst);
                    for _ in 0..100 {
                        thread::yield_now();
                    }
                    Err::<(), _>(io::Error::other("a bad block"))
                })
            });
            while !failing.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            // The system would report nothing to this one, now that the other has got the error.
            let beside = syncs.run(|_| Ok(()));
            assert!(beside.is_err() && failed.join().unwrap().is_err());
        });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn syncs_run_beside_each_other() {
        let syncs = syncs(false);
        let all = Barrier::new(CONCURRENT);
        thread::scope(|scope| {
            for _ in 0..CONCURRENT {
                // It would hang if one waited for the other.
                scope.spawn(|| syncs.run(|_| Ok(all.wait().is_leader())).unwrap());
            }
        });
        thread::scope(|scope| {
            for _ in 0..4 * CONCURRENT {
                scope.spawn(|| syncs.run(|file| file.sync_data()).unwrap());
            }
        });
    }
}
