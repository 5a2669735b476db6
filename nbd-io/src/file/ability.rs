//! Operations that a file system may not support.

use crate::errno::is_unsupported;
use std::{
    io::{self, ErrorKind},
    sync::atomic::{AtomicBool, Ordering},
};

/// Something that is done where the file system can do it, and not tried again where it cannot.
#[derive(Debug)]
pub(super) struct Ability(AtomicBool);

impl Ability {
    pub(super) const fn new(likely: bool) -> Self {
        Self(AtomicBool::new(likely))
    }

    /// Whether it did not turn out yet that it cannot be done.
    pub(super) fn is_likely(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Does it, or `None` if it cannot be done. A call that says so has changed nothing.
    pub(super) fn attempt<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<Option<T>> {
        if !self.is_likely() {
            return Ok(None);
        }
        match call() {
            Err(error) if is_refusal(&error) => {
                self.0.store(false, Ordering::Relaxed);
                Ok(None)
            }
            result => result.map(Some),
        }
    }
}

/// Some file systems call an operation that they do not know an invalid argument. A block device
/// is busy where others use it in a way that does not go with this.
fn is_refusal(error: &io::Error) -> bool {
    let refusals = [ErrorKind::InvalidInput, ErrorKind::ResourceBusy];
    is_unsupported(error) || refusals.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsupported_operation_is_tried_once() {
        let unsupported = || Err::<(), _>(io::Error::from(ErrorKind::Unsupported));
        let invalid = || Err::<(), _>(io::Error::from(ErrorKind::InvalidInput));
        for call in [unsupported, invalid] {
            let ability = Ability::new(true);
            assert_eq!(ability.attempt(|| Ok(1)).unwrap(), Some(1));
            assert_eq!(ability.attempt(call).unwrap(), None);
            let again = ability.attempt::<()>(|| panic!("tried again"));
            assert!(again.unwrap().is_none() && !ability.is_likely());
        }
    }

    #[test]
    fn an_operation_that_failed_for_another_reason_is_tried_again() {
        let ability = Ability::new(true);
        let full = ability.attempt(|| Err::<(), _>(ErrorKind::StorageFull.into()));
        assert_eq!(full.unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(ability.attempt(|| Ok(1)).unwrap(), Some(1));
        let never = Ability::new(false).attempt::<()>(|| panic!("tried"));
        assert!(never.unwrap().is_none());
    }
}
