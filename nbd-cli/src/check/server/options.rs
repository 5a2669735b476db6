//! Options in general.

use super::{Rule, Server, goes_on, is_refused, rule};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, not, should},
    talk::{Answer, Talk},
    wire::{self, Fields, option, rep},
};

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-019",
        Must,
        "an unknown option: NBD_REP_ERR_UNSUP, and it goes on",
        "Baseline",
        unknown,
    ),
    rule(
        "S-018",
        Must,
        "the data of an unknown option is skipped",
        "Newstyle negotiation",
        unknown_data,
    ),
    rule(
        "S-018",
        Own,
        "so are 64 KiB of data",
        "Newstyle negotiation",
        much_data,
    ),
    rule(
        "S-019",
        Must,
        "the withdrawn option 4 is an unknown one",
        "Option types",
        peek_export,
    ),
    rule(
        "S-020",
        Must,
        "many refusals do not end the connection",
        "Termination of the session during option haggling",
        many,
    ),
    rule(
        "S-026",
        Must,
        "messages of errors are strings",
        "Option reply types",
        messages,
    ),
    rule(
        "S-034",
        Must,
        "NBD_OPT_LIST: exports, then NBD_REP_ACK",
        "Option types",
        list,
    ),
    rule(
        "S-038",
        Must,
        "NBD_REP_SERVER: lengths and strings",
        "Option reply types",
        entries,
    ),
    rule(
        "S-035",
        Should,
        "NBD_OPT_LIST with data: NBD_REP_ERR_INVALID",
        "Option types",
        list_with_data,
    ),
    rule(
        "S-031",
        Must,
        "NBD_OPT_ABORT: NBD_REP_ACK",
        "Option types",
        abort,
    ),
    rule(
        "S-032",
        Should,
        "NBD_OPT_ABORT with data: NBD_REP_ACK",
        "Option types",
        abort_with_data,
    ),
    rule(
        "S-107",
        Should,
        "NBD_OPT_STRUCTURED_REPLY with data: NBD_REP_ERR_INVALID",
        "Option types",
        structured_with_data,
    ),
    rule(
        "S-025",
        May,
        "NBD_OPT_STRUCTURED_REPLY again does no harm",
        "Fixed newstyle negotiation",
        structured_twice,
    ),
];

/// The server implements no such option.
fn is_unknown(mut talk: Talk, code: u32, data: &[u8]) -> Checked {
    let answer = talk.ask(code, data)?;
    goes_on(&mut talk)?;
    match answer.last.kind {
        rep::ERR_UNSUP if answer.before.is_empty() => Ok(()),
        kind if kind >> 31 == 1 => {
            must(format!("expected NBD_REP_ERR_UNSUP, got {}", answer.name()))
        }
        _ => must(format!(
            "an option that does not exist is answered by {}",
            answer.name()
        )),
    }
}

fn unknown(server: &Server) -> Checked {
    is_unknown(server.options()?, option::UNKNOWN, &[])
}

fn unknown_data(server: &Server) -> Checked {
    // Not a multiple of anything that a server may read at once.
    is_unknown(server.options()?, option::UNKNOWN, &[b'I'; 1021])
}

fn much_data(server: &Server) -> Checked {
    let talk = server.options()?;
    Fault::may_leave(is_unknown(talk, option::UNKNOWN, &vec![b'I'; 64 << 10]))
}

fn peek_export(server: &Server) -> Checked {
    is_unknown(server.options()?, option::PEEK_EXPORT, &[])
}

fn many(server: &Server) -> Checked {
    let mut talk = server.options()?;
    for _ in 0..30 {
        talk.ask(option::UNKNOWN, &[])?;
    }
    goes_on(&mut talk)
}

