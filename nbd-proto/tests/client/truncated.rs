//! Whole sessions, cut off behind every byte of the server.

use crate::common::{
    bytes::*,
    reply::{Answer, Replier},
    session::{ALL_FLAGS, Session, contexts, export},
    wire::{Delivery, Wire},
};
use nbd_proto::{
    CommandFlags, HeaderStyle, Step,
    client::{
        Config, Go, GoOutcome, Greeted, Handshake, InfoSet, Options, TlsOutcome, Transmission,
    },
    wire::OptionCode,
};

/// A part of a session.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Greeting,
    Option(u32),
    Answer(usize),
}

/// The progress of a session.
#[derive(Debug, Default, PartialEq)]
struct Reached {
    /// The complete parts, in their order.
    parts: Vec<Part>,
    /// The option that was waiting for its answer.
    pending: Option<OptionCode>,
    /// Whether nothing is lost by ending here.
    may_end: bool,
}

/// Goes on with a phase, or returns from the function if bytes are missing.
macro_rules! complete {
    ($reached:ident, $wire:ident, $option:expr, $phase:expr) => {{
        let pending = $phase;
        match $wire.run(pending).expect("nothing is wrong") {
            Step::Done(next) => {
                $reached.parts.push(Part::Option($option));
                next
            }
            Step::More(more) => {
                $reached.pending = Some(more.option());
                assert_eq!(more.option().code(), $option);
                return $reached;
            }
        }
    }};
}

fn play(mode: HeaderStyle, input: &[u8], delivery: Delivery) -> Reached {
    let mut wire = Wire::new(delivery);
    wire.says(input);
    let mut reached = Reached::default();
    let options = match wire
        .run(Handshake::new(Config::default()))
        .expect("nothing is wrong")
    {
        Step::Done(Greeted::FixedNewstyle(options)) => options,
        Step::Done(other) => panic!("{other:?}"),
        Step::More(_) => return reached,
    };
    reached.parts.push(Part::Greeting);
    let out = &mut Default::default();
    let options = complete!(reached, wire, 3, options.list(out)).options;
    let options = match complete!(reached, wire, 5, options.start_tls(out)) {
        TlsOutcome::Refused(options, _) => options,
        other => panic!("{other:?}"),
    };
    let all = || Go {
        name: export("disk"),
        infos: InfoSet::ALL,
    };
    let options = complete!(reached, wire, 6, options.info(all(), out)).options;
    let asked = options.extended_headers(out).expect("asked once");
    let options = complete!(reached, wire, 11, asked).options;
    let options = if mode == HeaderStyle::Extended {
        options
    } else {
        let asked = options.structured_reply(out).expect("asked once");
        complete!(reached, wire, 8, asked).options
    };
    let base = contexts(&["base:allocation", "x-a:b"]);
    let listed = options.list_meta_context(&export("disk"), &[], out);
    let options = complete!(reached, wire, 9, listed).options;
    let options: Options<_> = if mode == HeaderStyle::Simple {
        options
    } else {
        let set = options.set_meta_context(&export("disk"), &base, out);
        complete!(reached, wire, 10, set.expect("chunks were agreed on")).options
    };
    let transmission = match complete!(reached, wire, 7, options.go(all(), out)) {
        GoOutcome::Accepted(transmission) => transmission,
        refused @ GoOutcome::Refused(..) => panic!("{refused:?}"),
    };
    let mut session = Session::new(wire, transmission);
    let _ = ask(&mut session);
    let _ = session.transmission.disconnect().expect("once");
    let answers = session.replies().expect("nothing is wrong");
    for (index, answer) in answers {
        if let Answer::Data(data) = answer {
            assert_eq!(data, content(0, 1024));
        }
        reached.parts.push(Part::Answer(index));
    }
    reached.may_end = session.transmission.may_end();
    assert_eq!(session.transmission.error(), None);
    reached
}

/// Sends one of each command.
fn ask(session: &mut Session) -> Vec<Replier> {
    let none = CommandFlags::NONE;
    let mut to = vec![
        session.read(0, 1024),
        session.read(0, 1024),
        session.send(|t| t.write(512, &[7; 512][..], none)).at(512),
        session.send(Transmission::flush),
        session.send(|t| t.trim(512, 512, none)).at(512),
        session.send(|t| t.cache(512, 512)).at(512),
        session.send(|t| t.write_zeroes(512, 512, none)).at(512),
    ];
    if session.transmission.mode() != HeaderStyle::Simple {
        to.push(session.send(|t| t.block_status(0, 1024, none)));
    }
    to
}

