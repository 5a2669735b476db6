//! Requests of a program, in a form that can be kept and sent again.

use super::engine::Outbox;
use bytes::Bytes;
use nbd_proto::{
    Command, CommandFlags, Misuse,
    client::{Cookie, Transmission},
};
use std::{ops::Range, sync::Arc};

/// A request that fits into one message. It is cheap to clone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Request {
    /// `NBD_CMD_READ`.
    Read {
        /// Offset of its start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// [`CommandFlags::DF`].
        flags: CommandFlags,
    },
    /// `NBD_CMD_WRITE`.
    Write {
        /// Offset of its start in bytes.
        offset: u64,
        /// The data.
        payload: Bytes,
        /// [`CommandFlags::FUA`].
        flags: CommandFlags,
    },
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim {
        /// Offset of its start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// [`CommandFlags::FUA`].
        flags: CommandFlags,
    },
    /// `NBD_CMD_CACHE`.
    Cache {
        /// Offset of its start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes {
        /// Offset of its start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// [`CommandFlags::FUA`], [`CommandFlags::NO_HOLE`], [`CommandFlags::FAST_ZERO`].
        flags: CommandFlags,
    },
    /// `NBD_CMD_BLOCK_STATUS`.
    BlockStatus {
        /// Offset of its start in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// [`CommandFlags::REQ_ONE`].
        flags: CommandFlags,
        /// The contexts that are asked for, if not all.
        ids: Option<Arc<[u32]>>,
    },
}

impl Request {
    /// Its command.
    #[must_use]
    pub const fn command(&self) -> Command {
        match self {
            Self::Read { .. } => Command::Read,
            Self::Write { .. } => Command::Write,
            Self::Flush => Command::Flush,
            Self::Trim { .. } => Command::Trim,
            Self::Cache { .. } => Command::Cache,
            Self::WriteZeroes { .. } => Command::WriteZeroes,
            Self::BlockStatus { .. } => Command::BlockStatus,
        }
    }

    /// Whether the export is another one afterwards.
    #[must_use]
    pub const fn changes(&self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes { .. }
        )
    }

    /// The bytes of the export that it is about; none for a flush.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let (offset, len) = match self {
            Self::Write {
                offset, payload, ..
            } => (*offset, payload.len() as u64),
            Self::Read { offset, len, .. }
            | Self::Trim { offset, len, .. }
            | Self::Cache { offset, len }
            | Self::WriteZeroes { offset, len, .. }
            | Self::BlockStatus { offset, len, .. } => (*offset, *len),
            Self::Flush => (0, 0),
        };
        offset..offset.saturating_add(len)
    }

    /// The bytes of the export that it changes.
    #[must_use]
    pub fn change(&self) -> Option<Range<u64>> {
        self.changes().then(|| self.range())
    }

    /// Whether it has a flag.
    #[must_use]
    pub const fn has(&self, flag: CommandFlags) -> bool {
        match self {
            Self::Read { flags, .. }
            | Self::Write { flags, .. }
            | Self::Trim { flags, .. }
            | Self::WriteZeroes { flags, .. }
            | Self::BlockStatus { flags, .. } => flags.contains(flag),
            Self::Flush | Self::Cache { .. } => false,
        }
    }

    /// The payload in either direction, in bytes.
    #[must_use]
    pub const fn weight(&self) -> u64 {
        match self {
            Self::Read { len, .. } => *len,
            Self::Write { payload, .. } => payload.len() as u64,
            _ => 0,
        }
    }

    /// The same with a copy of the payload. A caller's may be a small part of a large buffer, which
    /// no caller can see, and which would be held as a whole for as long as the request is.
    #[must_use]
    pub fn detached(mut self) -> Self {
        if let Self::Write { payload, .. } = &mut self {
            *payload = Bytes::copy_from_slice(payload);
        }
        self
    }

    /// The same for a part of its range, which has to be inside. Its payload is not copied.
    #[must_use]
    pub(super) fn part(&self, range: Range<u64>) -> Self {
        let mut part = self.clone();
        let whole = self.range();
        match &mut part {
            Self::Write {
                offset, payload, ..
            } => {
                let at = |byte: u64| usize::try_from(byte - whole.start).unwrap_or(usize::MAX);
                *payload = payload.slice(at(range.start)..at(range.end));
                *offset = range.start;
            }
            Self::Read { offset, len, .. }
            | Self::Trim { offset, len, .. }
            | Self::Cache { offset, len }
            | Self::WriteZeroes { offset, len, .. }
            | Self::BlockStatus { offset, len, .. } => {
                (*offset, *len) = (range.start, range.end - range.start);
            }
            Self::Flush => {}
        }
        part
    }

    /// Takes a place among the requests in flight, and leaves the bytes to be sent in the outbox.
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection.
    #[inline]
    pub fn start(
        self,
        transmission: &mut Transmission,
        outbox: &mut Outbox,
    ) -> Result<Cookie, Misuse> {
        let with_payload = match self {
            Self::Read { offset, len, flags } => {
                return outbox.push_bare(transmission.read(offset, len, flags));
            }
            Self::Flush => return outbox.push_bare(transmission.flush()),
            Self::Trim { offset, len, flags } => {
                return outbox.push_bare(transmission.trim(offset, len, flags));
            }
            Self::Cache { offset, len } => {
                return outbox.push_bare(transmission.cache(offset, len));
            }
            Self::WriteZeroes { offset, len, flags } => {
                return outbox.push_bare(transmission.write_zeroes(offset, len, flags));
            }
            Self::BlockStatus {
                offset,
                len,
                flags,
                ids: None,
            } => return outbox.push_bare(transmission.block_status(offset, len, flags)),
            Self::Write {
                offset,
                payload,
                flags,
            } => transmission.write(offset, payload, flags),
            Self::BlockStatus {
                offset,
                len,
                flags,
                ids: Some(ids),
            } => transmission.block_status_of(&ids, offset, len, flags),
        };
        let (cookie, frame) = with_payload?;
        let (header, payload) = frame.into_parts();
        outbox.push_owned(header.as_bytes(), payload);
        Ok(cookie)
    }
}
