//! NBD_OPT_INFO and NBD_OPT_GO, and the information in their replies.

use super::{Rule, Server, block_sizes, described, goes_on, is_refused, rule, still_serves};
use crate::check::{
    replies::Entered,
    rule::{Checked, Fault, Level::*, must, not, should},
    talk::{Answer, OptionReply},
    wire::{self, Fields, Style, export, kind, option, rep},
};

const TYPES: &str = "Option types";
const REPLIES: &str = "Option reply types";
const FLAGS: &str = "Transmission flags";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-069",
        Must,
        "NBD_OPT_INFO: NBD_INFO_EXPORT, then NBD_REP_ACK",
        REPLIES,
        info_of_export,
    ),
    rule(
        "S-069",
        Must,
        "NBD_OPT_GO: NBD_INFO_EXPORT, NBD_REP_ACK, requests",
        REPLIES,
        go,
    ),
    rule(
        "S-081",
        Must,
        "NBD_OPT_GO: no zeroes come after NBD_REP_ACK",
        TYPES,
        no_padding,
    ),
    rule(
        "S-080",
        Must,
        "NBD_OPT_GO answers like NBD_OPT_INFO right before it",
        TYPES,
        the_same,
    ),
    rule(
        "S-070",
        Must,
        "unknown kinds of information are ignored",
        TYPES,
        unknown_info,
    ),
    rule(
        "S-075",
        Should,
        "each kind of information comes once",
        REPLIES,
        each_once,
    ),
    rule(
        "S-076",
        Must,
        "names and descriptions are strings",
        REPLIES,
        strings,
    ),
    rule(
        "S-068",
        Own,
        "the name is longer than the option: an error",
        TYPES,
        long_name,
    ),
    rule(
        "S-068",
        Own,
        "fewer kinds of information than announced: an error",
        TYPES,
        few_infos,
    ),
    rule(
        "S-068",
        Own,
        "an option that is too short: an error",
        TYPES,
        too_short,
    ),
    rule(
        "S-030",
        Must,
        "a name above 4096 bytes is no export",
        "Conventions",
        endless_name,
    ),
    rule(
        "S-077",
        Should,
        "an unknown export: NBD_REP_ERR_UNKNOWN",
        TYPES,
        unknown,
    ),
    rule(
        "S-082",
        Must,
        "after NBD_OPT_GO was refused, options go on",
        TYPES,
        refused_go,
    ),
    rule(
        "S-100",
        Must,
        "block sizes are powers of two in their order",
        "Size constraints",
        sizes,
    ),
    rule(
        "S-100",
        Should,
        "the size is a multiple of the minimum block size",
        "Size constraints",
        multiple,
    ),
    rule(
        "S-079",
        Must,
        "no NBD_REP_ERR_BLOCK_SIZE_REQD to a client that asks for sizes",
        TYPES,
        not_required,
    ),
    rule(
        "S-102",
        Should,
        "a client that does not ask for block sizes is served",
        "Size constraints",
        not_asked,
    ),
    rule("S-089", Must, "NBD_FLAG_HAS_FLAGS is set", FLAGS, has_flags),
    rule(
        "S-093",
        Must,
        "NBD_FLAG_SEND_DF only with structured replies",
        FLAGS,
        df,
    ),
    rule(
        "S-094",
        Must,
        "NBD_FLAG_SEND_FAST_ZERO only with WRITE_ZEROES",
        FLAGS,
        fast_zero,
    ),
];

/// The name of no export.
pub(super) const NO_EXPORT: &[u8] = b"nbd-check:there-is-no-such-export";

fn ask(server: &Server, code: u32, infos: &[u16]) -> Checked<(crate::check::talk::Talk, Answer)> {
    let mut talk = server.options()?;
    let answer = talk.ask(code, &wire::info_data(server.export(), infos))?;
    if !answer.is_ack() {
        return must(format!("expected NBD_REP_ACK, got {}", answer.name()));
    }
    if answer.before.iter().any(|reply| reply.kind != rep::INFO) {
        return must("expected NBD_REP_INFO, got another reply");
    }
    Ok((talk, answer))
}

fn info_of_export(server: &Server) -> Checked {
    let (mut talk, answer) = ask(server, option::INFO, &[])?;
    goes_on(&mut talk)?;
    described(&answer.before).map(|_| ())
}

fn go(server: &Server) -> Checked {
    let mut entered = server.enter(Style::Simple)?;
    still_serves(&mut entered)?;
    entered.disconnect()
}

