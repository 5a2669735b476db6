//! NBD_CMD_READ and the common rules of all replies.

use super::{INVALID, Rule, Server, refuses, rule, still_serves};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, not, should},
    wire::{Request, Style, command, errno, export, flag},
};

const TYPES: &str = "Request types";
const ERRORS: &str = "Error values";
const TRANSMISSION: &str = "Transmission";
const SIZES: &str = "Size constraints";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-174",
        Must,
        "reads by simple replies, at the beginning and the end",
        "Simple reply message",
        simple,
    ),
    rule(
        "S-188",
        Must,
        "reads by structured replies cover the range and are the same",
        TYPES,
        structured,
    ),
    rule(
        "S-143",
        Must,
        "cookies come back as they were",
        TRANSMISSION,
        cookies,
    ),
    rule(
        "S-219",
        Must,
        "of many requests in flight each has one reply",
        TRANSMISSION,
        many,
    ),
    rule(
        "S-159",
        Should,
        "a read at the end of the export: EINVAL",
        ERRORS,
        at_end,
    ),
    rule(
        "S-159",
        Should,
        "a read across the end: EINVAL",
        ERRORS,
        across_end,
    ),
    rule(
        "S-159",
        Should,
        "a read whose end is above 2^64: EINVAL",
        ERRORS,
        overflow,
    ),
    rule(
        "S-157",
        Should,
        "a read of length 0 does not end the connection",
        TYPES,
        nothing,
    ),
    rule(
        "S-158",
        Should,
        "a read of half a block: EINVAL",
        SIZES,
        unaligned,
    ),
    rule(
        "S-101",
        Should,
        "a read of 32 MiB, or as much as there is",
        SIZES,
        long,
    ),
    rule(
        "S-190",
        May,
        "a read above the maximum payload: data, or an error",
        TYPES,
        above_maximum,
    ),
    rule(
        "S-196",
        Must,
        "NBD_CMD_FLAG_DF: 64 KiB in one piece",
        TYPES,
        in_one_piece,
    ),
    rule(
        "S-095",
        Must,
        "two connections to an export with CAN_MULTI_CONN",
        "Transmission flags",
        two,
    ),
];

fn both_ends(server: &Server, style: Style) -> Checked<[Vec<u8>; 2]> {
    let len = server.unit();
    server.has_bytes(len)?;
    let mut entered = server.enter(style)?;
    let last = (entered.size - len) / server.block() * server.block();
    Ok([entered.read(0, len)?, entered.read(last, len)?])
}

fn simple(server: &Server) -> Checked {
    both_ends(server, Style::Simple).map(|_| ())
}

fn structured(server: &Server) -> Checked {
    let expected = both_ends(server, Style::Simple)?;
    if both_ends(server, Style::Structured)? != expected {
        return must("the bytes are not those of simple replies");
    }
    Ok(())
}

fn cookies(server: &Server) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    for cookie in [u64::MAX, 1, 0x0102_0304_0506_0708, 0x8000_0000_0000_0000] {
        let mut request = Request::new(command::READ, 0, server.unit());
        request.cookie = cookie;
        // A reply with another cookie fails as one.
        entered.call(request)?;
    }
    Ok(())
}

fn many(server: &Server) -> Checked {
    let len = server.unit();
    server.has_bytes(len)?;
    let mut entered = server.enter_best()?;
    let places = (entered.size / len).min(16);
    let mut cookies = Vec::new();
    for at in 0..16 {
        cookies.push(entered.send(Request::new(command::READ, at % places * len, len))?);
    }
    for _ in 0..16 {
        let reply = entered.reply()?;
        if reply.error != 0 {
            return must(format!("one of many reads fails: {}", reply.error_name()));
        }
        cookies.retain(|cookie| *cookie != reply.cookie);
    }
    if !cookies.is_empty() {
        return must(format!("{} requests have no reply", cookies.len()));
    }
    // Another reply to one of them would have the wrong cookie here.
    still_serves(&mut entered)
}

/// A read outside the export fails.
fn is_outside(server: &Server, offset: u64, len: u64) -> Checked {
    let mut entered = server.enter_best()?;
    refuses(
        &mut entered,
        Request::new(command::READ, offset, len),
        INVALID,
    )
}

