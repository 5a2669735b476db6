//! The order of the client's messages, to a server that behaves as no real one does on demand.
//!
//! It is longer than 500 lines because each order of options is written out.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use interop::{Conversation, Scripted};

use crate::{
    driver::{CommandFlags, ConnectOptions, Errno, Error, HeaderStyle, TlsPolicy},
    support::{MIB, assert_names, context, go, name, run, uri},
};

// Options.
const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

// Refusals, without their highest bit.
const UNSUP: u32 = 1;
const POLICY: u32 = 2;
const INVALID: u32 = 3;
const PLATFORM: u32 = 4;
const TLS_REQD: u32 = 5;
const UNKNOWN: u32 = 6;
const SHUTDOWN: u32 = 7;
const BLOCK_SIZE_REQD: u32 = 8;
const EXT_HEADER_REQD: u32 = 10;

/// Fixed newstyle without zeroes.
const FLAGS: u16 = 3;
/// Has flags, can flush and trim.
const EXPORT: u16 = 0x25;

const A_WHILE: Duration = Duration::from_millis(150);

fn options() -> ConnectOptions {
    ConnectOptions::new().context(context("base:allocation"))
}

/// Refuses every option but the last, and takes the options up to it.
fn refuse_until(peer: &mut Conversation, last: u32, code: u32) -> Vec<u32> {
    let mut asked = Vec::new();
    loop {
        let (option, _) = peer.option();
        asked.push(option);
        if option == last {
            return asked;
        }
        peer.refuse(option, code);
    }
}

/// Serves reads of zeroes in simple replies until the client disconnects.
fn serve_zeroes(peer: &mut Conversation) {
    loop {
        let request = peer.request();
        match request.command {
            2 => {
                assert_eq!((request.offset, request.len, request.flags), (0, 0, 0));
                assert!(peer.rest().is_empty(), "nothing follows NBD_CMD_DISC");
                return;
            }
            0 => peer.simple(0, request.cookie, &vec![0; request.len as usize]),
            _ => peer.simple(0, request.cookie, &[]),
        }
    }
}

/// Takes an option, and answers it after a while in which the client must be silent.
fn answer_late(peer: &mut Conversation, expected: u32, answer: impl FnOnce(&mut Conversation)) {
    let (option, data) = peer.option();
    assert_eq!(option, expected);
    if matches!(option, EXTENDED_HEADERS | STRUCTURED_REPLY) {
        assert!(data.is_empty());
    }
    peer.hear_nothing(A_WHILE);
    answer(peer);
}

#[test]
fn one_option_is_outstanding_at_a_time() {
    // C-022, C-136
    run(|| {
        let server = Scripted::start(1, |_, peer| {
            assert_eq!(peer.greet(FLAGS), 3);
            answer_late(peer, EXTENDED_HEADERS, |peer| {
                peer.refuse(EXTENDED_HEADERS, UNSUP);
            });
            answer_late(peer, STRUCTURED_REPLY, |peer| peer.ack(STRUCTURED_REPLY));
            answer_late(peer, SET_META_CONTEXT, |peer| {
                peer.reply(SET_META_CONTEXT, 4, b"\0\0\0\x01base:allocation");
                peer.hear_nothing(A_WHILE);
                peer.ack(SET_META_CONTEXT);
            });
            answer_late(peer, GO, |peer| {
                let mut info = vec![0; 12];
                info[2..10].copy_from_slice(&MIB.to_be_bytes());
                info[10..].copy_from_slice(&EXPORT.to_be_bytes());
                peer.reply(GO, 3, &info);
                peer.hear_nothing(A_WHILE);
                peer.ack(GO);
            });
            serve_zeroes(peer);
        });
        let client = options().connect(&server.uri("disk")).unwrap();
        assert_eq!(client.mode(), HeaderStyle::Structured);
        client.disconnect().unwrap();
        server.finish();
    });
}

#[test]
fn an_old_server_is_entered_by_name() {
    // C-075, C-133
    run(|| {
        let server = Scripted::start(2, |number, peer| {
            peer.greet(if number == 0 { 3 } else { 1 });
            let asked = refuse_until(peer, EXPORT_NAME, UNSUP);
            let expected = [EXTENDED_HEADERS, STRUCTURED_REPLY, GO, EXPORT_NAME];
            assert_eq!(asked, expected);
            peer.send(&MIB.to_be_bytes());
            peer.send(&EXPORT.to_be_bytes());
            if number == 1 {
                peer.send(&[0; 124]); // C-099
            }
            serve_zeroes(peer);
        });
        for _ in 0..2 {
            let client = options().connect(&server.uri("disk")).unwrap();
            assert_eq!(client.mode(), HeaderStyle::Simple);
            let mut buf = [1; 512];
            client.read_exact_at(&mut buf, 0).unwrap();
            assert_eq!(buf, [0; 512]);
            client.disconnect().unwrap();
        }
        for recording in server.finish() {
            let (asked, _) = recording.options();
            assert_eq!(asked.last().unwrap().1, b"disk");
        }
    });
}

