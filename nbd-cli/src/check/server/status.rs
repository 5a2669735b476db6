//! NBD_CMD_BLOCK_STATUS.

use super::{INVALID, Rule, Server, refuses, rule, still_serves};
use crate::check::{
    replies::{Entered, Reply},
    rule::{Checked, Fault, Level::*, must, not, should},
    wire::{Request, Style, command, flag},
};

const TYPES: &str = "Request types";
const CHUNKS: &str = "Structured reply types";
const ALLOCATION: &str = "`base:allocation` metadata context";

/// The most extents that are looked at.
const MOST: usize = 2000;
/// The most zeroes that are read.
const READ: u64 = 4 << 20;

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-203",
        Must,
        "NBD_CMD_BLOCK_STATUS: a status chunk for each context",
        TYPES,
        chunks,
    ),
    rule(
        "S-206",
        Must,
        "statuses lead from the beginning to the end",
        CHUNKS,
        to_the_end,
    ),
    rule(
        "S-153",
        Must,
        "NBD_CMD_FLAG_REQ_ONE: one extent within the request",
        CHUNKS,
        one,
    ),
    rule(
        "S-159",
        Should,
        "NBD_CMD_BLOCK_STATUS across the end: EINVAL",
        TYPES,
        across_end,
    ),
    rule(
        "S-157",
        Should,
        "NBD_CMD_BLOCK_STATUS of length 0 does not end the connection",
        TYPES,
        nothing,
    ),
    rule(
        "S-212",
        Should,
        "lengths are multiples of 512",
        TYPES,
        multiples,
    ),
    rule(
        "S-211",
        Should,
        "neighbouring extents differ",
        TYPES,
        neighbours,
    ),
    rule(
        "S-217",
        Should,
        "reserved bits of base:allocation are 0",
        ALLOCATION,
        reserved,
    ),
    rule(
        "S-218",
        Must,
        "extents with NBD_STATE_ZERO read as zeroes",
        ALLOCATION,
        zeroes,
    ),
];

fn entered(server: &Server) -> Checked<Entered> {
    server.has_bytes(server.unit())?;
    let style = match server.best() {
        Style::Simple => Style::Structured,
        best => best,
    };
    server.enter_with_status(style)
}

fn ask(entered: &mut Entered, offset: u64, len: u64, flags: u16) -> Checked<Reply> {
    let request = Request::new(command::BLOCK_STATUS, offset, len).with(flags);
    let reply = entered.call(request)?;
    if reply.error != 0 {
        return must(format!("expected extents, got {}", reply.error_name()));
    }
    Ok(reply)
}

/// The most that one request asks about.
fn most(server: &Server, from: u64) -> u64 {
    let left = server.profile.size - from;
    left.min(1 << 30) / server.block() * server.block()
}

/// The extents of the export, from its beginning on; and those of each reply apart.
fn extents(server: &Server) -> Checked<Vec<Vec<(u64, u64)>>> {
    let mut entered = entered(server)?;
    let (mut at, mut found, mut count) = (0, Vec::new(), 0);
    while most(server, at) > 0 && count < MOST {
        let reply = ask(&mut entered, at, most(server, at), 0)?;
        let extents = reply.extents.into_iter().next().map(|(_, extents)| extents);
        let extents = extents.unwrap_or_default();
        at += extents.iter().map(|(len, _)| len).sum::<u64>();
        count += extents.len();
        found.push(extents);
        at = at.min(server.profile.size);
    }
    Ok(found)
}

fn chunks(server: &Server) -> Checked {
    let mut entered = entered(server)?;
    ask(&mut entered, 0, most(server, 0), 0).map(|_| ())
}

fn to_the_end(server: &Server) -> Checked {
    extents(server).map(|_| ())
}

fn one(server: &Server) -> Checked {
    let mut entered = entered(server)?;
    ask(&mut entered, 0, server.unit(), flag::REQ_ONE)?;
    ask(&mut entered, 0, most(server, 0), flag::REQ_ONE).map(|_| ())
}

fn across_end(server: &Server) -> Checked {
    let mut entered = entered(server)?;
    let unit = server.unit();
    let begin = super::reads::end(server) - unit;
    let request = Request::new(command::BLOCK_STATUS, begin, 2 * unit);
    refuses(&mut entered, request, INVALID)
}

fn nothing(server: &Server) -> Checked {
    let mut entered = entered(server)?;
    let request = Request::new(command::BLOCK_STATUS, 0, 0);
    Fault::may_leave(entered.call(request))?;
    Fault::may_leave(still_serves(&mut entered))
}

fn multiples(server: &Server) -> Checked {
    let mut at = 0;
    for (len, _) in extents(server)?.concat() {
        at += len;
        if len % 512 != 0 && at < server.profile.size {
            return should(format!("an extent of {len} bytes ends at {at}"));
        }
    }
    Ok(())
}

fn neighbours(server: &Server) -> Checked {
    for extents in extents(server)? {
        if extents.windows(2).any(|pair| pair[0].1 == pair[1].1) {
            return should("two extents after one another have the same status");
        }
    }
    Ok(())
}

fn reserved(server: &Server) -> Checked {
    for (_, status) in extents(server)?.concat() {
        if status & !3 != 0 {
            return should(format!("the status {status:#x}"));
        }
    }
    Ok(())
}

fn zeroes(server: &Server) -> Checked {
    let extents = extents(server)?.concat();
    let mut entered = server.enter_best()?;
    let (mut at, mut left, mut found) = (0, READ, false);
    for (len, status) in extents {
        let len = len.min(server.profile.size - at);
        let read = len.min(left).min(1 << 20) / server.block() * server.block();
        if status & 2 != 0 && read > 0 {
            found = true;
            left -= read;
            if entered.read(at, read)?.iter().any(|byte| *byte != 0) {
                return must(format!("not all bytes are 0 in the {read} bytes at {at}"));
            }
        }
        at += len;
    }
    if found {
        Ok(())
    } else {
        not("nothing is NBD_STATE_ZERO")
    }
}