fn no_padding(server: &Server) -> Checked {
    server.has_options()?;
    let (mut talk, _) = server.greeted()?;
    if server.is_secure() || server.profile.forces_tls {
        return not("only checked without TLS");
    }
    let flags = u32::from(wire::FIXED_NEWSTYLE);
    talk.send(&flags.to_be_bytes(), "client flags without NO_ZEROES")?;
    let mut entered = server.go(talk, Style::Simple, Vec::new())?;
    still_serves(&mut entered)
}

/// Kinds of information with their values, in an order of its own.
fn sorted(replies: &[OptionReply]) -> Vec<&[u8]> {
    let mut sorted: Vec<_> = replies.iter().map(|reply| &reply.data[..]).collect();
    sorted.sort_unstable();
    sorted
}

fn the_same(server: &Server) -> Checked {
    let infos = [kind::NAME, kind::DESCRIPTION, kind::BLOCK_SIZE];
    let (mut talk, first) = ask(server, option::INFO, &infos)?;
    let second = talk.ask(option::GO, &wire::info_data(server.export(), &infos))?;
    if !second.is_ack() {
        return must(format!("expected NBD_REP_ACK, got {}", second.name()));
    }
    if sorted(&first.before) != sorted(&second.before) {
        return must("NBD_OPT_GO says something else than NBD_OPT_INFO right before it");
    }
    Ok(())
}

fn unknown_info(server: &Server) -> Checked {
    let (mut talk, answer) = ask(server, option::INFO, &[0x7fff, kind::BLOCK_SIZE, 0x4e42])?;
    described(&answer.before)?;
    goes_on(&mut talk)
}

fn each_once(server: &Server) -> Checked {
    let infos = [kind::NAME, kind::DESCRIPTION, kind::BLOCK_SIZE];
    let (_, answer) = ask(server, option::INFO, &infos)?;
    let mut kinds: Vec<_> = answer
        .before
        .iter()
        .map(|reply| Fields(&reply.data).u16())
        .collect();
    let all = kinds.len();
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.len() < all {
        return should("a kind of information came twice");
    }
    Ok(())
}

fn strings(server: &Server) -> Checked {
    let (_, answer) = ask(server, option::INFO, &[kind::NAME, kind::DESCRIPTION])?;
    let mut found = false;
    for reply in &answer.before {
        let mut fields = Fields(&reply.data);
        match fields.u16() {
            None => return must("NBD_REP_INFO of less than two bytes"),
            Some(kind::NAME | kind::DESCRIPTION) => {
                found = true;
                super::options::is_string(fields.0, "a name or a description")?;
            }
            Some(_) => {}
        }
    }
    if found {
        Ok(())
    } else {
        not("the server sends neither")
    }
}

/// An option whose lengths do not add up is refused, and the next one is understood.
fn is_malformed(server: &Server, data: &[u8]) -> Checked {
    let mut talk = server.options()?;
    let answer = Fault::may_leave(talk.ask(option::INFO, data))?;
    if answer.is_ack() {
        return must("an option whose lengths do not add up was obeyed");
    }
    Fault::may_leave(goes_on(&mut talk))?;
    is_refused(&answer, &[rep::ERR_INVALID])
}

fn long_name(server: &Server) -> Checked {
    let mut data = wire::info_data(b"disk", &[]);
    data[3] = 200;
    is_malformed(server, &data)
}

fn few_infos(server: &Server) -> Checked {
    let mut data = wire::info_data(server.export(), &[]);
    let count = data.len() - 1;
    data[count] = 3;
    is_malformed(server, &data)
}

fn too_short(server: &Server) -> Checked {
    is_malformed(server, &[0, 0])
}

fn endless_name(server: &Server) -> Checked {
    let mut talk = server.options()?;
    let data = wire::info_data(&[b'n'; 5000], &[]);
    let answer = Fault::may_leave(talk.ask(option::INFO, &data))?;
    if answer.is_ack() {
        return should("an export of a name of 5000 bytes is there");
    }
    Fault::may_leave(goes_on(&mut talk))
}

/// The rule is about servers that have not every export.
pub(super) fn has_no_such_export(server: &Server) -> Checked {
    let mut talk = server.options()?;
    if talk
        .ask(option::INFO, &wire::info_data(NO_EXPORT, &[]))?
        .is_ack()
    {
        return not("the server has an export of any name");
    }
    Ok(())
}

