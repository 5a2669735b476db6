//! The choice of requests that are carried out, and the answers to all others.

use super::{
    agreed::Agreed,
    request::Request,
    ticket::{Base, Reply},
};
use crate::{
    Command, CommandFlags, Errno, Error, HeaderStyle, TransmissionFlags,
    wire::{BlockStatusFilter, RequestHeader},
};
use alloc::vec::Vec;
use bytes::Bytes;

/// The decision on a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Admission {
    /// It is complete and to be carried out.
    Request,
    /// It is a write that is to be carried out when so many bytes of payload have come.
    Payload(usize),
    /// It is a block status request whose payload of so many bytes is to be looked at.
    Filter(usize),
    /// There is nothing to do, which succeeds.
    Nothing,
    /// It is refused as soon as so many bytes of payload have been skipped.
    Refused(Refusal, usize),
    /// The client wants to end the connection.
    Disconnect,
}

/// The error and the text for a request that is not carried out.
type Refusal = (Errno, &'static str);

/// Whether it is one of the requests that there are by far the most of: a read or a write that is
/// to be carried out, with no flags that would have to be looked at. [`admit`] says the same of it.
#[inline]
pub(super) fn is_ordinary(header: &RequestHeader, agreed: &Agreed) -> bool {
    let flags = match header.command {
        Command::Read => CommandFlags::NONE,
        Command::Write if agreed.flags.contains(TransmissionFlags::READ_ONLY) => return false,
        Command::Write if agreed.mode == HeaderStyle::Extended => CommandFlags::PAYLOAD_LEN,
        Command::Write => CommandFlags::NONE,
        _ => return false,
    };
    let end = header.offset.checked_add(header.len);
    header.flags == flags
        && end.is_some_and(|end| end <= agreed.size)
        && (1..=u64::from(agreed.max_payload)).contains(&header.len)
        && agreed.has_whole_blocks(header.offset, header.len)
        && usize::try_from(header.len).is_ok()
}

pub(super) fn admit(
    header: &RequestHeader,
    base: &Base,
    agreed: &Agreed,
    shutdown: bool,
) -> Result<Admission, Error> {
    let command = header.command;
    if command == Command::Disc {
        return Ok(Admission::Disconnect);
    }
    let payload = payload_len(header, agreed)?;
    let filters = command == Command::BlockStatus && payload > 0;
    let checked = if shutdown {
        Err((Errno::Shutdown, "the server is shutting down"))
    } else {
        check_command(header, agreed).and_then(|()| {
            if filters {
                check_filter_len(payload, agreed)
            } else {
                check_range(base, agreed)
            }
        })
    };
    Ok(match checked {
        Err(refusal) => Admission::Refused(refusal, payload),
        Ok(()) if filters => Admission::Filter(payload),
        Ok(()) if header.len == 0 && command != Command::Flush => Admission::Nothing,
        Ok(()) if command == Command::Write => Admission::Payload(payload),
        Ok(()) => Admission::Request,
    })
}

/// Length in bytes of the payload behind the header, also if the request is refused.
fn payload_len(header: &RequestHeader, agreed: &Agreed) -> Result<usize, Error> {
    let follows = match agreed.mode {
        HeaderStyle::Simple | HeaderStyle::Structured => header.command == Command::Write,
        // A write has to have the flag, but qemu 10 sends its payload without.
        HeaderStyle::Extended => {
            header.command == Command::Write || header.flags.contains(CommandFlags::PAYLOAD_LEN)
        }
    };
    if !follows {
        return Ok(0);
    }
    u32::try_from(header.len)
        .ok()
        .filter(|len| *len <= agreed.fatal_payload)
        .and_then(|len| usize::try_from(len).ok())
        .ok_or(Error::PayloadTooLong {
            command: header.command,
            len: header.len,
            limit: agreed.fatal_payload,
        })
}

/// Checks everything but the range.
fn check_command(header: &RequestHeader, agreed: &Agreed) -> Result<(), Refusal> {
    let offers = |flag| agreed.flags.contains(flag);
    let (offered, mut legal) = match header.command {
        Command::Read => (
            true,
            only_if(CommandFlags::DF, offers(TransmissionFlags::SEND_DF)),
        ),
        Command::Write => (true, CommandFlags::NONE),
        Command::Flush => (offers(TransmissionFlags::SEND_FLUSH), CommandFlags::NONE),
        Command::Trim => (offers(TransmissionFlags::SEND_TRIM), CommandFlags::NONE),
        Command::Cache => (offers(TransmissionFlags::SEND_CACHE), CommandFlags::NONE),
        Command::WriteZeroes => (
            offers(TransmissionFlags::SEND_WRITE_ZEROES),
            CommandFlags::NO_HOLE
                | only_if(
                    CommandFlags::FAST_ZERO,
                    offers(TransmissionFlags::SEND_FAST_ZERO),
                ),
        ),
        Command::BlockStatus => (
            !agreed.contexts.is_empty(),
            CommandFlags::REQ_ONE
                | only_if(
                    CommandFlags::PAYLOAD_LEN,
                    offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD),
                ),
        ),
        Command::Disc | Command::Resize | Command::Other(_) => {
            return Err((Errno::Inval, "the server does not know this command"));
        }
    };
    let writes = matches!(
        header.command,
        Command::Write | Command::Trim | Command::WriteZeroes
    );
    if writes && offers(TransmissionFlags::READ_ONLY) {
        return Err((Errno::Perm, "the export is read-only"));
    }
    if !offered {
        let text = if header.command == Command::BlockStatus {
            "no meta context was selected for this export"
        } else {
            "the export does not offer this command"
        };
        return Err((Errno::Inval, text));
    }
    legal = legal | only_if(CommandFlags::FUA, offers(TransmissionFlags::SEND_FUA));
    if agreed.mode == HeaderStyle::Extended && header.command == Command::Write {
        legal = legal | CommandFlags::PAYLOAD_LEN;
        if header.len == 0 {
            return Err((
                Errno::Inval,
                "NBD_CMD_FLAG_PAYLOAD_LEN came without a payload",
            ));
        }
    }
    let illegal = header.flags.without(legal);
    if illegal.is_empty() {
        return Ok(());
    }
    let known = ILLEGAL.iter().find(|(flag, _)| illegal.contains(*flag));
    let text = known.map_or(
        "the server does not know these command flags",
        |(_, text)| text,
    );
    Err((Errno::Inval, text))
}

