//! What has come for TLS and was not decrypted.

use rustls::Connection;
use std::{fmt, io};

/// Encrypted bytes taken from a stream at once. rustls by itself takes little more than a record,
/// which costs a system call for every 16 KiB.
const CAPACITY: usize = 256 << 10;

/// Encrypted bytes that have come and were not decrypted.
pub struct Received {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Received {
    /// An empty buffer of 256 KiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY],
            start: 0,
            end: 0,
        }
    }

    /// Whether everything that came was decrypted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where the next bytes from the stream go. What was not decrypted is lost, so this is only for
    /// a buffer that [is empty](Self::is_empty).
    pub fn space(&mut self) -> &mut [u8] {
        self.start = 0;
        self.end = 0;
        &mut self.bytes
    }

    /// Takes note that `n` bytes came into the [space](Self::space).
    pub fn filled(&mut self, n: usize) {
        self.end = n.min(self.bytes.len());
    }

    /// Decrypts some of what came, which must not be nothing. There must be no plaintext in
    /// `connection`.
    ///
    /// # Errors
    ///
    /// The outer error is one of the plumbing, the inner one of TLS; then there is an alert to send.
    pub fn decrypt(
        &mut self,
        connection: &mut Connection,
    ) -> io::Result<Result<(), rustls::Error>> {
        let mut rest = &self.bytes[self.start..self.end];
        let before = rest.len();
        connection.read_tls(&mut rest)?;
        self.start += before - rest.len();
        Ok(connection.process_new_packets().map(drop))
    }
}

impl Default for Received {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("len", &(self.end - self.start))
            .finish_non_exhaustive()
    }
}