fn unknown(server: &Server) -> Checked {
    has_no_such_export(server)?;
    let mut talk = server.options()?;
    let answer = talk.ask(option::INFO, &wire::info_data(NO_EXPORT, &[]))?;
    goes_on(&mut talk)?;
    if server.is_secure() {
        return is_refused(&answer, &[rep::ERR_UNKNOWN]);
    }
    is_refused(&answer, &[rep::ERR_UNKNOWN, rep::ERR_TLS_REQD])
}

fn refused_go(server: &Server) -> Checked {
    has_no_such_export(server)?;
    let mut talk = server.options()?;
    let refused = talk.ask(option::GO, &wire::info_data(NO_EXPORT, &[]))?;
    if refused.is_ack() {
        return must("NBD_OPT_GO has an export that NBD_OPT_INFO has not");
    }
    let mut entered = server.go(talk, Style::Simple, Vec::new())?;
    still_serves(&mut entered)
}

fn wanted_sizes(server: &Server) -> Checked<[u32; 3]> {
    let (_, answer) = ask(server, option::INFO, &[kind::BLOCK_SIZE])?;
    for reply in &answer.before {
        let is_this = Fields(&reply.data).u16() == Some(kind::BLOCK_SIZE);
        if is_this && reply.data.len() != 14 {
            return must(format!(
                "NBD_INFO_BLOCK_SIZE has 14 bytes, got {}",
                reply.data.len()
            ));
        }
    }
    block_sizes(&answer.before).map_or_else(|| not("no block sizes are advertised"), Ok)
}

fn sizes(server: &Server) -> Checked {
    let [minimum, preferred, maximum] = wanted_sizes(server)?;
    if !minimum.is_power_of_two() || minimum > 1 << 16 {
        return must(format!(
            "the minimum block size is {minimum}, and not a power of two up to 65536"
        ));
    }
    if !preferred.is_power_of_two() || preferred < minimum.max(512) {
        return must(format!(
            "the preferred block size is {preferred}, and not a power of two from {} on",
            minimum.max(512)
        ));
    }
    if maximum < preferred {
        return must(format!(
            "the maximum payload is {maximum}, less than the preferred block size {preferred}"
        ));
    }
    if maximum < 1 << 20 && server.profile.size >= 1 << 20 {
        return should(format!("the maximum payload is {maximum}, less than 1 MiB"));
    }
    Ok(())
}

fn multiple(server: &Server) -> Checked {
    let [minimum, ..] = wanted_sizes(server)?;
    match server.profile.size % u64::from(minimum.max(1)) {
        0 => Ok(()),
        rest => should(format!("the last {rest} bytes cannot be reached")),
    }
}

fn not_required(server: &Server) -> Checked {
    let mut talk = server.options()?;
    let data = wire::info_data(server.export(), &[kind::BLOCK_SIZE]);
    if talk.ask(option::INFO, &data)?.last.kind == rep::ERR_BLOCK_SIZE_REQD {
        return must("NBD_REP_ERR_BLOCK_SIZE_REQD though block sizes were asked for");
    }
    Ok(())
}

fn not_asked(server: &Server) -> Checked {
    if server.block() > 1 {
        return not("the minimum block size is not the default");
    }
    let (talk, answer) = match ask(server, option::GO, &[]) {
        Err(Fault::Must(text)) => return should(text),
        other => other?,
    };
    let described = described(&answer.before)?;
    still_serves(&mut Entered::new(
        talk,
        Style::Simple,
        described,
        Vec::new(),
    ))
}

fn has_flags(server: &Server) -> Checked {
    let (_, answer) = ask(server, option::INFO, &[])?;
    let (_, flags) = described(&answer.before)?;
    if flags & export::HAS_FLAGS == 0 {
        return must(format!("the transmission flags are {flags:#x}"));
    }
    Ok(())
}

fn df(server: &Server) -> Checked {
    let (_, answer) = ask(server, option::GO, &[kind::BLOCK_SIZE])?;
    let (_, flags) = described(&answer.before)?;
    if flags & export::DF != 0 {
        return must("NBD_FLAG_SEND_DF without structured replies");
    }
    Ok(())
}

fn fast_zero(server: &Server) -> Checked {
    server.needs(export::FAST_ZERO, "NBD_FLAG_SEND_FAST_ZERO")?;
    if !server.has(export::WRITE_ZEROES) {
        return must("NBD_FLAG_SEND_FAST_ZERO without NBD_FLAG_SEND_WRITE_ZEROES");
    }
    Ok(())
}
