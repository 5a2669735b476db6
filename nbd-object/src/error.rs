//! The ways in which work on a disk fails.

use std::{fmt, sync::Arc};

/// An operation on a disk failed.
///
/// It is cheap to clone, since one failed flush is the answer to all calls that waited for it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed, also after retries.
    #[error("{operation} of {object} failed: {source}")]
    Store {
        /// The request, as *get* or *put*.
        operation: &'static str,
        /// The object's path in the store.
        object: String,
        /// The store's error.
        source: Arc<object_store::Error>,
    },
    /// The store has not answered any request yet, and this one for too long; see
    /// [`Retry::first_answer`](crate::Retry::first_answer).
    #[error("{operation} of {object} failed: the store has not answered for {time:?}")]
    NoAnswer {
        /// The request, as *get* or *put*.
        operation: &'static str,
        /// The object's path in the store.
        object: String,
        /// The time that was waited for an answer.
        time: std::time::Duration,
    },
    /// Another writer has opened the disk since. This one fails for good.
    #[error(
        "the disk was opened by another writer: epoch {expected} was expected in its head, and {found} is there"
    )]
    Fenced {
        /// The epoch of this writer.
        expected: u64,
        /// The epoch of the other one; zero if the disk was deleted.
        found: u64,
    },
    /// Stored bytes are not those that were written.
    #[error("damaged object: {0}")]
    Damaged(Damage),
    /// The store does not keep the conditions without which two writers destroy a disk.
    #[error("the store ignores conditions of writes, and cannot hold a disk: {0}")]
    IgnoresConditions(String),
    /// There is no such disk or snapshot.
    #[error("there is no {0}")]
    NotFound(String),
    /// A disk or a snapshot of this name is there already.
    #[error("{0} exists already")]
    AlreadyExists(String),
    /// A later version of this crate, or one with more features, wrote this.
    #[error("{0}")]
    Unsupported(String),
    /// An argument is out of its range.
    #[error("{0}")]
    Invalid(String),
    /// The disk was opened for reading only.
    #[error("the disk is open for reading only")]
    ReadOnly,
    /// The runtime ended the task that was at work.
    #[error("the task that carried this out was dropped by its runtime")]
    Aborted,
}

/// The place and kind of a damage.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Damage {
    /// The object's path in the store.
    pub object: String,
    /// The damaged bytes in the object.
    pub range: std::ops::Range<u64>,
    /// The bytes of the disk that cannot be read because of it, if that is known.
    pub disk: Option<std::ops::Range<u64>>,
    /// The expectation, and the finding.
    pub detail: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            object,
            range,
            disk,
            detail,
        } = self;
        write!(f, "{object}, bytes {} to {}", range.start, range.end)?;
        if let Some(disk) = disk {
            write!(f, " (bytes {} to {} of the disk)", disk.start, disk.end)?;
        }
        write!(f, ": {detail}")
    }
}

impl Error {
    /// Whether the cause is an object that is not there, in a bucket or container that is.
    pub(crate) fn is_missing_object(&self) -> bool {
        let Self::Store { source, .. } = self else {
            return false;
        };
        // They have the same status, and differ by the code of the store in the text.
        matches!(**source, object_store::Error::NotFound { .. })
            && !["NoSuchBucket", "ContainerNotFound"]
                .iter()
                .any(|code| source.to_string().contains(code))
    }

    /// Adds the bytes of the disk to a damage that lacks them.
    pub(crate) fn at(mut self, disk: std::ops::Range<u64>) -> Self {
        if let Self::Damaged(damage) = &mut self {
            damage.disk.get_or_insert(disk);
        }
        self
    }
}