fn messages(server: &Server) -> Checked {
    let mut talk = server.options()?;
    let unknown = talk.ask(option::UNKNOWN, &[])?;
    let data = wire::info_data(super::info::NO_EXPORT, &[]);
    let no_export = talk.ask(option::INFO, &data)?;
    let texts = [unknown, no_export].map(|answer| answer.last.data);
    if texts.iter().all(Vec::is_empty) {
        return not("errors have no messages");
    }
    texts
        .iter()
        .try_for_each(|text| is_string(text, "a message"))
}

/// Bytes are a string of the specification.
pub(super) fn is_string(bytes: &[u8], what: &str) -> Checked {
    if bytes.len() > 4096 {
        return must(format!(
            "{what} of {} bytes, of which 4096 are allowed",
            bytes.len()
        ));
    }
    if bytes.contains(&0) || std::str::from_utf8(bytes).is_err() {
        return must(format!("{what} has a NUL or is no UTF-8"));
    }
    Ok(())
}

fn listed(server: &Server) -> Checked<Answer> {
    let mut talk = server.options()?;
    let answer = talk.ask(option::LIST, &[])?;
    goes_on(&mut talk)?;
    match answer.last.kind {
        rep::ACK => Ok(answer),
        rep::ERR_POLICY => not("the server keeps its exports secret"),
        _ => must(format!("expected NBD_REP_ACK, got {}", answer.name())),
    }
}

fn list(server: &Server) -> Checked {
    let answer = listed(server)?;
    if answer.before.iter().any(|reply| reply.kind != rep::SERVER) {
        return must("expected NBD_REP_SERVER, got another reply");
    }
    Ok(())
}

fn entries(server: &Server) -> Checked {
    let answer = listed(server)?;
    if answer.before.is_empty() {
        return not("no exports are listed");
    }
    answer.before.iter().try_for_each(|reply| {
        let mut fields = Fields(&reply.data);
        let Some(name) = fields.counted() else {
            return must("the name is longer than the reply");
        };
        is_string(name, "a name")?;
        is_string(fields.0, "a description")
    })
}

/// The option must not have data: it is refused, and the data is skipped.
pub(super) fn refuses_data(mut talk: Talk, code: u32) -> Checked {
    let answer = Fault::may_leave(talk.ask(code, b"data"))?;
    Fault::may_leave(goes_on(&mut talk))?;
    is_refused(&answer, &[rep::ERR_INVALID])
}

fn list_with_data(server: &Server) -> Checked {
    refuses_data(server.options()?, option::LIST)
}

/// The option is answered by NBD_REP_ACK.
fn is_acked(mut talk: Talk, code: u32, data: &[u8]) -> Checked {
    let answer = talk.ask(code, data)?;
    if !answer.is_ack() {
        return must(format!("expected NBD_REP_ACK, got {}", answer.name()));
    }
    Ok(())
}

fn abort(server: &Server) -> Checked {
    is_acked(server.options()?, option::ABORT, &[])
}

fn abort_with_data(server: &Server) -> Checked {
    match is_acked(server.options()?, option::ABORT, b"data") {
        Err(Fault::Must(text) | Fault::Gone(text)) => should(text),
        other => other,
    }
}

fn structured_with_data(server: &Server) -> Checked {
    if !server.profile.has_structured && !server.profile.forces_tls {
        return not("the server refuses NBD_OPT_STRUCTURED_REPLY");
    }
    refuses_data(server.options()?, option::STRUCTURED_REPLY)
}

fn structured_twice(server: &Server) -> Checked {
    let mut talk = server.agreed(wire::Style::Structured)?;
    let answer = talk.ask(option::STRUCTURED_REPLY, &[])?;
    if !answer.is_ack() && answer.last.kind != rep::ERR_INVALID {
        return should(format!(
            "expected NBD_REP_ACK or NBD_REP_ERR_INVALID, got {}",
            answer.name()
        ));
    }
    // It is still agreed on.
    let mut entered = server.go(talk, wire::Style::Structured, Vec::new())?;
    super::still_serves(&mut entered)
}
