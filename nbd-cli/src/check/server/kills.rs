//! Data that is there after the server was killed. Faults that only a loss of power shows are not
//! checked.

use super::{
    Rule, Server, rule,
    writes::{done, enter, pattern},
};
use crate::check::{
    rule::{Checked, Level::*, must, not},
    wire::{Request, command, export, flag},
};

const TYPES: &str = "Request types";
const ORDER: &str = "Ordering of messages and writes";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-220",
        Must,
        "flushed data is there after the server was killed",
        ORDER,
        flushed,
    ),
    rule(
        "S-221",
        Must,
        "so is data that was flushed on another connection",
        "Transmission flags",
        flushed_elsewhere,
    ),
    rule(
        "S-222",
        Must,
        "so is data that was written with NBD_CMD_FLAG_FUA",
        "Command flags",
        written_with_fua,
    ),
    rule(
        "S-222",
        Must,
        "so are zeroes that were written with it",
        "Command flags",
        zeroed_with_fua,
    ),
    rule(
        "S-233",
        Own,
        "data in flight is old or new after a kill",
        TYPES,
        in_flight,
    ),
];

/// Number of writes in flight when the server is killed.
const IN_FLIGHT: u8 = 16;

/// Compares the beginning of the disk after a kill.
fn survives(server: &Server, expected: &[u8]) -> Checked {
    server.restart()?;
    let mut entered = server.enter_best()?;
    let found = entered.read(0, expected.len() as u64)?;
    entered.disconnect()?;
    let wrong = found
        .iter()
        .zip(expected)
        .position(|(one, other)| one != other);
    match wrong {
        Some(at) => must(format!("byte {at} is not the one that was written")),
        None => Ok(()),
    }
}

/// Old data is on the disk, and stays there.
fn prepared(server: &Server, seed: u8) -> Checked {
    let mut entered = enter(server)?;
    done(
        &mut entered,
        Request::write(0, pattern(3 * server.unit(), seed)),
    )?;
    if server.has(export::FLUSH) {
        done(&mut entered, Request::new(command::FLUSH, 0, 0))?;
    }
    entered.disconnect()
}

fn flushed(server: &Server) -> Checked {
    server.can_restart()?;
    server.needs(export::FLUSH, "NBD_FLAG_SEND_FLUSH")?;
    prepared(server, 0x12)?;
    let mut entered = enter(server)?;
    let new = pattern(3 * server.unit(), 0xed);
    done(&mut entered, Request::write(0, new.clone()))?;
    done(&mut entered, Request::new(command::FLUSH, 0, 0))?;
    survives(server, &new)
}

fn flushed_elsewhere(server: &Server) -> Checked {
    server.can_restart()?;
    server.needs(export::FLUSH, "NBD_FLAG_SEND_FLUSH")?;
    server.needs(export::MULTI_CONN, "NBD_FLAG_CAN_MULTI_CONN")?;
    prepared(server, 0x23)?;
    let mut writer = enter(server)?;
    let mut other = enter(server)?;
    let new = pattern(3 * server.unit(), 0xdc);
    done(&mut writer, Request::write(0, new.clone()))?;
    done(&mut other, Request::new(command::FLUSH, 0, 0))?;
    survives(server, &new)
}

fn written_with_fua(server: &Server) -> Checked {
    server.can_restart()?;
    server.needs(export::FUA, "NBD_FLAG_SEND_FUA")?;
    prepared(server, 0x34)?;
    let mut entered = enter(server)?;
    let new = pattern(3 * server.unit(), 0xcb);
    done(&mut entered, Request::write(0, new.clone()).with(flag::FUA))?;
    survives(server, &new)
}

fn zeroed_with_fua(server: &Server) -> Checked {
    server.can_restart()?;
    server.needs(export::FUA, "NBD_FLAG_SEND_FUA")?;
    server.needs(export::WRITE_ZEROES, "NBD_FLAG_SEND_WRITE_ZEROES")?;
    prepared(server, 0x45)?;
    let mut entered = enter(server)?;
    let unit = server.unit();
    let zeroes = Request::new(command::WRITE_ZEROES, unit, unit);
    done(&mut entered, zeroes.with(flag::FUA))?;
    let mut expected = pattern(3 * unit, 0x45);
    let unit = usize::try_from(unit).unwrap_or(0);
    if let Some(middle) = expected.get_mut(unit..2 * unit) {
        middle.fill(0);
    }
    survives(server, &expected)
}

fn in_flight(server: &Server) -> Checked {
    server.can_restart()?;
    let unit = server.unit();
    if server.profile.size < unit * u64::from(IN_FLIGHT) {
        return not(format!("the export has {} bytes", server.profile.size));
    }
    let mut entered = enter(server)?;
    let len = unit * u64::from(IN_FLIGHT);
    let old = entered.read(0, len)?;
    for number in 0..IN_FLIGHT {
        let data = pattern(unit, 0x80 | number);
        entered.send(Request::write(u64::from(number) * unit, data))?;
    }
    server.restart()?;
    let mut entered = server.enter_best()?;
    let found = entered.read(0, len)?;
    entered.disconnect()?;
    let unit = usize::try_from(unit).unwrap_or(1);
    let blocks = found.chunks(unit).zip(old.chunks(unit)).zip(0..);
    for ((found, old), number) in blocks {
        if found != old && found != pattern(unit as u64, 0x80 | number) {
            return must(format!("block {number} is neither old nor new"));
        }
    }
    Ok(())
}