#[test]
fn refused_improvements_are_done_without() {
    // C-134
    run(|| {
        for code in [POLICY, INVALID, PLATFORM] {
            let server = Scripted::start(1, move |_, peer| {
                peer.greet(FLAGS);
                let asked = refuse_until(peer, GO, code);
                assert_eq!(asked, [EXTENDED_HEADERS, STRUCTURED_REPLY, GO]);
                peer.accept(GO, MIB, EXPORT);
                serve_zeroes(peer);
            });
            let client = options().connect(&server.uri("disk")).unwrap();
            assert_eq!(client.mode(), HeaderStyle::Simple);
            client.disconnect().unwrap();
            server.finish();
        }
    });
}

#[test]
fn a_refused_selection_is_done_without() {
    run(|| {
        for code in [UNSUP, UNKNOWN, INVALID] {
            let server = Scripted::start(1, move |_, peer| {
                peer.greet(FLAGS);
                let (option, _) = peer.option();
                // C-139: after that there is no reason for NBD_OPT_STRUCTURED_REPLY.
                peer.ack(option);
                assert_eq!(refuse_until(peer, GO, code), [SET_META_CONTEXT, GO]);
                peer.accept(GO, MIB, EXPORT);
                let _disc = peer.rest();
            });
            let client = options().connect(&server.uri("disk")).unwrap();
            assert_eq!(client.mode(), HeaderStyle::Extended);
            assert!(client.contexts().is_empty());
            drop(client);
            server.finish();
        }
    });
}

#[test]
fn a_refused_export_ends_the_session_politely() {
    // C-035, C-076
    run(|| {
        for code in [POLICY, INVALID, PLATFORM, UNKNOWN, SHUTDOWN, TLS_REQD] {
            let server = Scripted::start(1, move |_, peer| {
                peer.greet(FLAGS);
                refuse_until(peer, GO, UNSUP);
                peer.refuse(GO, code);
                assert_eq!(peer.last_options(), [(ABORT, Vec::new())]);
            });
            let error = options().connect(&server.uri("disk")).unwrap_err();
            assert_names(&error, &["the server refused NBD_OPT_GO with NBD_REP_ERR_"]);
            server.finish();
        }
    });
}

#[test]
fn a_disconnect_does_not_need_the_reply_to_its_abort() {
    // C-035
    run(|| {
        for answers in [true, false] {
            let (sender, receiver) = mpsc::channel();
            let server = Scripted::start(1, move |_, peer| {
                peer.greet(FLAGS);
                refuse_until(peer, GO, UNSUP);
                peer.refuse(GO, UNKNOWN);
                assert_eq!(peer.option(), (ABORT, Vec::new()));
                if answers {
                    thread::sleep(A_WHILE);
                    peer.ack(ABORT);
                }
                // The connection stays open until the client has left, which must not wait for
                // that.
                receiver.recv().unwrap();
            });
            let start = Instant::now();
            options().connect(&server.uri("disk")).unwrap_err();
            let took = start.elapsed();
            assert!(took >= A_WHILE, "{took:?}");
            sender.send(()).unwrap();
            server.finish();
        }
    });
}

#[test]
fn a_server_that_shuts_down_is_asked_nothing_more() {
    // C-034
    run(|| {
        for step in 0..4 {
            let server = Scripted::start(1, move |_, peer| {
                peer.greet(FLAGS);
                let code = |now: usize| if now == step { SHUTDOWN } else { UNSUP };
                for (now, option) in [EXTENDED_HEADERS, STRUCTURED_REPLY, SET_META_CONTEXT, GO]
                    .into_iter()
                    .enumerate()
                {
                    assert_eq!(peer.option().0, option);
                    if option == STRUCTURED_REPLY && now < step {
                        peer.ack(option);
                    } else {
                        peer.refuse(option, code(now));
                    }
                    if now == step {
                        break;
                    }
                }
                assert_eq!(peer.last_options(), [(ABORT, Vec::new())]);
            });
            let error = options().connect(&server.uri("disk")).unwrap_err();
            assert_names(&error, &["NBD_REP_ERR_SHUTDOWN"]);
            server.finish();
        }
    });
}

