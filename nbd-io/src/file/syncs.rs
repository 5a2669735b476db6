//! Bringing data onto stable storage, and never forgetting that it failed.

use crate::errno::failure;
use nbd_proto::{Errno, Failure};
use std::{
    io,
    sync::{OnceLock, PoisonError, RwLock},
};

/// The calls that bring what was written onto stable storage.
///
/// A system that cannot write a page reports it once for each open file, and may then forget the
/// page. A later call succeeds, although what it is to vouch for is gone; so does one at the same
/// time, if the other was the one to be told. Therefore the first failure is final, and a call
/// that succeeds counts once all those have ended that were under way with it.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    running: RwLock<()>,
    lost: OnceLock<Failure>,
}

impl Syncs {
    /// Calls `sync`, unless it would have nothing to say any more. It fails if data may be lost.
    pub(super) fn run<T>(&self, sync: impl FnOnce() -> io::Result<T>) -> Result<T, Failure> {
        let running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        self.check()?;
        let done = sync();
        if let Err(error) = &done {
            let _ = self.lost.set(failure(error));
        }
        drop(running);
        let done = done.map_err(|error| failure(&error))?;
        // Waits for those that are running, and for no others.
        drop(self.running.write());
        self.check()?;
        Ok(done)
    }

    fn check(&self) -> Result<(), Failure> {
        match self.lost.get() {
            None => Ok(()),
            Some(first) => Err(Failure {
                message: format!(
                    "data was lost when an earlier sync failed: {}",
                    first.message
                )
                .into(),
                ..Errno::Io.into()
            }),
        }
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
        sync::{Barrier, atomic::AtomicBool, atomic::Ordering},
        thread,
    };

    #[test]
    fn after_a_failure_nothing_is_stable_any_more() {
        // S-220, S-222
        let syncs = Syncs::default();
        assert_eq!(syncs.run(|| Ok(1)), Ok(1));
        let failed = syncs.run(|| Err::<(), _>(ErrorKind::StorageFull.into()));
        assert_eq!(failed.unwrap_err().errno, Errno::NoSpc);
        for _ in 0..2 {
            let failure = syncs.run(|| Ok(())).unwrap_err();
            assert_eq!(failure.errno, Errno::Io);
            assert!(failure.message.as_str().contains("no storage space"));
        }
    }

    #[test]
    fn a_sync_beside_one_that_fails_does_not_succeed() {
        // S-220, S-222
        let syncs = Syncs::default();
        let both = Barrier::new(2);
        let succeeded = AtomicBool::new(false);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                syncs.run(|| {
                    both.wait();
                    succeeded.store(true, Ordering::SeqCst);
                    Ok(())
                })
            });
            let failed = syncs.run(|| {
                both.wait();
                // The other one has been told that all is well.
                while !succeeded.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                for _ in 0..100 {
                    thread::yield_now();
                }
                Err::<(), _>(io::Error::other("a bad block"))
            });
            assert!(failed.is_err());
            assert!(other.join().unwrap().is_err());
        });
    }

    #[test]
    fn syncs_run_beside_each_other() {
        let syncs = Syncs::default();
        let all = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                // It would hang if one waited for the other.
                scope.spawn(|| syncs.run(|| Ok(all.wait().is_leader())).unwrap());
            }
        });
    }
}
