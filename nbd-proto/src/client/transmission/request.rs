//! Commands: one that makes no sense is refused here, before a byte of it is sent.

use super::{Closing, Cookie, Transmission};
use crate::{
    Bare, Command, CommandFlags, Frame, Header, HeaderStyle, Misuse,
    wire::{BlockStatusFilter, RequestHeader},
};
use alloc::vec::Vec;
use bytes::{Buf, Bytes, BytesMut};

impl Transmission {
    /// Reads `len` bytes at `offset`.
    ///
    /// Flags: [`CommandFlags::DF`] if the export [can](crate::ExportInfo::can_df).
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection; nothing is sent.
    #[inline]
    pub fn read(
        &mut self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(Cookie, Bare), Misuse> {
        self.check(Command::Read, flags, offset, len)?;
        let max = self.max_len(Command::Read);
        if len > max {
            return Err(Misuse::TooLong {
                command: Command::Read,
                len,
                max,
            });
        }
        Ok(self.bare(Command::Read, flags, offset, len))
    }

    /// Writes `payload` at `offset`.
    ///
    /// Flags: [`CommandFlags::FUA`] if the export [can](crate::ExportInfo::can_fua).
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection; nothing is sent.
    #[inline]
    pub fn write<P: Buf>(
        &mut self,
        offset: u64,
        payload: P,
        flags: CommandFlags,
    ) -> Result<(Cookie, Frame<P>), Misuse> {
        let len = payload.remaining() as u64;
        self.check(Command::Write, flags, offset, len)?;
        let max = self.max_len(Command::Write);
        if len > max {
            return Err(Misuse::TooLong {
                command: Command::Write,
                len,
                max,
            });
        }
        let (cookie, header) = self.start(Command::Write, flags, offset, len, len);
        Ok((cookie, Frame::new(header, payload)))
    }

    /// Asks that everything that was answered before is on stable storage.
    ///
    /// Writes whose replies have not come are not covered.
    ///
    /// # Errors
    ///
    /// When the server does not offer it, or no command can be sent any more.
    pub fn flush(&mut self) -> Result<(Cookie, Bare), Misuse> {
        self.check_command(Command::Flush, CommandFlags::NONE)?;
        Ok(self.bare(Command::Flush, CommandFlags::NONE, 0, 0))
    }

    /// Hints that the contents of a range are not needed any more. They are undefined until they
    /// are written again.
    ///
    /// Flags: [`CommandFlags::FUA`].
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection; nothing is sent.
    pub fn trim(
        &mut self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(Cookie, Bare), Misuse> {
        self.check(Command::Trim, flags, offset, len)?;
        Ok(self.bare(Command::Trim, flags, offset, len))
    }

    /// Hints that a range will be read soon. Whether this succeeds says nothing about later reads.
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection; nothing is sent.
    pub fn cache(&mut self, offset: u64, len: u64) -> Result<(Cookie, Bare), Misuse> {
        self.check(Command::Cache, CommandFlags::NONE, offset, len)?;
        Ok(self.bare(Command::Cache, CommandFlags::NONE, offset, len))
    }

    /// Writes zeroes.
    ///
    /// Flags: [`CommandFlags::FUA`]; [`CommandFlags::NO_HOLE`] to have them allocated;
    /// [`CommandFlags::FAST_ZERO`] to have the command fail with `NBD_ENOTSUP` rather than be slow.
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection; nothing is sent.
    pub fn write_zeroes(
        &mut self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(Cookie, Bare), Misuse> {
        self.check(Command::WriteZeroes, flags, offset, len)?;
        Ok(self.bare(Command::WriteZeroes, flags, offset, len))
    }

    /// Asks for the status of a range in the selected meta contexts.
    ///
    /// Flags: [`CommandFlags::REQ_ONE`] for a single extent of each context.
    ///
    /// # Errors
    ///
    /// When the request makes no sense on this connection; nothing is sent.
    pub fn block_status(
        &mut self,
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(Cookie, Bare), Misuse> {
        self.check(Command::BlockStatus, flags, offset, len)?;
        Ok(self.bare(Command::BlockStatus, flags, offset, len))
    }

    /// Asks for the status of a range in some of the selected meta contexts.
    ///
    /// # Errors
    ///
    /// When the export [cannot](crate::ExportInfo::can_filter_block_status) do this, when `ids`
    /// is empty, has one twice or one that was not selected, or when the request makes no sense
    /// otherwise; nothing is sent.
    pub fn block_status_of(
        &mut self,
        ids: &[u32],
        offset: u64,
        len: u64,
        flags: CommandFlags,
    ) -> Result<(Cookie, Frame<Bytes>), Misuse> {
        if !self.info.can_filter_block_status() {
            let flags = CommandFlags::PAYLOAD_LEN;
            return Err(Misuse::Flags {
                command: Command::BlockStatus,
                flags,
            });
        }
        let once = |(at, id)| {
            !ids[..at].contains(id) && self.contexts.iter().any(|context| context.id == *id)
        };
        if ids.is_empty() || !ids.iter().enumerate().all(once) {
            return Err(Misuse::Filter);
        }
        self.check(Command::BlockStatus, flags, offset, len)?;
        let mut payload = BytesMut::with_capacity(BlockStatusFilter::FIXED + 4 * ids.len());
        BlockStatusFilter::encode(len, ids, &mut payload);
        let payload = payload.freeze();
        let payload_len = payload.len() as u64;
        let with_payload = flags | CommandFlags::PAYLOAD_LEN;
        let (cookie, header) =
            self.start(Command::BlockStatus, with_payload, offset, len, payload_len);
        self.slots.get(cookie).filter = Some(Vec::from(ids));
        Ok((cookie, Frame::new(header, payload)))
    }

    /// Ends the session: no command can be sent after this one, and it has no reply. To be sent
    /// when nothing is in flight; then nothing but the end of the stream is to come.
    ///
    /// # Errors
    ///
    /// When it was sent before, or the server broke the protocol.
    pub fn disconnect(&mut self) -> Result<Bare, Misuse> {
        if let Some(error) = self.dead {
            return Err(Misuse::Dead(error));
        }
        if self.ending == Some(Closing::Disconnecting) {
            return Err(Misuse::Disconnecting);
        }
        self.ending = Some(Closing::Disconnecting);
        let header = RequestHeader {
            flags: CommandFlags::NONE,
            command: Command::Disc,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        Ok(Bare::bare(header.encode(self.mode)))
    }

    /// The longest range that one request may have, in bytes: a multiple of the minimum block
    /// size, and 0 if the [limits](crate::client::Limits::payload) are below a single block.
    ///
    /// Reads and writes are limited by their payload; with chunks a server may be asked for more
    /// than its maximum at once, but need not answer. The others are limited by their length
    /// field alone.
    #[must_use]
    #[inline]
    pub fn max_len(&self, command: Command) -> u64 {
        let field = match self.mode {
            HeaderStyle::Simple | HeaderStyle::Structured => u64::from(u32::MAX),
            HeaderStyle::Extended => u64::MAX,
        };
        let payload = u64::from(self.config.limits.payload.min(self.blocks.maximum()));
        let max = match command {
            Command::Write => payload,
            Command::Read if self.mode.has_chunks() => u64::from(self.config.limits.payload),
            Command::Read => payload,
            _ => field,
        };
        // It is a power of two.
        max & !(u64::from(self.blocks.minimum()) - 1)
    }

    // The command is known wherever this is called, which leaves a comparison or two of it.
    #[inline(always)]
    fn check(
        &self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u64,
    ) -> Result<(), Misuse> {
        self.check_command(command, flags)?;
        if len == 0 {
            return Err(Misuse::Empty { command });
        }
        self.info.check_range(command, offset, len)?;
        self.info.check_blocks(command, offset, len)?;
        if self.mode != HeaderStyle::Extended && len > u64::from(u32::MAX) {
            let max = self.max_len(command);
            return Err(Misuse::TooLong { command, len, max });
        }
        Ok(())
    }

    /// Checks everything that does not depend on the range.
    #[inline(always)]
    fn check_command(&self, command: Command, flags: CommandFlags) -> Result<(), Misuse> {
        if let Some(error) = self.dead {
            return Err(Misuse::Dead(error));
        }
        match self.ending {
            None => {}
            Some(Closing::Asked) => return Err(Misuse::ServerShutsDown),
            Some(Closing::Disconnecting) => return Err(Misuse::Disconnecting),
        }
        let info = &self.info;
        let (offered, writes) = match command {
            Command::Read => (true, false),
            Command::Write => (true, true),
            Command::Flush => (info.can_flush(), false),
            Command::Trim => (info.is_read_only() || info.can_trim(), true),
            Command::Cache => (info.can_cache(), false),
            Command::WriteZeroes => (info.is_read_only() || info.can_write_zeroes(), true),
            Command::BlockStatus if self.contexts.is_empty() => return Err(Misuse::NoContext),
            Command::BlockStatus => (true, false),
            Command::Disc | Command::Resize | Command::Other(_) => (false, false),
        };
        if writes && info.is_read_only() {
            return Err(Misuse::ReadOnly { command });
        }
        if !offered {
            return Err(Misuse::NotOffered { command });
        }
        let surplus = flags.without(self.flags_for(command));
        if !surplus.is_empty() {
            return Err(Misuse::Flags {
                command,
                flags: surplus,
            });
        }
        if self.slots.is_full() {
            return Err(Misuse::InFlight {
                limit: self.slots.limit(),
            });
        }
        Ok(())
    }

    /// The flags that a command can have on this export.
    #[inline(always)]
    fn flags_for(&self, command: Command) -> CommandFlags {
        let allowed = |flag, if_offered| if if_offered { flag } else { CommandFlags::NONE };
        let info = &self.info;
        match command {
            Command::Read => allowed(CommandFlags::DF, info.can_df()),
            Command::Write | Command::Trim => allowed(CommandFlags::FUA, info.can_fua()),
            Command::WriteZeroes => {
                CommandFlags::NO_HOLE
                    | allowed(CommandFlags::FUA, info.can_fua())
                    | allowed(CommandFlags::FAST_ZERO, info.can_fast_zero())
            }
            Command::BlockStatus => CommandFlags::REQ_ONE,
            _ => CommandFlags::NONE,
        }
    }

    #[inline]
    fn bare(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u64,
    ) -> (Cookie, Bare) {
        let (cookie, header) = self.start(command, flags, offset, len, len);
        (cookie, Bare::bare(header))
    }

    /// Takes a slot and encodes the header. INVARIANT: the request was checked.
    #[inline(always)]
    fn start(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u64,
        len_on_wire: u64,
    ) -> (Cookie, Header) {
        let cookie = self.slots.take(command, flags, offset, len);
        let flags = match (self.mode, command) {
            (HeaderStyle::Extended, Command::Write) => flags | CommandFlags::PAYLOAD_LEN,
            _ => flags,
        };
        let cookie_on_wire = cookie.as_u64();
        let header = RequestHeader {
            flags,
            command,
            cookie: cookie_on_wire,
            offset,
            len: len_on_wire,
        };
        (cookie, header.encode(self.mode))
    }
}