/// The end of the export, where requests can begin.
pub(super) fn end(server: &Server) -> u64 {
    server.profile.size.next_multiple_of(server.block())
}

fn at_end(server: &Server) -> Checked {
    is_outside(server, end(server), server.unit())
}

fn across_end(server: &Server) -> Checked {
    let unit = server.unit();
    server.has_bytes(unit)?;
    is_outside(server, end(server) - unit, 2 * unit)
}

fn overflow(server: &Server) -> Checked {
    let unit = server.unit();
    is_outside(server, 0_u64.wrapping_sub(unit), 2 * unit)
}

fn nothing(server: &Server) -> Checked {
    let mut entered = server.enter_best()?;
    Fault::may_leave(entered.call(Request::new(command::READ, 0, 0)))?;
    Fault::may_leave(still_serves(&mut entered))
}

fn unaligned(server: &Server) -> Checked {
    let block = server.block();
    if block == 1 {
        return not("the minimum block size is 1");
    }
    server.has_bytes(2 * block)?;
    let mut entered = server.enter_best()?;
    refuses(
        &mut entered,
        Request::new(command::READ, block / 2, block),
        INVALID,
    )
}

fn long(server: &Server) -> Checked {
    let most = server
        .profile
        .sizes
        .map_or(1 << 25, |[.., maximum]| maximum.min(1 << 25));
    let len = server.profile.size.min(most.into()) / server.block() * server.block();
    server.has_bytes(len.max(1))?;
    let mut entered = server.enter_best()?;
    match entered.call(Request::new(command::READ, 0, len))?.error {
        0 => Ok(()),
        error => should(format!(
            "expected {len} bytes, got {}",
            crate::check::replies::error_name(error)
        )),
    }
}

fn above_maximum(server: &Server) -> Checked {
    let most = server
        .profile
        .sizes
        .map_or(u64::MAX, |[.., maximum]| maximum.into());
    let len = most.saturating_add(1).next_multiple_of(server.block());
    if most > 1 << 25 || server.profile.size < len {
        return not("the maximum payload is above the size, or above 32 MiB");
    }
    let mut entered = server.enter(Style::Structured)?;
    // A longer chunk than the maximum would be a fault of its own, but one chunk need not have all.
    let reply = entered.call(Request::new(command::READ, 0, len))?;
    if ![0, errno::EOVERFLOW, errno::EINVAL].contains(&reply.error) {
        return should(format!(
            "expected data, NBD_EOVERFLOW or NBD_EINVAL, got {}",
            reply.error_name()
        ));
    }
    still_serves(&mut entered)
}

fn in_one_piece(server: &Server) -> Checked {
    let mut entered = server.enter(Style::Structured)?;
    if entered.flags & export::DF == 0 {
        return not("NBD_FLAG_SEND_DF is not set");
    }
    let len = entered.size.min(65_536) / server.block() * server.block();
    server.has_bytes(len.max(1))?;
    // More than one chunk with content fails as a reply.
    let request = Request::new(command::READ, 0, len).with(flag::DF);
    let reply = entered.call(request)?;
    if reply.error != 0 {
        return must(format!("expected {len} bytes, got {}", reply.error_name()));
    }
    let longer = entered.size.min(1 << 20) / server.block() * server.block();
    let request = Request::new(command::READ, 0, longer).with(flag::DF);
    let reply = entered.call(request)?;
    if ![0, errno::EOVERFLOW, errno::EINVAL].contains(&reply.error) {
        return should(format!(
            "expected {longer} bytes or NBD_EOVERFLOW, got {}",
            reply.error_name()
        ));
    }
    Ok(())
}

fn two(server: &Server) -> Checked {
    server.needs(export::MULTI_CONN, "NBD_FLAG_CAN_MULTI_CONN")?;
    let mut first = server.enter_best()?;
    let mut second = server.enter_best()?;
    if (first.size, first.flags) != (second.size, second.flags) {
        return should("the second connection has another size or other flags");
    }
    still_serves(&mut first)?;
    still_serves(&mut second)
}
