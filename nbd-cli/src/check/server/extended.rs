//! Extended headers, an experimental extension.

use super::{INVALID, Rule, Server, extended as rule, goes_on, may_write, refuses, still_serves};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, not, should},
    wire::{Request, Style, command, errno, export, flag, option, rep},
};

const TYPES: &str = "Option types";
const REQUEST: &str = "Request message";
const REPLY: &str = "Extended reply chunk message";
const STATUS: &str = "Request types";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-110",
        Must,
        "reads by extended replies are the same as by others",
        REPLY,
        reads,
    ),
    rule(
        "S-111",
        Should,
        "NBD_OPT_EXTENDED_HEADERS with data: NBD_REP_ERR_INVALID",
        TYPES,
        with_data,
    ),
    rule(
        "S-112",
        Must,
        "NBD_OPT_STRUCTURED_REPLY afterwards: NBD_REP_ERR_EXT_HEADER_REQD",
        TYPES,
        downgrade,
    ),
    rule(
        "S-118",
        Own,
        "NBD_OPT_EXTENDED_HEADERS again does no harm",
        TYPES,
        again,
    ),
    rule(
        "S-114",
        Must,
        "NBD_OPT_EXPORT_NAME afterwards ends the connection",
        TYPES,
        export_name,
    ),
    rule(
        "S-142",
        Must,
        "a compact request is not obeyed",
        REQUEST,
        compact,
    ),
    rule(
        "S-177",
        Must,
        "errors come in extended replies, with the offset",
        REPLY,
        errors,
    ),
    rule(
        "S-168",
        Should,
        "a payload that no command wants is skipped",
        REQUEST,
        unwanted_payload,
    ),
    rule(
        "S-144",
        Must,
        "NBD_CMD_WRITE with NBD_CMD_FLAG_PAYLOAD_LEN",
        REQUEST,
        write,
    ),
    rule(
        "S-205",
        Must,
        "NBD_CMD_BLOCK_STATUS has extents of 64 bits",
        "Structured reply types",
        status,
    ),
    rule(
        "S-216",
        Must,
        "the upper bits of base:allocation are 0",
        "Structured reply types",
        upper_bits,
    ),
    rule(
        "S-173",
        Must,
        "a filter of contexts selects those it names",
        STATUS,
        filter,
    ),
    rule(
        "S-172",
        Should,
        "a filter with an unknown id: EINVAL",
        STATUS,
        wrong_filter,
    ),
    rule(
        "S-116",
        Should,
        "clients without extended headers are served",
        TYPES,
        others,
    ),
];

fn reads(server: &Server) -> Checked {
    let len = server.unit();
    server.has_bytes(len)?;
    // One connection after the other, because there are servers of one client at a time.
    let extended = server.enter(Style::Extended)?.read(0, len)?;
    if extended != server.enter(Style::Simple)?.read(0, len)? {
        return must("the bytes are not those of simple replies");
    }
    Ok(())
}

fn with_data(server: &Server) -> Checked {
    if !server.profile.has_extended {
        return not("the server refuses NBD_OPT_EXTENDED_HEADERS");
    }
    super::options::refuses_data(server.options()?, option::EXTENDED_HEADERS)
}

fn downgrade(server: &Server) -> Checked {
    let mut talk = server.agreed(Style::Extended)?;
    let answer = talk.ask(option::STRUCTURED_REPLY, &[])?;
    if answer.last.kind != rep::ERR_EXT_HEADER_REQD {
        return must(format!(
            "expected NBD_REP_ERR_EXT_HEADER_REQD, got {}",
            answer.name()
        ));
    }
    let mut entered = server.go(talk, Style::Extended, Vec::new())?;
    still_serves(&mut entered)
}

fn again(server: &Server) -> Checked {
    let mut talk = server.agreed(Style::Extended)?;
    talk.ask(option::EXTENDED_HEADERS, &[])?;
    goes_on(&mut talk)?;
    let mut entered = server.go(talk, Style::Extended, Vec::new())?;
    still_serves(&mut entered)
}

fn export_name(server: &Server) -> Checked {
    let mut talk = server.agreed(Style::Extended)?;
    talk.option(option::EXPORT_NAME, server.export())?;
    talk.ends("after NBD_OPT_EXPORT_NAME with extended headers")
}

