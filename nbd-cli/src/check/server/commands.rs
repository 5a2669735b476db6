//! Commands and flags that are not to be used, and the ones that have no data.

use super::{INVALID, Rule, Server, refuses, rule, still_serves};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, not, should},
    wire::{Request, Style, command, errno, export, flag},
};

const TYPES: &str = "Request types";
const ERRORS: &str = "Error values";
const FLAGS: &str = "Command flags";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-147",
        Should,
        "an unknown command: EINVAL",
        ERRORS,
        unknown_command,
    ),
    rule(
        "S-148",
        Should,
        "an unknown flag: EINVAL",
        ERRORS,
        unknown_flag,
    ),
    rule(
        "S-148",
        Should,
        "NBD_CMD_FLAG_REQ_ONE with a read: EINVAL",
        ERRORS,
        inapplicable,
    ),
    rule(
        "S-148",
        Should,
        "NBD_CMD_FLAG_DF without structured replies: EINVAL",
        ERRORS,
        df,
    ),
    rule(
        "S-171",
        Should,
        "NBD_CMD_FLAG_PAYLOAD_LEN without extended headers: EINVAL",
        ERRORS,
        payload_len,
    ),
    rule(
        "S-149",
        Must,
        "NBD_CMD_FLAG_FUA with a read, if it is offered",
        FLAGS,
        fua,
    ),
    rule(
        "S-150",
        Should,
        "NBD_CMD_FLAG_FUA with a read, if it is not: EINVAL",
        ERRORS,
        no_fua,
    ),
    rule(
        "S-142",
        Must,
        "a request with a wrong magic number is not obeyed",
        "Request message",
        magic,
    ),
    rule("S-220", Must, "NBD_CMD_FLUSH has a reply", TYPES, flush),
    rule("S-226", Must, "NBD_CMD_CACHE changes nothing", TYPES, cache),
    rule(
        "S-226",
        Must,
        "NBD_CMD_CACHE with an unknown flag is refused",
        TYPES,
        cache_flag,
    ),
    rule(
        "S-166",
        Should,
        "NBD_CMD_CACHE of the whole export does not end the connection",
        "Size constraints",
        cache_all,
    ),
    rule(
        "S-159",
        Should,
        "NBD_CMD_CACHE across the end: EINVAL",
        "Size constraints",
        cache_across,
    ),
    rule(
        "S-158",
        Should,
        "NBD_CMD_CACHE of half a block: EINVAL",
        "Size constraints",
        cache_unaligned,
    ),
];

fn unknown_command(server: &Server) -> Checked {
    let mut entered = server.enter_best()?;
    refuses(&mut entered, Request::new(command::UNKNOWN, 0, 0), INVALID)
}

/// A read with a flag that it must not have.
fn read_with(server: &Server, style: Style, flags: u16) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter(style)?;
    let request = Request::new(command::READ, 0, server.unit()).with(flags);
    refuses(&mut entered, request, INVALID)
}

fn unknown_flag(server: &Server) -> Checked {
    read_with(server, server.best(), flag::UNKNOWN)
}

fn inapplicable(server: &Server) -> Checked {
    read_with(server, server.best(), flag::REQ_ONE)
}

fn df(server: &Server) -> Checked {
    read_with(server, Style::Simple, flag::DF)
}

fn payload_len(server: &Server) -> Checked {
    read_with(server, Style::Simple, flag::PAYLOAD_LEN)
}

fn fua(server: &Server) -> Checked {
    server.needs(export::FUA, "NBD_FLAG_SEND_FUA")?;
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    let request = Request::new(command::READ, 0, server.unit()).with(flag::FUA);
    let reply = entered.call(request)?;
    if reply.error != 0 {
        return must(format!("expected success, got {}", reply.error_name()));
    }
    Ok(())
}

fn no_fua(server: &Server) -> Checked {
    server.lacks(export::FUA, "NBD_FLAG_SEND_FUA")?;
    read_with(server, server.best(), flag::FUA)
}

fn magic(server: &Server) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    let mut request = Request::new(command::READ, 0, server.unit());
    request.cookie = 7;
    let mut bytes = request.bytes(entered.style);
    bytes[0] ^= 0x20;
    entered.send_bytes(&request, &bytes)?;
    entered.expect(request);
    // Without an end a server may wait for more bytes.
    entered.talk.stop_sending();
    match entered.reply() {
        Ok(reply) if reply.error == 0 => must("the request was obeyed"),
        Ok(_) | Err(Fault::Gone(_)) => Ok(()),
        Err(other) => Err(other),
    }
}

fn flush(server: &Server) -> Checked {
    server.needs(export::FLUSH, "NBD_FLAG_SEND_FLUSH")?;
    let mut entered = server.enter_best()?;
    let reply = entered.call(Request::new(command::FLUSH, 0, 0))?;
    if reply.error != 0 {
        return must(format!("expected success, got {}", reply.error_name()));
    }
    Ok(())
}

fn cache(server: &Server) -> Checked {
    let len = server.unit();
    server.needs(export::CACHE, "NBD_FLAG_SEND_CACHE")?;
    server.has_bytes(len)?;
    let mut entered = server.enter_best()?;
    let before = entered.read(0, len)?;
    // It may fail.
    entered.call(Request::new(command::CACHE, 0, len))?;
    if entered.read(0, len)? != before {
        return must("NBD_CMD_CACHE has changed what is read");
    }
    Ok(())
}

fn cache_flag(server: &Server) -> Checked {
    server.needs(export::CACHE, "NBD_FLAG_SEND_CACHE")?;
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    let request = Request::new(command::CACHE, 0, server.unit()).with(flag::UNKNOWN);
    let reply = Fault::may_leave(entered.call(request))?;
    match reply.error {
        0 => must("an unknown flag of NBD_CMD_CACHE was ignored"),
        errno::EINVAL => still_serves(&mut entered),
        _ => should(format!("expected NBD_EINVAL, got {}", reply.error_name())),
    }
}

fn cache_across(server: &Server) -> Checked {
    server.needs(export::CACHE, "NBD_FLAG_SEND_CACHE")?;
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    let unit = server.unit();
    let begin = super::reads::end(server) - unit;
    refuses(
        &mut entered,
        Request::new(command::CACHE, begin, 2 * unit),
        INVALID,
    )
}

fn cache_unaligned(server: &Server) -> Checked {
    server.needs(export::CACHE, "NBD_FLAG_SEND_CACHE")?;
    let block = server.block();
    if block == 1 {
        return not("the minimum block size is 1");
    }
    server.has_bytes(2 * block)?;
    let mut entered = server.enter_best()?;
    refuses(
        &mut entered,
        Request::new(command::CACHE, block / 2, block),
        INVALID,
    )
}

fn cache_all(server: &Server) -> Checked {
    server.needs(export::CACHE, "NBD_FLAG_SEND_CACHE")?;
    let len = server.profile.size.min(1 << 30) / server.block() * server.block();
    server.has_bytes(len.max(1))?;
    let mut entered = server.enter_best()?;
    // It may be refused, for its length or for any other reason.
    Fault::may_leave(entered.call(Request::new(command::CACHE, 0, len)))?;
    Fault::may_leave(still_serves(&mut entered))
}