fn only_if(flag: CommandFlags, condition: bool) -> CommandFlags {
    if condition { flag } else { CommandFlags::NONE }
}

const ILLEGAL: &[(CommandFlags, &str)] = &[
    (
        CommandFlags::FUA,
        "NBD_CMD_FLAG_FUA is not offered by the export",
    ),
    (
        CommandFlags::NO_HOLE,
        "NBD_CMD_FLAG_NO_HOLE is not possible with this command",
    ),
    (
        CommandFlags::DF,
        "NBD_CMD_FLAG_DF is not possible with this command or not offered",
    ),
    (
        CommandFlags::REQ_ONE,
        "NBD_CMD_FLAG_REQ_ONE is not possible with this command",
    ),
    (
        CommandFlags::FAST_ZERO,
        "NBD_CMD_FLAG_FAST_ZERO is not possible with this command or not offered",
    ),
    (
        CommandFlags::PAYLOAD_LEN,
        "NBD_CMD_FLAG_PAYLOAD_LEN is not possible with this command or not offered",
    ),
];

/// Checks which bytes of the export a request is about.
fn check_range(base: &Base, agreed: &Agreed) -> Result<(), Refusal> {
    let Base { offset, len, .. } = *base;
    let command = base.command;
    if command == Command::Flush {
        return if offset == 0 && len == 0 {
            Ok(())
        } else {
            Err((
                Errno::Inval,
                "NBD_CMD_FLUSH must have neither an offset nor a length",
            ))
        };
    }
    let fits = offset
        .checked_add(len)
        .is_some_and(|end| end <= agreed.size);
    if !fits {
        return Err(
            if matches!(command, Command::Write | Command::WriteZeroes) {
                (Errno::NoSpc, "the write goes past the end of the export")
            } else {
                (Errno::Inval, "the request goes past the end of the export")
            },
        );
    }
    if len == 0 && command == Command::BlockStatus {
        return Err((Errno::Inval, "block status was asked for no bytes"));
    }
    if !agreed.has_whole_blocks(offset, len) {
        return Err((
            Errno::Inval,
            "the request is no multiple of the minimum block size",
        ));
    }
    // A command that is long in the export but short on the wire is no burden.
    let travels = matches!(command, Command::Read | Command::Write);
    if travels && base.too_long {
        let errno = if command == Command::Read && agreed.mode.has_chunks() {
            Errno::Overflow
        } else {
            Errno::Inval
        };
        return Err((errno, "the request is longer than the maximum payload"));
    }
    Ok(())
}