#[test]
fn tls_that_is_required_but_switched_off_is_reported() {
    // C-064
    run(|| {
        for wanted_at in [EXTENDED_HEADERS, STRUCTURED_REPLY, GO] {
            let server = Scripted::start(1, move |_, peer| {
                peer.greet(FLAGS);
                refuse_until(peer, wanted_at, UNSUP);
                peer.refuse(wanted_at, TLS_REQD);
                assert_eq!(peer.last_options(), [(ABORT, Vec::new())]);
            });
            let error = options().connect(&server.uri("disk")).unwrap_err();
            assert_names(&error, &["the server requires TLS, which is switched off"]);
            server.finish();
        }
    });
}

#[test]
fn refused_tls_is_done_without_only_if_that_is_allowed() {
    // C-055, C-056, C-057
    run(|| {
        for code in [UNSUP, POLICY, INVALID, PLATFORM] {
            let server = Scripted::start(2, move |number, peer| {
                peer.greet(FLAGS);
                assert_eq!(peer.option(), (STARTTLS, Vec::new()));
                peer.refuse(STARTTLS, code);
                if number == 0 {
                    refuse_until(peer, GO, UNSUP);
                    peer.accept(GO, MIB, EXPORT);
                    serve_zeroes(peer);
                } else {
                    assert_eq!(peer.last_options(), [(ABORT, Vec::new())]);
                }
            });
            let client = options()
                .tls_policy(TlsPolicy::IfOffered)
                .connect(&server.uri("disk"))
                .unwrap();
            assert!(!client.is_encrypted());
            client.disconnect().unwrap();
            let error = options().connect(&server.tls_uri("disk")).unwrap_err();
            assert_names(&error, &["TLS is required, and the server refuses it"]);
            server.finish();
        }
    });
}

#[test]
fn tls_that_fails_is_not_followed_by_anything_in_the_clear() {
    // C-059, U-008
    run(|| {
        let server = Scripted::start(2, |_, peer| {
            peer.greet(FLAGS);
            assert_eq!(peer.option().0, STARTTLS);
            peer.ack(STARTTLS);
            // These bytes are no TLS.
            peer.send(b"\0\x03\xe8\x89\x04Ue\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0");
            let said = peer.rest();
            assert_eq!(said[..3], [22, 3, 1], "a ClientHello");
            assert!(!said.windows(8).any(|bytes| bytes == b"IHAVEOPT"));
        });
        let required = options().connect(&server.tls_uri("disk"));
        let optional = options()
            .tls_policy(TlsPolicy::IfOffered)
            .connect(&server.uri("disk"));
        for error in [required.unwrap_err(), optional.unwrap_err()] {
            assert_names(&error, &["the TLS handshake failed", "127.0.0.1"]);
        }
        server.finish();
    });
}

#[test]
fn info_is_not_needed_to_go() {
    // C-077, C-078
    run(|| {
        let server = Scripted::start(1, |_, peer| {
            peer.greet(FLAGS);
            assert_eq!(peer.option().0, LIST);
            peer.refuse(LIST, UNSUP);
            assert_eq!(peer.option().0, INFO);
            peer.refuse(INFO, UNSUP);
            assert_eq!(peer.option().0, GO);
            peer.accept(GO, MIB, EXPORT);
            serve_zeroes(peer);
        });
        let started = options().start(&uri(&server.uri("disk"))).unwrap();
        let mut negotiation = started.negotiation().unwrap();
        negotiation.list().unwrap_err();
        negotiation.info(go("disk")).unwrap_err();
        let client = negotiation.go(go("disk")).unwrap().into_result().unwrap();
        client.disconnect().unwrap();
        server.finish();
    });
}

#[test]
fn offered_options_are_not_offered_again() {
    // C-098: block sizes were asked for. C-141: so were extended headers.
    run(|| {
        for code in [BLOCK_SIZE_REQD, EXT_HEADER_REQD] {
            let server = Scripted::start(1, move |_, peer| {
                peer.greet(FLAGS);
                refuse_until(peer, GO, UNSUP);
                peer.refuse(GO, code);
                assert_eq!(peer.last_options(), [(ABORT, Vec::new())]);
            });
            let error = options().connect(&server.uri("disk")).unwrap_err();
            assert_names(&error, &["NBD_OPT_GO"]);
            let recording = server.finish().remove(0);
            let (asked, _) = recording.options();
            let (_, request) = asked.iter().find(|(option, _)| *option == GO).unwrap();
            let infos = &request[4 + 4 + 2..];
            assert!(infos.chunks(2).any(|info| info == [0, 3]));
        }
    });
}