fn compact(server: &Server) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter(Style::Extended)?;
    let mut request = Request::new(command::READ, 0, server.unit());
    request.cookie = 5;
    let bytes = request.bytes(Style::Structured);
    entered.send_bytes(&request, &bytes)?;
    entered.expect(request);
    entered.talk.stop_sending();
    match entered.reply() {
        Ok(reply) if reply.error == 0 => must("a compact request was obeyed"),
        Ok(_) | Err(Fault::Gone(_)) => Ok(()),
        Err(other) => Err(other),
    }
}

fn errors(server: &Server) -> Checked {
    let mut entered = server.enter(Style::Extended)?;
    let end = super::reads::end(server);
    let request = Request::new(command::READ, end, server.unit());
    refuses(&mut entered, request, INVALID)
}

fn unwanted_payload(server: &Server) -> Checked {
    let mut entered = server.enter(Style::Extended)?;
    let request = Request {
        payload: vec![b'p'; 100],
        ..Request::new(command::READ, 0, 100)
    };
    refuses(&mut entered, request, INVALID)
}

fn write(server: &Server) -> Checked {
    may_write(server)?;
    let unit = server.unit();
    server.has_bytes(unit)?;
    let mut entered = server.enter(Style::Extended)?;
    let bytes = vec![0x5a; usize::try_from(unit).unwrap_or(0)];
    let reply = entered.call(Request::write(0, bytes.clone()))?;
    if reply.error != 0 {
        return must(format!("expected success, got {}", reply.error_name()));
    }
    if entered.read(0, unit)? != bytes {
        return must("what is read is not what was written");
    }
    Ok(())
}

fn status(server: &Server) -> Checked {
    statuses(server).map(|_| ())
}

fn statuses(server: &Server) -> Checked<Vec<(u64, u64)>> {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_with_status(Style::Extended)?;
    let len = entered.size / server.block() * server.block();
    let reply = entered.call(Request::new(command::BLOCK_STATUS, 0, len))?;
    if reply.error != 0 {
        return must(format!("expected extents, got {}", reply.error_name()));
    }
    Ok(reply
        .extents
        .into_iter()
        .flat_map(|(_, extents)| extents)
        .collect())
}

fn upper_bits(server: &Server) -> Checked {
    match statuses(server)?
        .iter()
        .find(|(_, status)| status >> 32 != 0)
    {
        Some((_, status)) => must(format!("the status {status:#x}")),
        None => Ok(()),
    }
}

/// The payload of a filter.
fn filter_of(len: u64, ids: &[u32]) -> Request {
    let mut payload = len.to_be_bytes().to_vec();
    payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
    let whole = payload.len() as u64;
    Request {
        payload,
        ..Request::new(command::BLOCK_STATUS, 0, whole).with(flag::PAYLOAD_LEN)
    }
}

fn filter(server: &Server) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_with_status(Style::Extended)?;
    if entered.flags & export::STATUS_PAYLOAD == 0 {
        return not("NBD_FLAG_BLOCK_STATUS_PAYLOAD is not set");
    }
    let ids = entered.contexts.clone();
    // Its effect has a length of its own, which the rules of extents are about.
    let request = filter_of(server.unit(), &ids);
    let reply = entered.call(request)?;
    if reply.error != 0 {
        return must(format!("expected extents, got {}", reply.error_name()));
    }
    if reply.extents.len() != ids.len() {
        return must(format!(
            "{} status chunks for {} contexts",
            reply.extents.len(),
            ids.len()
        ));
    }
    Ok(())
}

fn wrong_filter(server: &Server) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_with_status(Style::Extended)?;
    if entered.flags & export::STATUS_PAYLOAD == 0 {
        return not("NBD_FLAG_BLOCK_STATUS_PAYLOAD is not set");
    }
    let request = filter_of(server.unit(), &[0xdead_beef]);
    refuses(&mut entered, request, &[errno::EINVAL])
}

fn others(server: &Server) -> Checked {
    if !server.profile.has_extended {
        return not("the server refuses NBD_OPT_EXTENDED_HEADERS");
    }
    match server.enter(Style::Simple) {
        Err(Fault::Must(text)) => should(text),
        entered => still_serves(&mut entered?),
    }
}
