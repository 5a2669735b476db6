//! NBD_OPT_STARTTLS and its effects.

use super::{Rule, Server, goes_on, rule};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, not, should},
    talk::Talk,
    wire::{self, Style, export, option, rep},
};

const NOTLS: &str = "NOTLS mode";
const FORCED: &str = "FORCEDTLS mode";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-045",
        Must,
        "without TLS NBD_OPT_STARTTLS is refused",
        NOTLS,
        refused,
    ),
    rule(
        "S-046",
        Must,
        "without TLS no option needs it",
        NOTLS,
        never_required,
    ),
    rule(
        "S-047",
        Should,
        "NBD_OPT_STARTTLS with data: NBD_REP_ERR_INVALID",
        "Option types",
        with_data,
    ),
    rule(
        "S-051",
        Must,
        "an option behind NBD_OPT_STARTTLS is not obeyed",
        FORCED,
        injected,
    ),
    rule(
        "S-050",
        Must,
        "a handshake that fails ends the connection",
        FORCED,
        no_handshake,
    ),
    rule(
        "S-053",
        Must,
        "NBD_OPT_LIST before TLS: NBD_REP_ERR_TLS_REQD",
        FORCED,
        list_before,
    ),
    rule(
        "S-053",
        Must,
        "an unknown option before TLS: NBD_REP_ERR_TLS_REQD",
        FORCED,
        unknown_before,
    ),
    rule(
        "S-055",
        Must,
        "NBD_OPT_GO before TLS: NBD_REP_ERR_TLS_REQD alone",
        FORCED,
        go_before,
    ),
    rule(
        "S-054",
        Must,
        "NBD_OPT_EXPORT_NAME before TLS ends the connection",
        FORCED,
        export_name_before,
    ),
    rule(
        "S-056",
        Must,
        "NBD_OPT_ABORT before TLS: NBD_REP_ACK",
        FORCED,
        abort_before,
    ),
    rule(
        "S-049",
        Must,
        "NBD_OPT_STARTTLS inside TLS: NBD_REP_ERR_INVALID",
        FORCED,
        again,
    ),
    rule(
        "S-057",
        Must,
        "inside TLS no option needs it",
        FORCED,
        never_inside,
    ),
    rule(
        "S-052",
        Must,
        "structured replies from before TLS are forgotten",
        "Option types",
        forgotten,
    ),
];

/// The answer to NBD_OPT_STARTTLS in the clear.
fn started(server: &Server) -> Checked<(Talk, u32)> {
    let mut talk = server.clear()?;
    let answer = talk.ask(option::STARTTLS, &[])?;
    if !answer.before.is_empty() {
        return must("NBD_OPT_STARTTLS has one reply");
    }
    Ok((talk, answer.last.kind))
}

/// The rule is about servers without TLS.
fn has_none(server: &Server) -> Checked {
    match started(server)? {
        (_, rep::ACK) => not("the server has TLS"),
        _ => Ok(()),
    }
}

/// The rule is about servers with TLS.
fn has_some(server: &Server) -> Checked {
    match started(server)? {
        (_, rep::ACK) => Ok(()),
        _ => not("the server has no TLS"),
    }
}

fn refused(server: &Server) -> Checked {
    has_none(server)?;
    let (mut talk, kind) = started(server)?;
    if kind == rep::ERR_TLS_REQD {
        return must("NBD_OPT_STARTTLS is answered by NBD_REP_ERR_TLS_REQD");
    }
    goes_on(&mut talk)
}

fn never_required(server: &Server) -> Checked {
    has_none(server)?;
    let mut talk = server.clear()?;
    for code in [option::LIST, option::UNKNOWN] {
        if talk.ask(code, &[])?.last.kind == rep::ERR_TLS_REQD {
            return must("NBD_REP_ERR_TLS_REQD of a server without TLS");
        }
    }
    Ok(())
}

fn with_data(server: &Server) -> Checked {
    let mut talk = server.clear()?;
    let answer = Fault::may_leave(talk.ask(option::STARTTLS, b"data"))?;
    match answer.last.kind {
        rep::ERR_INVALID => Fault::may_leave(goes_on(&mut talk)),
        rep::ACK => should("NBD_OPT_STARTTLS with data is accepted"),
        // It need not know the option.
        rep::ERR_UNSUP | rep::ERR_POLICY => not("the server has no TLS"),
        _ => should(format!(
            "expected NBD_REP_ERR_INVALID, got {}",
            answer.name()
        )),
    }
}