/// The server's part of a session: each piece, and the part that is complete behind it.
fn script(mode: HeaderStyle) -> Vec<(Vec<u8>, Option<Part>)> {
    let structured = mode != HeaderStyle::Simple;
    let mut script = vec![
        (hello(3), Some(Part::Greeting)),
        (
            [server(b"disk", b"a disk"), server(b"", b"")].concat(),
            None,
        ),
        (ack(3), Some(Part::Option(3))),
        (err(5, 1, "no TLS"), Some(Part::Option(5))),
    ];
    let infos = |option| {
        let text = [
            info(option, 1, "disk"),
            info(option, 2, "a disk"),
            info(option, 99, "?"),
        ];
        let sizes = ibs(option, 1, 4096, 1 << 20);
        (
            [iexp(option, 1 << 20, ALL_FLAGS), sizes, text.concat()].concat(),
            None,
        )
    };
    script.extend([infos(6), (ack(6), Some(Part::Option(6)))]);
    if mode == HeaderStyle::Extended {
        script.push((ack(11), Some(Part::Option(11))));
    } else {
        script.push((err(11, 1, ""), Some(Part::Option(11))));
        let answer = if structured {
            ack(8)
        } else {
            err(8, 2, "simple is enough")
        };
        script.push((answer, Some(Part::Option(8))));
    }
    script.push((meta(9, 0, "base:"), None));
    script.push((ack(9), Some(Part::Option(9))));
    if structured {
        script.push((
            [meta(10, 0, "base:allocation"), meta(10, 5, "x-a:b")].concat(),
            None,
        ));
        script.push((ack(10), Some(Part::Option(10))));
    }
    script.extend([infos(7), (ack(7), Some(Part::Option(7)))]);

    let mut twin = enter_twin(mode);
    let to = ask(&mut twin);
    let answered = |index| Some(Part::Answer(index));
    script.push((to[3].ok(), answered(3)));
    if structured {
        script.push((to[0].data(0, 512, &content(512, 512)), None));
        script.push((to[1].error_at(0, 5, "disk on fire", 1000), None));
        script.push((to[7].extents(0, 5, &[(512, 0), (4096, 1)]), None));
        script.push((to[0].data(0, 0, &content(0, 512)), None));
        script.push((to[7].extents(D, 0, &[(1024, 3)]), answered(7)));
        script.push((to[1].hole(0, 0, 512), None));
        script.push((to[1].chunk(D, 0x8077, error(5, "?")), answered(1)));
        script.push((to[0].none(), answered(0)));
    } else {
        script.push((sr(0, to[0].cookie, content(0, 1024)), answered(0)));
        script.push((to[1].simple(5), answered(1)));
    }
    script.push((to[6].fail(28), answered(6)));
    script.push((to[2].ok(), answered(2)));
    script.push((to[5].fail(22), answered(5)));
    script.push((to[4].ok(), answered(4)));
    script
}

/// A session with the same cookies.
fn enter_twin(mode: HeaderStyle) -> Session {
    use crate::common::session::Entry;
    let entry = match mode {
        HeaderStyle::Simple => Entry::simple(),
        HeaderStyle::Structured => Entry::structured().context(0, "base:allocation"),
        HeaderStyle::Extended => Entry::extended().context(0, "base:allocation"),
    };
    entry.enter(Delivery::Whole)
}

#[test]
fn a_session_without_a_fault_succeeds() {
    // C-042, C-044
    for mode in [
        HeaderStyle::Simple,
        HeaderStyle::Structured,
        HeaderStyle::Extended,
    ] {
        let script = script(mode);
        let input: Vec<u8> = script.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        for delivery in Delivery::ALL {
            let reached = play(mode, &input, *delivery);
            let parts: Vec<_> = script.iter().filter_map(|(_, part)| *part).collect();
            assert_eq!(
                reached,
                Reached {
                    parts,
                    pending: None,
                    may_end: true
                }
            );
        }
    }
}

#[test]
fn a_session_that_is_cut_off_has_its_complete_parts_and_may_not_end() {
    // C-043, C-236, H-040
    for mode in [
        HeaderStyle::Simple,
        HeaderStyle::Structured,
        HeaderStyle::Extended,
    ] {
        let script = script(mode);
        let input: Vec<u8> = script.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
        for cut in 0..input.len() {
            let mut end = 0;
            let mut parts = Vec::new();
            for (bytes, part) in &script {
                end += bytes.len();
                if end > cut {
                    break;
                }
                parts.extend(*part);
            }
            for delivery in [Delivery::Whole, Delivery::Lent, Delivery::Random(9)] {
                let reached = play(mode, &input[..cut], delivery);
                assert_eq!(reached.parts, parts, "cut at {cut}");
                assert!(!reached.may_end, "cut at {cut}");
                let negotiation =
                    parts.contains(&Part::Greeting) && !parts.contains(&Part::Option(7));
                assert_eq!(reached.pending.is_some(), negotiation, "cut at {cut}");
            }
        }
    }
}
