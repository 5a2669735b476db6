//! Encrypted bytes that have come and were not decrypted.

use rustls::{Connection, IoState};
use std::{
    fmt,
    io::{self, IoSliceMut, Read},
};

/// Encrypted bytes taken from a stream at once: a payload of 256 KiB with its header and TLS's
/// overhead of each record. rustls by itself takes little more than a record, which costs a system
/// call for every 16 KiB.
const CAPACITY: usize = (256 + 8) << 10;

/// Length of a record's header, which ends with the length of the rest.
const HEADER: usize = 5;

/// The longest record that is handed over in one piece. Longer ones are none of TLS.
const RECORD: usize = HEADER + (16 << 10) + 256;

/// Encrypted bytes that have come and were not decrypted.
pub struct Received {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// There may have been more to come the last time.
    full: bool,
    /// Bytes of a record's header that rustls has.
    header: [u8; HEADER],
    known: usize,
    /// Number of bytes that the header has announced and rustls has not got.
    missing: usize,
}

impl Received {
    /// An empty buffer for a record, which is enough for a handshake. It becomes a long one
    /// when as much comes at once as fits.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: vec![0; RECORD],
            start: 0,
            end: 0,
            full: false,
            header: [0; HEADER],
            known: 0,
            missing: 0,
        }
    }

    /// Whether everything that came was decrypted.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The place for the next bytes from the stream. Bytes that were not decrypted are lost, so
    /// this is only for a buffer that [is empty](Self::is_empty).
    pub fn space(&mut self) -> &mut [u8] {
        self.start = 0;
        self.end = 0;
        if self.full && self.bytes.len() < CAPACITY {
            self.bytes = vec![0; CAPACITY];
        }
        &mut self.bytes
    }

    /// Takes note that `n` bytes came into the [space](Self::space).
    pub fn filled(&mut self, n: usize) {
        self.end = n.min(self.bytes.len());
        self.full = self.end == self.bytes.len();
    }

    /// Moves plaintext into `bufs`, and decrypts received bytes as far as there is room. Returns
    /// how many bytes were moved, where 0 are the end of TLS, or `None` if more has to be received
    /// first.
    ///
    /// # Errors
    ///
    /// When the peer broke TLS, after everything before that was moved. There is an alert to send.
    pub fn read(
        &mut self,
        connection: &mut Connection,
        bufs: &mut [IoSliceMut<'_>],
    ) -> io::Result<Option<usize>> {
        let room: usize = bufs.iter().map(|buf| buf.len()).sum();
        let mut taken = 0;
        let mut state = connection.process_new_packets();
        loop {
            // Bytes that came before an error are right.
            if !matches!(&state, Ok(state) if state.plaintext_bytes_to_read() == 0) {
                taken += take(connection, bufs, taken)?;
            }
            match state {
                _ if taken == room => return Ok(Some(taken)),
                Ok(state) if !state.peer_has_closed() => {}
                Err(error) if taken == 0 => return Err(io::Error::other(error)),
                Ok(_) | Err(_) => return Ok(Some(taken)),
            }
            if self.is_empty() {
                return Ok(Some(taken).filter(|&taken| taken > 0));
            }
            state = self.decrypt(connection)?;
        }
    }

    /// Decrypts a record of the received bytes, of which there must be some. There must be no
    /// plaintext in `connection`.
    ///
    /// # Errors
    ///
    /// The outer error is one of the plumbing, the inner one of TLS; then there is an alert to send.
    pub fn decrypt(
        &mut self,
        connection: &mut Connection,
    ) -> io::Result<Result<IoState, rustls::Error>> {
        let mut piece = self.next_piece();
        while !piece.is_empty() && connection.read_tls(&mut piece)? > 0 {}
        Ok(connection.process_new_packets())
    }

    /// The rest of a record and the header of the next one.
    ///
    /// rustls has a buffer for one record, grows it by 4 KiB at a time, and shrinks it again when
    /// it is empty. That is more work than decrypting; with the next header in it, it stays.
    fn next_piece(&mut self) -> &[u8] {
        let rest = &self.bytes[self.start..self.end];
        let mut n = 0;
        while n < rest.len() && n < RECORD {
            if self.missing > 0 {
                let taken = self.missing.min(rest.len() - n).min(RECORD);
                self.missing -= taken;
                n += taken;
                continue;
            }
            self.header[self.known] = rest[n];
            self.known += 1;
            n += 1;
            if self.known == HEADER {
                self.known = 0;
                self.missing = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                if n > HEADER {
                    break;
                }
            }
        }
        let start = self.start;
        self.start += n;
        &self.bytes[start..start + n]
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

/// Moves plaintext into `bufs` after their first `skip` bytes, which are filled. rustls would only
/// fill the first of them.
fn take(
    connection: &mut Connection,
    bufs: &mut [IoSliceMut<'_>],
    mut skip: usize,
) -> io::Result<usize> {
    let mut taken = 0;
    for buf in bufs {
        let Some(space) = buf.get_mut(skip..).filter(|space| !space.is_empty()) else {
            skip -= buf.len();
            continue;
        };
        skip = 0;
        match connection.reader().read(space) {
            Ok(n) if n == space.len() => taken += n,
            Ok(n) => return Ok(taken + n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(taken),
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_buffer_is_only_made_for_peers_that_send_much() {
        let mut received = Received::new();
        for n in [1, 2000, RECORD - 1, 5] {
            assert_eq!(received.space().len(), RECORD);
            received.filled(n);
        }
        assert_eq!(received.space().len(), RECORD);
        received.filled(RECORD);
        assert_eq!(received.space().len(), CAPACITY);
        received.filled(1);
        assert_eq!(received.space().len(), CAPACITY);
    }
}