/// Whether a filter can be as long as announced. Only then is it kept.
fn check_filter_len(payload: usize, agreed: &Agreed) -> Result<(), Refusal> {
    let ids = payload
        .checked_sub(BlockStatusFilter::FIXED)
        .filter(|ids| ids % 4 == 0)
        .map(|ids| ids / 4);
    match ids {
        Some(1..) if ids <= Some(agreed.contexts.len()) => Ok(()),
        _ => Err((
            Errno::Inval,
            "the payload does not name one or more selected meta contexts once each",
        )),
    }
}

/// A block status request with its filter, or the answer to a wrong filter.
pub(super) fn filter(base: Base, payload: &[u8], agreed: &Agreed) -> Result<Request, Reply<Bytes>> {
    let refuse =
        |(errno, text): Refusal| base.error(errno, Bytes::from_static(text.as_bytes()), None);
    let malformed = (
        Errno::Inval,
        "the payload names a meta context twice or one that was not selected",
    );
    let filter = BlockStatusFilter::decode(payload).ok_or_else(|| refuse(malformed))?;
    let base = base.with_len(filter.len, agreed);
    check_range(&base, agreed).map_err(refuse)?;
    let mut contexts = Vec::new();
    for id in filter.ids() {
        let context = agreed
            .contexts
            .iter()
            .find(|context| context.id() == id)
            .ok_or_else(|| refuse(malformed))?;
        if contexts.contains(context) {
            return Err(refuse(malformed));
        }
        contexts.push(context.clone());
    }
    let agreed = Agreed {
        contexts: contexts.into(),
        ..agreed.clone()
    };
    Ok(Request::new(base, &agreed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BlockSizes, ExportInfo,
        server::{Limits, export::Offer},
    };

    /// No flag or one of them, and where a request is.
    fn combinations(ends: &[u64]) -> impl Iterator<Item = (u16, u64, u64)> {
        (0..8).flat_map(move |flag| {
            let pairs = ends
                .iter()
                .flat_map(move |offset| ends.iter().map(move |len| (offset, len)));
            pairs.map(move |(offset, len)| (flag, *offset, *len))
        })
    }

    /// Miri is slow, and looks for something else.
    const STEP: usize = if cfg!(miri) { 97 } else { 1 };

    #[test]
    fn ordinary_requests_would_be_admitted_anyway() {
        let mut ordinary = 0;
        for (mode, read_only, minimum) in [
            (HeaderStyle::Simple, false, 1),
            (HeaderStyle::Structured, true, 512),
            (HeaderStyle::Extended, false, 512),
            (HeaderStyle::Extended, true, 1),
        ] {
            let flags = if read_only {
                TransmissionFlags::READ_ONLY
            } else {
                TransmissionFlags::SEND_FUA
            };
            let info = ExportInfo::new(1 << 20, flags);
            let limits = Limits {
                payload: 64 << 10,
                ..Limits::default()
            };
            let sizes = BlockSizes::new(minimum, 4096, 32 << 10).unwrap();
            let offer = Offer::new(&info, mode, false, &limits);
            let agreed = Agreed::new(&offer, mode, limits).with_block_sizes(sizes);
            let ends = [
                0,
                1,
                511,
                512,
                32 << 10,
                (32 << 10) + 1,
                (1 << 20) - 512,
                1 << 20,
            ];
            for command in 0..10 {
                for (bit, offset, len) in combinations(&ends).step_by(STEP) {
                    let flags = CommandFlags::from_bits(1 << bit >> 1);
                    let header = RequestHeader {
                        flags,
                        command: Command::from(command),
                        cookie: 1,
                        offset,
                        len,
                    };
                    if is_ordinary(&header, &agreed) {
                        ordinary += 1;
                        let base = Base::new(&header, &agreed);
                        let admitted = admit(&header, &base, &agreed, false).unwrap();
                        let expected = match header.command {
                            Command::Read => matches!(admitted, Admission::Request),
                            Command::Write => matches!(
                                admitted,
                                Admission::Payload(payload) if payload as u64 == len
                            ),
                            _ => false,
                        };
                        assert!(expected, "{header:?} {agreed:?} {admitted:?}");
                    }
                }
            }
        }
        assert!(ordinary > 0);
    }
}
