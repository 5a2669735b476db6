//! The requests that are to be carried out.

use super::{
    agreed::Agreed,
    read::ReadTicket,
    status::StatusTicket,
    ticket::{Base, Reply, Ticket},
};
use crate::{Command, CommandFlags, Errno};
use alloc::borrow::Cow;
use bytes::Bytes;

/// A request that is to be carried out.
///
/// Spec: [Request types](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#request-types).
///
/// It is within the export, of whole blocks if block sizes were agreed on, not empty, allowed by
/// the transmission flags, and of a command that they offer. The list is complete: other requests
/// are refused without being seen here.
#[derive(Debug)]
#[must_use = "the client waits for an answer"]
pub enum Request {
    /// To read.
    Read {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes; at most the maximum payload.
        len: u32,
        /// Answers it.
        ticket: ReadTicket,
    },
    /// To write the payload that has come.
    Write {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes, which is that of the payload.
        len: u32,
        /// Whether to answer only when the data is on stable storage.
        fua: bool,
        /// Answers it.
        ticket: Ticket,
    },
    /// To answer only when everything is on stable storage that was written by requests which
    /// were answered before this one came.
    Flush {
        /// Answers it.
        ticket: Ticket,
    },
    /// To forget data that is not needed any more. It may be done in part or not at all.
    Trim {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Whether to answer only when this is on stable storage.
        fua: bool,
        /// Answers it.
        ticket: Ticket,
    },
    /// To prepare for reads that will follow.
    Cache {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Answers it.
        ticket: Ticket,
    },
    /// To write zeroes.
    WriteZeroes {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Whether to answer only when they are on stable storage.
        fua: bool,
        /// Whether to allocate space for them.
        no_hole: bool,
        /// Whether to fail at once with [`Errno::NotSup`], with nothing changed, rather than be no
        /// faster than a write.
        fast: bool,
        /// Answers it.
        ticket: Ticket,
    },
    /// The status of the meta contexts.
    BlockStatus {
        /// From where on, in bytes.
        offset: u64,
        /// Length in bytes. The answer may be about less.
        len: u64,
        /// Whether one extent for each context is enough.
        one: bool,
        /// Answers it.
        ticket: StatusTicket,
    },
}

impl Request {
    /// INVARIANT: `base` passed every check, and its command is one of those below.
    #[inline]
    pub(super) fn new(base: Base, agreed: &Agreed) -> Self {
        let Base { offset, len, .. } = base;
        let has = |flag| base.flags.contains(flag);
        let fua = has(CommandFlags::FUA);
        // Reads and writes are not longer than the maximum payload, which has 32 bits.
        let short = u32::try_from(len).unwrap_or(u32::MAX);
        let ticket = Ticket(base);
        match base.command {
            Command::Read => Self::Read {
                offset,
                len: short,
                ticket: ReadTicket(base),
            },
            Command::Write => Self::Write {
                offset,
                len: short,
                fua,
                ticket,
            },
            Command::Trim => Self::Trim {
                offset,
                len,
                fua,
                ticket,
            },
            Command::Cache => Self::Cache {
                offset,
                len,
                ticket,
            },
            Command::WriteZeroes => Self::WriteZeroes {
                offset,
                len,
                fua,
                no_hole: has(CommandFlags::NO_HOLE),
                fast: has(CommandFlags::FAST_ZERO),
                ticket,
            },
            Command::BlockStatus => Self::BlockStatus {
                offset,
                len,
                one: has(CommandFlags::REQ_ONE),
                ticket: StatusTicket::new(base, agreed),
            },
            Command::Flush | Command::Disc | Command::Resize | Command::Other(_) => {
                Self::Flush { ticket }
            }
        }
    }

    /// The command.
    #[must_use]
    pub const fn command(&self) -> Command {
        match self {
            Self::Read { .. } => Command::Read,
            Self::Write { .. } => Command::Write,
            Self::Flush { .. } => Command::Flush,
            Self::Trim { .. } => Command::Trim,
            Self::Cache { .. } => Command::Cache,
            Self::WriteZeroes { .. } => Command::WriteZeroes,
            Self::BlockStatus { .. } => Command::BlockStatus,
        }
    }

    /// Answers the request, of any kind, with an error; see [`Ticket::fail`].
    pub fn fail(self, errno: Errno, message: impl Into<Cow<'static, str>>) -> Reply<Bytes> {
        match self {
            Self::Read { ticket, .. } => ticket.fail(errno, message),
            Self::BlockStatus { ticket, .. } => ticket.fail(errno, message),
            Self::Write { ticket, .. }
            | Self::Flush { ticket }
            | Self::Trim { ticket, .. }
            | Self::Cache { ticket, .. }
            | Self::WriteZeroes { ticket, .. } => ticket.fail(errno, message),
        }
    }
}
