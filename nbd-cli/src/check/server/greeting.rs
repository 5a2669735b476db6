//! Greeting, client flags, and NBD_OPT_EXPORT_NAME, which needs no more.

use super::{Rule, Server, goes_on, rule};
use crate::check::{
    replies::Entered,
    rule::{Checked, Fault, Level::*, must, not, should},
    talk::Talk,
    wire::{FIXED_NEWSTYLE, Fields, NO_ZEROES, Style, option},
};

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-004",
        Must,
        "the greeting is NBDMAGIC and IHAVEOPT",
        "Newstyle negotiation",
        greeting,
    ),
    rule(
        "S-006",
        Must,
        "no handshake flags but those that are defined",
        "Handshake flags",
        flags,
    ),
    rule(
        "S-005",
        Must,
        "NBD_FLAG_FIXED_NEWSTYLE is set",
        "Handshake flags",
        fixed,
    ),
    rule(
        "S-009",
        Must,
        "an unknown client flag ends the connection",
        "Client flags",
        unknown_flag,
    ),
    rule(
        "S-010",
        Must,
        "a client flag without an offer ends it, too",
        "Client flags",
        not_offered,
    ),
    rule(
        "S-013",
        Own,
        "a connection that ends at once harms no other",
        "Newstyle negotiation",
        probe,
    ),
    rule(
        "S-015",
        Must,
        "an option with a wrong magic number is not obeyed",
        "Newstyle negotiation",
        magic,
    ),
    rule(
        "S-012",
        Must,
        "NBD_OPT_EXPORT_NAME: 134 bytes without C_NO_ZEROES",
        "Newstyle negotiation",
        long,
    ),
    rule(
        "S-012",
        Must,
        "NBD_OPT_EXPORT_NAME: 10 bytes with C_NO_ZEROES",
        "Client flags",
        short,
    ),
    rule(
        "S-085",
        Must,
        "NBD_OPT_EXPORT_NAME: an unknown export ends it",
        "Option types",
        unknown_export,
    ),
];

fn greeting(server: &Server) -> Checked {
    server.greeted().map(|_| ())
}

fn flags(server: &Server) -> Checked {
    let (_, flags) = server.greeted()?;
    match flags & !(FIXED_NEWSTYLE | NO_ZEROES) {
        0 => Ok(()),
        more => must(format!("unknown handshake flags {more:#x}")),
    }
}

fn fixed(server: &Server) -> Checked {
    let (_, flags) = server.greeted()?;
    if flags & FIXED_NEWSTYLE == 0 {
        return not(format!(
            "the handshake flags are {flags:#x}: NBD_OPT_EXPORT_NAME has to be the only option"
        ));
    }
    Ok(())
}

/// Sends client flags that have to end the connection.
fn refuses_flags(server: &Server, more: u32) -> Checked {
    let (mut talk, flags) = server.greeted()?;
    let flags = u32::from(flags & 3) | more;
    talk.send(&flags.to_be_bytes(), format!("client flags {flags:#x}"))?;
    // A server that reads on is noticed by its answer.
    talk.option(option::ABORT, &[])?;
    talk.ends("after these client flags")
}

fn unknown_flag(server: &Server) -> Checked {
    refuses_flags(server, 1 << 20)
}

fn not_offered(server: &Server) -> Checked {
    if server.profile.handshake & NO_ZEROES != 0 {
        return not("both flags are offered");
    }
    refuses_flags(server, NO_ZEROES.into())
}

fn probe(server: &Server) -> Checked {
    let (talk, _) = server.greeted()?;
    talk.cut();
    let mut talk = server.clear()?;
    goes_on(&mut talk)
}

fn magic(server: &Server) -> Checked {
    let mut talk = server.options()?;
    let mut bytes = option(option::LIST, &[]);
    bytes[0] ^= 0x20;
    talk.send(&bytes, "NBD_OPT_LIST with a wrong magic number")?;
    // Without an end a server may wait for more bytes.
    talk.stop_sending();
    match talk.answer(option::LIST) {
        Ok(answer) if answer.is_ack() => must("NBD_OPT_LIST was obeyed"),
        Ok(_) | Err(Fault::Gone(_)) => Ok(()),
        Err(other) => Err(other),
    }
}

/// Negotiates as old clients do.
fn export_name(server: &Server, flags: u16) -> Checked<(Talk, Vec<u8>)> {
    if server.is_secure() || server.profile.forces_tls {
        return not("only checked without TLS");
    }
    let (mut talk, _) = server.greeted()?;
    let flags = u32::from(flags & server.profile.handshake);
    talk.send(&flags.to_be_bytes(), format!("client flags {flags:#x}"))?;
    talk.option(option::EXPORT_NAME, server.export())?;
    let len = if flags & u32::from(NO_ZEROES) == 0 {
        134
    } else {
        10
    };
    let bytes = talk.take(len, "size and flags")?;
    talk.came(&bytes, "size, transmission flags and zeroes".into());
    Ok((talk, bytes))
}

/// The bytes are those of the export, and no more of them come.
fn describes(server: &Server, talk: Talk, bytes: &[u8]) -> Checked {
    let mut fields = Fields(bytes);
    let (size, flags) = (fields.u64().unwrap_or(0), fields.u16().unwrap_or(0));
    if size != server.profile.size {
        return must(format!(
            "the size is {size}, and after NBD_OPT_GO {}",
            server.profile.size
        ));
    }
    if fields.0.iter().any(|byte| *byte != 0) {
        return must("the 124 bytes are not all zeroes");
    }
    let len = server.unit().min(size);
    let mut entered = Entered::new(talk, Style::Simple, (size, flags), Vec::new());
    if len > 0 {
        entered.read(0, len)?;
    }
    entered.disconnect()
}

fn long(server: &Server) -> Checked {
    let (talk, bytes) = export_name(server, FIXED_NEWSTYLE)?;
    describes(server, talk, &bytes)
}

fn short(server: &Server) -> Checked {
    if server.profile.handshake & NO_ZEROES == 0 {
        return not("NBD_FLAG_NO_ZEROES is not offered");
    }
    let (talk, bytes) = export_name(server, FIXED_NEWSTYLE | NO_ZEROES)?;
    describes(server, talk, &bytes)
}

fn unknown_export(server: &Server) -> Checked {
    super::info::has_no_such_export(server)?;
    let mut talk = server.options()?;
    talk.option(option::EXPORT_NAME, super::info::NO_EXPORT)?;
    let ended = talk.ends("after the name of no export");
    if ended.is_ok() && talk.ended_tls() == Some(false) {
        return should("TLS is not ended before the connection (S-023)");
    }
    ended
}
