//! Requests that are never sent.

use super::Error;
use crate::{
    NameError,
    wire::{Command, CommandFlags, OptionCode},
};

/// A call that makes no sense here; not a byte of it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// A string that cannot be sent.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An option that must not follow earlier ones.
    #[error("{option} cannot be sent now: {why}")]
    Option {
        /// The option.
        option: OptionCode,
        /// The reason.
        why: &'static str,
    },
    /// The export cannot be written to.
    #[error("{command} was not sent: the export is read-only")]
    ReadOnly {
        /// The command.
        command: Command,
    },
    /// The server does not offer the command.
    #[error("{command} was not sent: the server does not offer it")]
    NotOffered {
        /// The command.
        command: Command,
    },
    /// The command cannot have these flags, or the server does not offer them.
    #[error("{command} was not sent: it cannot have the flags {flags:?} on this export")]
    Flags {
        /// The command.
        command: Command,
        /// The flags that are too many.
        flags: CommandFlags,
    },
    /// The range is not inside the export.
    #[error(
        "{command} was not sent: {len} bytes at {offset} are not inside the export of {size} bytes"
    )]
    OutOfBounds {
        /// The command.
        command: Command,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The export's size in bytes.
        size: u64,
    },
    /// The range reaches into an incomplete block at the end of the export, where no request may end.
    #[error(
        "{command} was not sent: {len} bytes at {offset} reach into an incomplete block, for only \
         {reachable} of the export's {size} bytes are in whole blocks of {minimum}"
    )]
    Unreachable {
        /// The command.
        command: Command,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The end of the reachable part, in bytes from the start of the export.
        reachable: u64,
        /// The export's size in bytes.
        size: u64,
        /// The minimum block size in bytes.
        minimum: u32,
    },
    /// The range is not made of whole blocks.
    #[error(
        "{command} was not sent: {len} bytes at {offset} are not multiples of the export's \
         minimum block size of {minimum} bytes"
    )]
    Unaligned {
        /// The command.
        command: Command,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// The minimum block size in bytes.
        minimum: u32,
    },
    /// A request for nothing.
    #[error("{command} was not sent: it has no length")]
    Empty {
        /// The command.
        command: Command,
    },
    /// The request is longer than this connection allows.
    #[error(
        "{command} was not sent: {len} bytes are more than the {max} that one request may have"
    )]
    TooLong {
        /// The command.
        command: Command,
        /// Length in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// Block status where no meta context was selected for the export.
    #[error("NBD_CMD_BLOCK_STATUS was not sent: no meta context was selected")]
    NoContext,
    /// A filter with a context that was not selected, or twice the same, or none.
    #[error("NBD_CMD_BLOCK_STATUS was not sent: its filter must name selected contexts once each")]
    Filter,
    /// As many requests are in flight as the limits allow.
    #[error("the request was not sent: {limit} requests are in flight already")]
    InFlight {
        /// The limit.
        limit: u32,
    },
    /// The server said by `NBD_ESHUTDOWN` that it is going away.
    #[error("the request was not sent: the server is shutting down")]
    ServerShutsDown,
    /// `NBD_CMD_DISC` was sent before.
    #[error("the request was not sent: the connection is being closed")]
    Disconnecting,
    /// The peer broke the protocol before.
    #[error("the request was not sent: {0}")]
    Dead(#[source] Error),
}
