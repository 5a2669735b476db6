//! TLS: the requests that a client must not send before it, and the servers that it must not trust.

use super::{
    Rule,
    disk::FULL,
    judge::{Run, fails_then, refuses, should_refuse, tolerates},
    scene::{Event, Scene, Then, honest, make_option_reply},
    secure::Shown,
};
use crate::check::{
    rule::{About, Checked, Fault, Level, Level::*, Place, must, should},
    wire::{option, rep},
};

const FORCED: &str = "FORCEDTLS mode";
const CLIENT: &str = "Client-side requirements";
const DOWNGRADE: &str = "Protocol downgrade attacks";

/// A rule that is about TLS.
const fn rule(
    id: &'static str,
    level: Level,
    what: &'static str,
    heading: &'static str,
    (shown, spoil): (Shown, fn(&mut Scene)),
    judge: fn(&Run) -> Checked,
) -> Rule {
    Rule {
        about: About {
            id,
            level,
            what,
            place: Place::Protocol(heading),
        },
        disk: FULL,
        shown,
        spoil,
        judge,
    }
}

pub(super) const RULES: &[Rule] = &[
    rule(
        "C-057",
        Should,
        "NBD_OPT_STARTTLS is the first option",
        CLIENT,
        (Shown::Right, honest),
        first,
    ),
    rule(
        "C-049",
        Must,
        "no NBD_OPT_STARTTLS inside TLS",
        CLIENT,
        (Shown::Right, honest),
        once,
    ),
    rule(
        "C-069",
        Must,
        "TLS 1.2 is enough",
        "TLS versions",
        (Shown::Tls12, honest),
        tolerates,
    ),
    rule(
        "C-036",
        Must,
        "NBD_OPT_ABORT is followed by the end of TLS",
        "Termination of the session during option haggling",
        (Shown::Right, unknown_export),
        ends_tls,
    ),
    rule(
        "H-015",
        Own,
        "NBD_OPT_STARTTLS is refused: nothing is sent in the clear",
        DOWNGRADE,
        (Shown::Right, refused),
        stays_silent,
    ),
    rule(
        "H-015",
        Own,
        "a server without fixed newstyle: nothing is sent in the clear",
        DOWNGRADE,
        (Shown::Right, not_fixed),
        stays_silent,
    ),
    rule(
        "C-054",
        Must,
        "NBD_REP_ACK with data starts no TLS",
        "Option reply types",
        (Shown::Right, ack_with_data),
        refuses,
    ),
    rule(
        "C-053",
        Must,
        "a reply in the clear behind NBD_REP_ACK is not obeyed",
        CLIENT,
        (Shown::Right, reply_behind),
        obeys_nothing,
    ),
    rule(
        "H-014",
        Own,
        "nor is a second NBD_REP_ACK",
        CLIENT,
        (Shown::Right, second_ack),
        obeys_nothing,
    ),
    rule(
        "C-052",
        Must,
        "replies in the clear instead of a handshake are not obeyed",
        CLIENT,
        (Shown::Right, no_handshake),
        refuses,
    ),
    rule(
        "C-059",
        Must,
        "an end within the handshake is an error",
        CLIENT,
        (Shown::Right, end_of_handshake),
        refuses,
    ),
    rule(
        "C-059",
        Must,
        "a certificate for another host is refused",
        CLIENT,
        (Shown::WrongName, honest),
        refuses,
    ),
    rule(
        "C-059",
        Must,
        "a certificate that has expired is refused",
        CLIENT,
        (Shown::Expired, honest),
        refuses,
    ),
    rule(
        "C-059",
        Must,
        "a certificate of an authority that is not trusted is refused",
        CLIENT,
        (Shown::OtherAuthority, honest),
        refuses,
    ),
    rule(
        "C-059",
        Must,
        "a certificate that is signed with its own key is refused",
        CLIENT,
        (Shown::SelfSigned, honest),
        refuses,
    ),
    rule(
        "C-059",
        Own,
        "a certificate that is made for clients is refused",
        CLIENT,
        (Shown::OfAClient, honest),
        should_refuse,
    ),
    rule(
        "C-066",
        Own,
        "NBD_REP_ERR_TLS_REQD inside TLS is an error",
        FORCED,
        (Shown::Right, required_again),
        fails_once,
    ),
];

/// The reply to NBD_OPT_STARTTLS.
fn starttls(scene: &mut Scene) -> Option<&mut Vec<u8>> {
    scene.at(Event::Option(option::STARTTLS, rep::ACK))
}

fn refused(scene: &mut Scene) {
    if let Some(bytes) = starttls(scene) {
        *bytes = make_option_reply(option::STARTTLS, rep::ERR_UNSUP, &[]);
    }
}

/// Takes NBD_FLAG_FIXED_NEWSTYLE away.
fn not_fixed(scene: &mut Scene) {
    if let Some(bytes) = scene.at(Event::Greeting) {
        bytes[17] &= !1;
    }
}

fn ack_with_data(scene: &mut Scene) {
    if let Some(bytes) = starttls(scene) {
        *bytes = make_option_reply(option::STARTTLS, rep::ACK, b"data");
    }
}

fn reply_behind(scene: &mut Scene) {
    if let Some(bytes) = starttls(scene) {
        bytes.extend(make_option_reply(
            option::STRUCTURED_REPLY,
            rep::ERR_UNSUP,
            &[],
        ));
    }
}

fn second_ack(scene: &mut Scene) {
    if let Some(bytes) = starttls(scene) {
        bytes.extend(make_option_reply(option::STARTTLS, rep::ACK, &[]));
    }
}

fn no_handshake(scene: &mut Scene) {
    if starttls(scene).is_some() {
        scene.then = Then::StayInClear;
    }
}

fn end_of_handshake(scene: &mut Scene) {
    if starttls(scene).is_some() {
        scene.then = Then::Close;
    }
}

fn unknown_export(scene: &mut Scene) {
    refuse_go(scene, rep::ERR_UNKNOWN);
}

fn required_again(scene: &mut Scene) {
    refuse_go(scene, rep::ERR_TLS_REQD);
}

/// Refuses to describe the export and to enter it.
fn refuse_go(scene: &mut Scene, kind: u32) {
    if let Event::Option(code @ (option::INFO | option::GO), sent) = scene.event {
        scene.is_spoilt = true;
        scene.bytes.clear();
        if sent == rep::ACK {
            scene.bytes = make_option_reply(code, kind, &[]);
        }
    }
}

fn first(run: &Run) -> Checked {
    match run.keeps("C-057") {
        Err(Fault::Must(text)) => should(text),
        other => other,
    }
}

fn once(run: &Run) -> Checked {
    run.keeps("C-049")
}

fn ends_tls(run: &Run) -> Checked {
    run.sends_option(option::ABORT)?;
    run.keeps("C-036")
}

/// Neither an option nor a request comes without TLS.
fn stays_silent(run: &Run) -> Checked {
    refuses(run)?;
    run.keeps("C-056")
}

fn obeys_nothing(run: &Run) -> Checked {
    match (refuses(run), run.went_on_after_spoilt) {
        (Err(Fault::Must(_)), true) => should("the reply was skipped, and TLS was started"),
        (Ok(()), true) => must("the reply was taken for one inside TLS"),
        (other, _) => other,
    }
}

fn fails_once(run: &Run) -> Checked {
    fails_then(run)?;
    run.keeps("C-049")
}
