//! Commands that write, which are sent with `--write` only.

use super::{INVALID, Rule, Server, may_write, refuses, rule, scratch, still_serves};
use crate::check::{
    replies::{Entered, error_name},
    rule::{Checked, Fault, Level::*, must, not, should},
    wire::{Request, command, errno, export, flag},
};

const TYPES: &str = "Request types";
const ERRORS: &str = "Error values";
const FLAGS: &str = "Command flags";
const SIZES: &str = "Size constraints";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-223",
        Must,
        "written data is read back, and nothing beside it changes",
        TYPES,
        write,
    ),
    rule(
        "S-222",
        Must,
        "NBD_CMD_WRITE with NBD_CMD_FLAG_FUA",
        FLAGS,
        write_fua,
    ),
    rule(
        "S-159",
        Should,
        "a write at the end: ENOSPC, and its payload is skipped",
        ERRORS,
        at_end,
    ),
    rule(
        "S-159",
        Should,
        "a write across the end: ENOSPC",
        ERRORS,
        across_end,
    ),
    rule(
        "S-159",
        Should,
        "a write whose end is above 2^64: ENOSPC",
        ERRORS,
        overflow,
    ),
    rule(
        "S-148",
        Should,
        "a write with an unknown flag: EINVAL, and its payload is skipped",
        ERRORS,
        unknown_flag,
    ),
    rule(
        "S-158",
        Should,
        "a write of half a block: EINVAL",
        SIZES,
        unaligned,
    ),
    rule(
        "S-157",
        Should,
        "a write of length 0 does not end the connection",
        TYPES,
        nothing,
    ),
    rule(
        "S-101",
        Should,
        "a write of 256 KiB, or as much as there is",
        SIZES,
        long,
    ),
    rule(
        "S-091",
        Must,
        "a write to a read-only export fails",
        "Transmission flags",
        read_only,
    ),
    rule(
        "S-160",
        Should,
        "a write to a read-only export: EPERM",
        ERRORS,
        read_only_perm,
    ),
    rule(
        "S-225",
        Must,
        "NBD_CMD_WRITE_ZEROES reads as zeroes",
        TYPES,
        zeroes,
    ),
    rule(
        "S-151",
        Must,
        "NBD_CMD_WRITE_ZEROES with NBD_CMD_FLAG_NO_HOLE",
        FLAGS,
        no_hole,
    ),
    rule(
        "S-155",
        Must,
        "NBD_CMD_FLAG_FAST_ZERO: ENOTSUP, or done",
        TYPES,
        fast_zero,
    ),
    rule(
        "S-154",
        Should,
        "NBD_CMD_FLAG_FAST_ZERO without an offer: EINVAL",
        TYPES,
        no_fast_zero,
    ),
    rule(
        "S-159",
        Should,
        "NBD_CMD_WRITE_ZEROES across the end: ENOSPC",
        TYPES,
        zeroes_across,
    ),
    rule(
        "S-224",
        Must,
        "NBD_CMD_TRIM changes nothing beside its range",
        TYPES,
        trim,
    ),
    rule(
        "S-159",
        Should,
        "NBD_CMD_TRIM across the end: EINVAL",
        ERRORS,
        trim_across,
    ),
    rule(
        "S-157",
        Should,
        "NBD_CMD_TRIM and WRITE_ZEROES of length 0 do not end it",
        TYPES,
        no_range,
    ),
    rule(
        "S-221",
        Must,
        "CAN_MULTI_CONN: other connections see flushed data",
        "Transmission flags",
        multi_conn,
    ),
    rule(
        "S-233",
        Own,
        "a write that ends early does not invent bytes",
        TYPES,
        half_a_write,
    ),
];

/// Bytes that are nothing else's.
pub(super) fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1] ^ seed)
        .collect()
}

pub(super) fn enter(server: &Server) -> Checked<Entered> {
    may_write(server)?;
    server.has_bytes(3 * server.unit())?;
    server.enter_best()
}

pub(super) fn done(entered: &mut Entered, request: Request) -> Checked {
    let what = request.meaning();
    let reply = entered.call(request)?;
    if reply.error != 0 {
        return must(format!(
            "{what}: expected success, got {}",
            reply.error_name()
        ));
    }
    Ok(())
}

/// Three units, of which the middle one is written to.
fn written(server: &Server, entered: &mut Entered, flags: u16) -> Checked<Vec<u8>> {
    let unit = server.unit();
    let all = pattern(3 * unit, 0x11);
    done(entered, Request::write(0, all.clone()))?;
    done(
        entered,
        Request::write(unit, pattern(unit, 0xee)).with(flags),
    )?;
    Ok(all)
}

