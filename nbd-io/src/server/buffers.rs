//! Memory for payloads that is used again.

use std::sync::{Mutex, PoisonError};

/// Buffers shorter than this cost less to make than to keep, in bytes.
const SHORT: usize = 16 << 10;

/// Memory that is kept for all connections together, in bytes.
const KEPT: usize = 64 << 20;

/// Buffers longer than this are only made if there would be room for [`LEFT`] more, in bytes.
const LONG: usize = 1 << 20;

/// Memory that is left to allocations that cannot fail: small buffers, and threads of new
/// connections.
const LEFT: usize = 32 << 20;

/// So many zeroes; `None` if the system has no memory, which would otherwise end the process, and with
/// it every other connection.
fn allocate(len: usize) -> Option<Vec<u8>> {
    let mut buffer = Vec::new();
    if len > LONG {
        // Memory that is not touched is only reserved, which costs next to nothing.
        buffer.try_reserve_exact(len.checked_add(LEFT)?).ok()?;
        buffer.shrink_to(len);
    } else {
        buffer.try_reserve_exact(len).ok()?;
    }
    buffer.resize(len, 0);
    Some(buffer)
}

/// Buffers that are not in use, shared by the connections of a server.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    len: usize,
}

impl Buffers {
    /// A buffer of at least `len` bytes, with anything in it; `None` if the system has no memory.
    pub(super) fn take(&self, len: usize) -> Option<Vec<u8>> {
        if len >= SHORT {
            let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // One that is much too long would be missing where it is needed.
            let fits = |buffer: &Vec<u8>| (len..=len.saturating_mul(4)).contains(&buffer.len());
            if let Some(at) = spare.buffers.iter().rposition(fits) {
                let buffer = spare.buffers.swap_remove(at);
                spare.len -= buffer.len();
                return Some(buffer);
            }
        }
        // So that it fits for others, which are seldom of the same length.
        let len = if len >= SHORT {
            len.next_power_of_two()
        } else {
            len
        };
        allocate(len)
    }

    /// Keeps a buffer for others, unless there is enough already.
    pub(super) fn keep(&self, buffer: Vec<u8>) {
        if !(SHORT..=KEPT).contains(&buffer.len()) {
            return;
        }
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spare.len += buffer.len();
        spare.buffers.push(buffer);
        // Those that were not used for the longest time go first.
        let mut gone = 0;
        while spare.len > KEPT {
            spare.len -= spare.buffers[gone].len();
            gone += 1;
        }
        drop(spare.buffers.drain(..gone));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_where_it_fits() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(100 << 10).unwrap();
        buffer[0] = 1;
        buffers.keep(buffer);
        assert_eq!(buffers.take(200 << 10).unwrap()[0], 0); // too long for it
        assert_eq!(buffers.take(20 << 10).unwrap()[0], 0); // too short for it
        assert_eq!(buffers.take(90 << 10).unwrap()[0], 1);
        assert_eq!(buffers.take(90 << 10).unwrap()[0], 0);
    }

    #[test]
    fn no_more_is_kept_than_is_sensible() {
        let buffers = Buffers::default();
        for _ in 0..10 {
            buffers.keep(vec![0; 16 << 20]);
        }
        buffers.keep(vec![0; KEPT + 1]);
        let spare = buffers.0.lock().unwrap();
        assert_eq!(spare.len, KEPT);
        assert_eq!(spare.buffers.iter().map(Vec::len).sum::<usize>(), KEPT);
    }

    #[test]
    fn memory_that_is_not_there_is_not_given() {
        assert!(Buffers::default().take(usize::MAX / 4).is_none());
    }
}
