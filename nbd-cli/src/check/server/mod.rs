//! The rules that bind servers, in the order of a connection.

mod commands;
mod ending;
mod extended;
mod greeting;
mod info;
mod kills;
mod meta;
mod oldstyle;
mod options;
mod process;
mod reads;
mod scratch;
mod session;
mod status;
mod tls;
mod writes;

pub(super) use scratch::Scratch;

pub(super) use session::Server;

use self::session::{block_sizes, described};
use super::{
    replies::{Entered, error_name},
    rule::{About, Checked, Fault, Level, Place, not, should},
    talk::{Answer, Talk, reply_name},
    wire::{Request, command, errno, export, option},
};

/// A script for a rule that binds servers.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) about: About,
    pub(super) check: fn(&Server) -> Checked,
}

/// A rule of the specification itself.
const fn rule(
    id: &'static str,
    level: Level,
    what: &'static str,
    heading: &'static str,
    check: fn(&Server) -> Checked,
) -> Rule {
    Rule {
        about: About {
            id,
            level,
            what,
            place: Place::Protocol(heading),
        },
        check,
    }
}

/// A rule of the branch about extended headers.
const fn extended(
    id: &'static str,
    level: Level,
    what: &'static str,
    heading: &'static str,
    check: fn(&Server) -> Checked,
) -> Rule {
    Rule {
        about: About {
            id,
            level,
            what,
            place: Place::ExtendedHeaders(heading),
        },
        check,
    }
}

/// All scripts, in the order of a connection.
pub(super) fn rules() -> Vec<Rule> {
    [
        greeting::RULES,
        oldstyle::RULES,
        tls::RULES,
        options::RULES,
        info::RULES,
        meta::RULES,
        reads::RULES,
        commands::RULES,
        status::RULES,
        writes::RULES,
        extended::RULES,
        ending::RULES,
        kills::RULES,
    ]
    .concat()
}

/// The option is refused by one of these errors, and before that nothing is said of it.
fn is_refused(answer: &Answer, expected: &[u32]) -> Checked {
    if !answer.before.is_empty() {
        return should(format!(
            "{} replies before the refusal {}",
            answer.before.len(),
            answer.name()
        ));
    }
    if !expected.contains(&answer.last.kind) {
        return should(format!(
            "expected {}, got {}",
            reply_name(expected.first().copied().unwrap_or_default()),
            answer.name()
        ));
    }
    Ok(())
}

/// The next option is understood.
fn goes_on(talk: &mut Talk) -> Checked {
    talk.ask(option::LIST, &[]).map(|_| ())
}

/// The request fails with one of these errors, and the next one works. As a client must not send such
/// a request, the server may end the connection, which is noted.
fn refuses(entered: &mut Entered, request: Request, expected: &[u32]) -> Checked {
    let reply = Fault::may_leave(entered.call(request))?;
    Fault::may_leave(still_serves(entered))?;
    if expected.contains(&reply.error) {
        return Ok(());
    }
    should(format!(
        "expected {}, got {}",
        error_name(expected.first().copied().unwrap_or_default()),
        reply.error_name()
    ))
}

/// A request that nothing is wrong with has its reply.
fn still_serves(entered: &mut Entered) -> Checked {
    if entered.size == 0 {
        return Ok(());
    }
    entered.read(0, entered.size.min(512)).map(|_| ())
}

impl Entered {
    /// Ends the connection as clients should.
    fn disconnect(&mut self) -> Checked {
        let request = Request {
            cookie: 1,
            ..Request::new(command::DISC, 0, 0)
        };
        let bytes = request.bytes(self.style);
        self.send_bytes(&request, &bytes)
    }
}

/// Whether the export can be written to, and may be.
fn may_write(server: &Server) -> Checked {
    if server.has(export::READ_ONLY) {
        return not("the export is read-only");
    }
    if !server.writes {
        return not("needs --write");
    }
    Ok(())
}

/// EINVAL, which most invalid requests are answered by.
const INVALID: &[u32] = &[errno::EINVAL];