/// Of three units the middle one is something else now.
fn middle_is(server: &Server, entered: &mut Entered, all: &[u8], middle: &[u8]) -> Checked {
    let unit = usize::try_from(server.unit()).unwrap_or(0);
    let expected = [&all[..unit], middle, &all[2 * unit..]].concat();
    if entered.read(0, expected.len() as u64)? != expected {
        return must("what is read is not what was written");
    }
    Ok(())
}

fn write(server: &Server) -> Checked {
    let mut entered = enter(server)?;
    let all = written(server, &mut entered, 0)?;
    middle_is(server, &mut entered, &all, &pattern(server.unit(), 0xee))
}

fn write_fua(server: &Server) -> Checked {
    server.needs(export::FUA, "NBD_FLAG_SEND_FUA")?;
    let mut entered = enter(server)?;
    let all = written(server, &mut entered, flag::FUA)?;
    middle_is(server, &mut entered, &all, &pattern(server.unit(), 0xee))
}

/// A write outside the export fails.
fn is_outside(server: &Server, offset: u64, len: u64) -> Checked {
    let mut entered = enter(server)?;
    let request = Request::write(offset, pattern(len, 1));
    refuses(&mut entered, request, &[errno::ENOSPC])
}

fn at_end(server: &Server) -> Checked {
    is_outside(server, super::reads::end(server), server.unit())
}

fn across_end(server: &Server) -> Checked {
    let mut entered = enter(server)?;
    let unit = server.unit();
    let begin = super::reads::end(server) - unit;
    // The same bytes, in case that they are written.
    let bytes = [entered.read(begin, unit)?, pattern(unit, 1)].concat();
    refuses(&mut entered, Request::write(begin, bytes), &[errno::ENOSPC])
}

fn overflow(server: &Server) -> Checked {
    let unit = server.unit();
    is_outside(server, 0_u64.wrapping_sub(unit), 2 * unit)
}

fn unknown_flag(server: &Server) -> Checked {
    let mut entered = enter(server)?;
    let all = pattern(3 * server.unit(), 0x22);
    done(&mut entered, Request::write(0, all.clone()))?;
    let request = Request::write(0, pattern(server.unit(), 0x33)).with(flag::UNKNOWN);
    refuses(&mut entered, request, INVALID)?;
    if entered.read(0, 3 * server.unit())? != all {
        return must("a write that was refused has written");
    }
    Ok(())
}

fn unaligned(server: &Server) -> Checked {
    let block = server.block();
    if block == 1 {
        return not("the minimum block size is 1");
    }
    let mut entered = enter(server)?;
    let bytes = entered.read(0, block)?;
    refuses(&mut entered, Request::write(block / 2, bytes), INVALID)
}

fn nothing(server: &Server) -> Checked {
    let mut entered = enter(server)?;
    Fault::may_leave(entered.call(Request::write(0, Vec::new())))?;
    Fault::may_leave(still_serves(&mut entered))
}

fn long(server: &Server) -> Checked {
    let mut entered = enter(server)?;
    let all = pattern(scratch::len(server), 0x44);
    done(&mut entered, Request::write(0, all.clone()))?;
    if entered.read(0, all.len() as u64)? != all {
        return must("what is read is not what was written");
    }
    Ok(())
}

/// The error of writing to a read-only export the very bytes that are there.
fn write_to_read_only(server: &Server) -> Checked<u32> {
    server.needs(export::READ_ONLY, "NBD_FLAG_READ_ONLY")?;
    if !server.writes {
        return not("needs --write");
    }
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    let bytes = entered.read(0, server.unit())?;
    let reply = Fault::may_leave(entered.call(Request::write(0, bytes)))?;
    Fault::may_leave(still_serves(&mut entered))?;
    Ok(reply.error)
}

fn read_only(server: &Server) -> Checked {
    match write_to_read_only(server)? {
        0 => must("a write to a read-only export succeeds"),
        _ => Ok(()),
    }
}

fn read_only_perm(server: &Server) -> Checked {
    match write_to_read_only(server)? {
        errno::EPERM => Ok(()),
        error => should(format!("expected NBD_EPERM, got {}", error_name(error))),
    }
}

fn zeroed(server: &Server, flags: u16) -> Checked {
    server.needs(export::WRITE_ZEROES, "NBD_FLAG_SEND_WRITE_ZEROES")?;
    let mut entered = enter(server)?;
    let unit = server.unit();
    let all = written(server, &mut entered, 0)?;
    done(
        &mut entered,
        Request::new(command::WRITE_ZEROES, unit, unit).with(flags),
    )?;
    let zeroes = vec![0; usize::try_from(unit).unwrap_or(0)];
    middle_is(server, &mut entered, &all, &zeroes)
}

fn zeroes(server: &Server) -> Checked {
    zeroed(server, 0)
}