#[test]
fn extended_headers_leave_no_way_back() {
    // C-102
    run(|| {
        let server = Scripted::start(2, |_, peer| {
            peer.greet(FLAGS);
            assert_eq!(peer.option().0, EXTENDED_HEADERS);
            peer.ack(EXTENDED_HEADERS);
            assert_eq!(peer.option().0, GO);
            peer.refuse(GO, UNSUP);
            assert_eq!(peer.last_options(), [(ABORT, Vec::new())]);
        });
        let error = ConnectOptions::new()
            .connect(&server.uri("disk"))
            .unwrap_err();
        assert_names(&error, &["NBD_OPT_GO", "NBD_REP_ERR_UNSUP"]);

        let started = options().start(&uri(&server.uri("disk"))).unwrap();
        let mut negotiation = started.negotiation().unwrap();
        negotiation.extended_headers().unwrap();
        let refused = negotiation
            .go(go("disk"))
            .unwrap()
            .into_result()
            .unwrap_err();
        refused.handle.abort();
        server.finish();
    });
}

#[test]
fn export_name_is_not_sent_with_extended_headers() {
    // C-102
    run(|| {
        let server = Scripted::start(1, |_, peer| {
            peer.greet(FLAGS);
            assert_eq!(peer.option().0, EXTENDED_HEADERS);
            peer.ack(EXTENDED_HEADERS);
            for (option, _) in peer.last_options() {
                assert_eq!(option, ABORT);
            }
        });
        let started = options().start(&uri(&server.uri("disk"))).unwrap();
        let mut negotiation = started.negotiation().unwrap();
        negotiation.extended_headers().unwrap();
        let error = negotiation.export_name(&name("disk")).unwrap_err();
        assert_names(&error, &["NBD_OPT_EXPORT_NAME cannot be sent now"]);
        server.finish();
    });
}

#[test]
fn disconnecting_waits_for_requests_in_flight() {
    // C-187
    run(|| {
        let (sender, receiver) = mpsc::channel();
        let server = Scripted::start(1, move |_, peer| {
            peer.greet(FLAGS);
            refuse_until(peer, GO, UNSUP);
            peer.accept(GO, MIB, EXPORT);
            let flush = peer.request();
            assert_eq!(flush.command, 3);
            sender.send(()).unwrap();
            peer.hear_nothing(Duration::from_millis(400));
            peer.simple(0, flush.cookie, &[]);
            let disc = peer.request();
            assert_eq!((disc.command, disc.offset, disc.len), (2, 0, 0));
            assert!(peer.rest().is_empty());
        });
        let client = options().connect(&server.uri("disk")).unwrap();
        thread::scope(|scope| {
            let flush = scope.spawn(|| client.flush());
            receiver.recv().unwrap();
            client.disconnect().unwrap();
            flush.join().unwrap().unwrap();
        });
        server.finish();
    });
}

#[test]
fn a_command_that_finds_the_server_shutting_down_is_the_last() {
    // C-188
    run(|| {
        let server = Scripted::start(1, |_, peer| {
            peer.greet(FLAGS);
            refuse_until(peer, GO, UNSUP);
            peer.accept(GO, MIB, EXPORT);
            let trim = peer.request();
            peer.simple(108, trim.cookie, &[]);
            let disc = peer.request();
            assert_eq!(disc.command, 2);
            assert!(peer.rest().is_empty());
        });
        let client = options().connect(&server.uri("disk")).unwrap();
        let error = client.trim(0, 512, CommandFlags::NONE).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Shutdown));
        assert!(client.flush().unwrap_err().is_lost());
        server.finish();
    });
}

#[test]
fn a_uri_leads_to_its_port_or_the_usual_one() {
    // C-005, U-015
    run(|| {
        let server = Scripted::start(1, |_, peer| {
            peer.greet(FLAGS);
            let _rest = peer.rest();
        });
        let at = uri(&server.uri("disk"));
        options().start(&at).unwrap().negotiation().unwrap().abort();
        server.finish();

        // No server listens there.
        let error = options().connect("nbd://127.99.98.97/disk").unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        assert_names(&error, &["127.99.98.97:10809"]);
    });
}