fn injected(server: &Server) -> Checked {
    has_some(server)?;
    let mut talk = server.clear()?;
    let both = [option(option::STARTTLS, &[]), option(option::LIST, &[])];
    talk.send(
        &both.concat(),
        "NBD_OPT_STARTTLS, and NBD_OPT_LIST in the clear",
    )?;
    talk.answer(option::STARTTLS)?;
    // The next bytes are an alert or the end: the option is no TLS.
    talk.stop_sending();
    match talk.take(8, "an alert, or the end of the connection") {
        Ok(bytes) if bytes == wire::OPTION_REPLY.to_be_bytes() => {
            talk.came(&bytes, "a reply to an option, in the clear".into());
            must("an option that came in the clear was obeyed after NBD_OPT_STARTTLS")
        }
        Ok(_) | Err(Fault::Gone(_)) => Ok(()),
        Err(other) => Err(other),
    }
}

fn no_handshake(server: &Server) -> Checked {
    has_some(server)?;
    let (mut talk, _) = started(server)?;
    talk.send(b"this is no TLS at all, and no NBD", "what is no TLS")?;
    let mut len = 0;
    // Alerts come before the end.
    while let Some(byte) = talk.take_or_end(1, "the end of the connection")? {
        len += byte.len();
        if len > 1000 {
            return must("the server goes on after a handshake that has failed");
        }
    }
    Ok(())
}

fn forced(server: &Server) -> Checked<Talk> {
    let mut talk = server.clear()?;
    if talk.ask(option::LIST, &[])?.last.kind != rep::ERR_TLS_REQD {
        return not("the server does not force clients to start TLS");
    }
    server.clear()
}

fn needs_tls(server: &Server, code: u32, data: &[u8]) -> Checked {
    let mut talk = forced(server)?;
    let answer = talk.ask(code, data)?;
    if answer.last.kind != rep::ERR_TLS_REQD || !answer.before.is_empty() {
        return must(format!(
            "expected NBD_REP_ERR_TLS_REQD alone, got {} replies and {}",
            answer.before.len(),
            answer.name()
        ));
    }
    goes_on(&mut talk)
}

fn list_before(server: &Server) -> Checked {
    needs_tls(server, option::LIST, &[])
}

fn unknown_before(server: &Server) -> Checked {
    needs_tls(server, option::UNKNOWN, b"data")
}

fn go_before(server: &Server) -> Checked {
    needs_tls(server, option::GO, &wire::info_data(server.export(), &[]))
}

fn export_name_before(server: &Server) -> Checked {
    let mut talk = forced(server)?;
    talk.option(option::EXPORT_NAME, server.export())?;
    talk.ends("before TLS")
}

fn abort_before(server: &Server) -> Checked {
    let mut talk = forced(server)?;
    let answer = talk.ask(option::ABORT, &[])?;
    if !answer.is_ack() {
        return must(format!("expected NBD_REP_ACK, got {}", answer.name()));
    }
    Ok(())
}

/// The rule is about messages inside TLS.
fn inside(server: &Server) -> Checked<Talk> {
    if !server.is_secure() {
        return not("the URI is without TLS");
    }
    server.options()
}

fn again(server: &Server) -> Checked {
    let mut talk = inside(server)?;
    let answer = talk.ask(option::STARTTLS, &[])?;
    if answer.last.kind != rep::ERR_INVALID {
        return must(format!(
            "expected NBD_REP_ERR_INVALID, got {}",
            answer.name()
        ));
    }
    goes_on(&mut talk)
}

fn never_inside(server: &Server) -> Checked {
    let mut talk = inside(server)?;
    let data = wire::info_data(super::info::NO_EXPORT, &[]);
    for (code, data) in [
        (option::LIST, &[][..]),
        (option::UNKNOWN, &[]),
        (option::INFO, &data),
    ] {
        if talk.ask(code, data)?.last.kind == rep::ERR_TLS_REQD {
            return must("NBD_REP_ERR_TLS_REQD inside TLS");
        }
    }
    Ok(())
}

fn forgotten(server: &Server) -> Checked {
    if !server.is_secure() {
        return not("the URI is without TLS");
    }
    let mut talk = server.clear()?;
    if !talk.ask(option::STRUCTURED_REPLY, &[])?.is_ack() {
        return not("there are no structured replies before TLS");
    }
    if !talk.ask(option::STARTTLS, &[])?.is_ack() {
        return must("TLS is refused after another option");
    }
    server.handshake(&mut talk)?;
    let mut entered = server.go(talk, Style::Simple, Vec::new())?;
    if entered.flags & export::DF != 0 {
        return must("NBD_FLAG_SEND_DF, as if structured replies were still agreed on");
    }
    super::still_serves(&mut entered)
}