fn no_hole(server: &Server) -> Checked {
    zeroed(server, flag::NO_HOLE)
}

fn fast_zero(server: &Server) -> Checked {
    server.needs(export::FAST_ZERO, "NBD_FLAG_SEND_FAST_ZERO")?;
    let mut entered = enter(server)?;
    let unit = server.unit();
    let all = written(server, &mut entered, 0)?;
    let request = Request::new(command::WRITE_ZEROES, unit, unit).with(flag::FAST_ZERO);
    let middle = match entered.call(request)?.error {
        0 => vec![0; usize::try_from(unit).unwrap_or(0)],
        errno::ENOTSUP => pattern(unit, 0xee),
        error => {
            return must(format!(
                "expected success or NBD_ENOTSUP, got {}",
                error_name(error)
            ));
        }
    };
    middle_is(server, &mut entered, &all, &middle)
}

fn no_fast_zero(server: &Server) -> Checked {
    server.lacks(export::FAST_ZERO, "NBD_FLAG_SEND_FAST_ZERO")?;
    server.needs(export::WRITE_ZEROES, "NBD_FLAG_SEND_WRITE_ZEROES")?;
    let mut entered = enter(server)?;
    let request = Request::new(command::WRITE_ZEROES, 0, server.unit());
    refuses(&mut entered, request.with(flag::FAST_ZERO), INVALID)
}

/// A command without payload that begins inside the export and ends outside.
fn across(server: &Server, command: u16, expected: &[u32]) -> Checked {
    let mut entered = enter(server)?;
    let unit = server.unit();
    let begin = super::reads::end(server) - unit;
    let before = entered.read(begin, unit)?;
    let refused = refuses(
        &mut entered,
        Request::new(command, begin, 2 * unit),
        expected,
    );
    // In case that it was done.
    if refused.is_err() {
        entered.call(Request::write(begin, before))?;
    }
    refused
}

fn zeroes_across(server: &Server) -> Checked {
    server.needs(export::WRITE_ZEROES, "NBD_FLAG_SEND_WRITE_ZEROES")?;
    across(server, command::WRITE_ZEROES, &[errno::ENOSPC])
}

fn trim(server: &Server) -> Checked {
    server.needs(export::TRIM, "NBD_FLAG_SEND_TRIM")?;
    let mut entered = enter(server)?;
    let unit = server.unit();
    let all = written(server, &mut entered, 0)?;
    done(&mut entered, Request::new(command::TRIM, unit, unit))?;
    let middle = entered.read(unit, unit)?;
    middle_is(server, &mut entered, &all, &middle)
}

fn trim_across(server: &Server) -> Checked {
    server.needs(export::TRIM, "NBD_FLAG_SEND_TRIM")?;
    across(server, command::TRIM, INVALID)
}

fn no_range(server: &Server) -> Checked {
    let commands = [
        (command::TRIM, export::TRIM),
        (command::WRITE_ZEROES, export::WRITE_ZEROES),
    ];
    if commands.iter().all(|(_, flag)| !server.has(*flag)) {
        return not("neither is offered");
    }
    let mut entered = enter(server)?;
    for (command, flag) in commands {
        if server.has(flag) {
            Fault::may_leave(entered.call(Request::new(command, 0, 0)))?;
        }
    }
    Fault::may_leave(still_serves(&mut entered))
}

fn multi_conn(server: &Server) -> Checked {
    server.needs(export::MULTI_CONN, "NBD_FLAG_CAN_MULTI_CONN")?;
    let mut writer = enter(server)?;
    let mut reader = server.enter_best()?;
    let unit = server.unit();
    for seed in [0x55, 0xaa] {
        // Data that the reader may keep is old afterwards.
        reader.read(0, unit)?;
        done(&mut writer, Request::write(0, pattern(unit, seed)))?;
        if server.has(export::FLUSH) {
            done(&mut writer, Request::new(command::FLUSH, 0, 0))?;
        }
        if reader.read(0, unit)? != pattern(unit, seed) {
            return must("another connection does not see what was written and flushed");
        }
    }
    Ok(())
}

fn half_a_write(server: &Server) -> Checked {
    let mut entered = enter(server)?;
    let unit = server.unit();
    done(&mut entered, Request::write(0, pattern(unit, 0x66)))?;
    let mut request = Request::write(0, pattern(unit, 0x77));
    request.cookie = 9;
    let bytes = request.bytes(entered.style);
    entered.send_bytes(&request, &bytes[..bytes.len() - 1])?;
    entered.talk.cut();
    let mut other = server.enter_best()?;
    if other.read(0, unit)? == pattern(unit, 0x77) {
        return must("a byte was written that was never sent");
    }
    Ok(())
}
