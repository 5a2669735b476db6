//! An export as a seekable stream of bytes.

use crate::Client;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// A position in an export, with the traits of `std::io`.
///
/// Nothing is buffered: wrap it in a `BufReader` or `BufWriter` for small reads and writes.
/// [`Write::flush`] puts written data on stable storage, if the server offers that.
///
/// At the end of the export nothing is read or written, so that `write_all` fails there with
/// [`WriteZero`](io::ErrorKind::WriteZero). The [`io::Error`] of a failure contains the client's
/// [`Error`](crate::Error).
#[derive(Clone, Debug)]
pub struct Cursor {
    client: Client,
    position: u64,
}

impl Cursor {
    /// Starts at the beginning of the export.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self {
            client,
            position: 0,
        }
    }

    /// The export.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Offset of the next read or write in bytes.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }
}

impl Read for Cursor {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.client.read_at(buf, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Write for Cursor {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.client.write_at(buf, self.position)?;
        self.position += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.client.export().can_flush() {
            self.client.flush()?;
        }
        Ok(())
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.position = self.client.negotiated().seek(self.position, to)?;
        Ok(self.position)
    }
}
