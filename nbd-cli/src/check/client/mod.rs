//! The rules that bind clients: a command is run once for each, with a server that does everything
//! right but for one thing.

mod chunks;
mod disk;
mod errors;
mod host;
mod judge;
mod last_words;
mod look;
mod negotiation;
mod options;
mod replies;
mod requests;
mod run;
mod scene;
mod secure;
mod tls;

pub(super) use run::Listening;

use self::{
    disk::{Disk, EXTENDED},
    judge::Run,
    scene::Scene,
    secure::Shown,
};
use super::rule::{About, Checked, Level, Place};

/// A script for a rule that binds clients.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) about: About,
    /// The disk of the server.
    disk: Disk,
    /// The certificate of the server.
    shown: Shown,
    /// The error that it injects.
    spoil: fn(&mut Scene),
    /// The verdict on the client's run.
    judge: fn(&Run) -> Checked,
}

/// A rule of the specification itself.
const fn rule(
    id: &'static str,
    level: Level,
    what: &'static str,
    heading: &'static str,
    (disk, spoil): (Disk, fn(&mut Scene)),
    judge: fn(&Run) -> Checked,
) -> Rule {
    Rule {
        about: About {
            id,
            level,
            what,
            place: Place::Protocol(heading),
        },
        disk,
        shown: Shown::Any,
        spoil,
        judge,
    }
}

/// A rule of the branch about extended headers.
const fn extended(
    id: &'static str,
    level: Level,
    what: &'static str,
    heading: &'static str,
    spoil: fn(&mut Scene),
    judge: fn(&Run) -> Checked,
) -> Rule {
    Rule {
        about: About {
            id,
            level,
            what,
            place: Place::ExtendedHeaders(heading),
        },
        disk: EXTENDED,
        shown: Shown::Any,
        spoil,
        judge,
    }
}

/// All scripts, in the order of a connection.
pub(super) fn rules() -> Vec<Rule> {
    [
        negotiation::RULES,
        tls::RULES,
        replies::RULES,
        chunks::RULES,
        errors::RULES,
        requests::RULES,
    ]
    .concat()
}
