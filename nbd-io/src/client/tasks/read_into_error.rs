//! A failed read that gives its buffer back.

use crate::client::Error;
use bytes::BytesMut;
use std::{error, fmt};

/// A [`read_into`](super::Client::read_into) that failed, and its buffer for the next one.
#[non_exhaustive]
pub struct ReadIntoError {
    /// The reason.
    pub error: Error,
    /// The buffer, as long as it was. Its contents are undefined. After a [timeout](Error::Timeout)
    /// it is a new one, because the connection has the other until the reply is there.
    pub buffer: BytesMut,
}

impl ReadIntoError {
    /// Gives a buffer back for `len` bytes, of which parts may have been lost.
    pub(super) fn new(error: Error, mut buffer: BytesMut, len: usize) -> Self {
        buffer.resize(len, 0);
        Self { error, buffer }
    }
}

impl From<ReadIntoError> for Error {
    fn from(failed: ReadIntoError) -> Self {
        failed.error
    }
}

impl fmt::Debug for ReadIntoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadIntoError")
            .field("error", &self.error)
            .field("buffer", &format_args!("{} bytes", self.buffer.len()))
            .finish()
    }
}

impl fmt::Display for ReadIntoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl error::Error for ReadIntoError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.error.source()
    }
}
