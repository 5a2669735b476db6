//! Encryption: rules before it, across it and without it.

use crate::common::{
    bytes::*,
    session::{contexts, export, granted, negotiate},
    wire::{Wire, always},
};
use nbd_proto::{
    HeaderStyle, Step,
    client::{
        Config, Encrypted, Go, GoOutcome, Options, Plain, SecureHandshake, TlsOutcome, TlsRequired,
    },
    wire::OptionReplyCode,
};

/// Starts TLS on a connection that may stay in the clear, and succeeds.
fn upgrade(wire: &mut Wire, options: Options<Plain>) -> Options<Encrypted> {
    let pending = options.start_tls(&mut wire.out);
    match wire.answer(pending, ack(5)) {
        Ok(TlsOutcome::Accepted(upgrade)) => upgrade.upgraded(),
        other => panic!("{other:?}"),
    }
}

fn list(wire: &mut Wire, options: Options<Plain>, names: &[&str]) -> (Options<Plain>, usize) {
    let pending = options.list(&mut wire.out);
    for name in names {
        wire.says(server(name.as_bytes(), b""));
    }
    let settled = wire.answer(pending, ack(3)).expect("a list");
    (settled.options, settled.result.expect("a list").len())
}

#[test]
fn tls_can_be_started_at_any_time_and_lists_before_and_after_it_are_apart() {
    // C-051, C-106
    let found = negotiate(|wire, options| {
        let (options, before) = list(wire, options, &["a"]);
        let options = upgrade(wire, options);
        let pending = options.list(&mut wire.out);
        wire.says(server(b"a", b"")).says(server(b"b", b""));
        let after = wire.answer(pending, ack(3)).unwrap().result.unwrap().len();
        (before, after)
    });
    assert_eq!(found, (1, 2));
}

#[test]
fn bytes_behind_the_ack_are_left_to_the_tls_engine() {
    // C-053, H-013
    let smuggled = [ack(8), server(b"disk", b"")].concat();
    let left = negotiate(|wire, options| {
        let pending = options.start_tls(&mut wire.out);
        let _ = wire.sent();
        wire.says(ack(5)).says(&smuggled);
        let Ok(TlsOutcome::Accepted(upgrade)) = wire.finish(pending) else {
            panic!("TLS begins");
        };
        assert_eq!(wire.sent(), [], "the next bytes are of the TLS handshake");
        assert_eq!(upgrade.upgraded().mode(), HeaderStyle::Simple);
        wire.left()
    });
    assert_eq!(left, smuggled.len());
}

#[test]
fn nothing_that_was_negotiated_in_the_clear_survives_tls() {
    // C-063, C-143, C-148
    negotiate(|wire, options| {
        let pending = options.structured_reply(&mut wire.out).unwrap();
        let options = granted(wire.answer(pending, ack(8)));
        let pending = options
            .set_meta_context(&export("a"), &contexts(&["base:allocation"]), &mut wire.out)
            .unwrap();
        wire.says(meta(10, 1, "base:allocation"));
        let options = granted(wire.answer(pending, ack(10)));
        let options = upgrade(wire, options);
        assert_eq!(options.mode(), HeaderStyle::Simple);
        let _ = wire.sent();

        // The client can ask for both again, and has no contexts until then.
        let pending = options.structured_reply(&mut wire.out).unwrap();
        assert_eq!(wire.sent(), opt(8, []));
        let options = granted(wire.answer(pending, ack(8)));
        let pending = options.go(Go::new(export("a")), &mut wire.out);
        wire.says(iexp(7, 1 << 20, 1));
        let Ok(GoOutcome::Accepted(transmission)) = wire.answer(pending, ack(7)) else {
            panic!("the export is entered");
        };
        assert_eq!(transmission.contexts(), []);
    });
    let mode = negotiate(|wire, options| {
        let pending = options.extended_headers(&mut wire.out).unwrap();
        let options = granted(wire.answer(pending, ack(11)));
        let options = upgrade(wire, options);
        assert_eq!(options.mode(), HeaderStyle::Simple);
        let _ = wire.sent();
        let pending = options.extended_headers(&mut wire.out).unwrap();
        assert_eq!(wire.sent(), opt(11, []));
        granted(wire.answer(pending, ack(11))).mode()
    });
    assert_eq!(mode, HeaderStyle::Extended);
}

#[test]
fn without_tls_a_connection_that_does_not_need_it_goes_on() {
    // C-055
    for code in [1, 2, 3, 4, 6, 9] {
        negotiate(|wire, options| {
            let pending = options.structured_reply(&mut wire.out).unwrap();
            let options = granted(wire.answer(pending, ack(8)));
            let pending = options.start_tls(&mut wire.out);
            let Ok(TlsOutcome::Refused(options, _)) = wire.answer(pending, err(5, code, "")) else {
                panic!("TLS was refused");
            };
            assert_eq!(options.mode(), HeaderStyle::Structured, "nothing was wiped");
            list(wire, options, &["a"]).1
        });
    }
}

#[test]
fn without_tls_a_connection_that_needs_it_can_only_be_aborted() {
    // C-055, C-056, C-058, C-071, H-015
    for code in [1, 2, 5, 7] {
        let sent = always(|wire| {
            let secure = SecureHandshake::new(Config::default());
            let options: TlsRequired = wire.answer(secure, hello(3)).unwrap();
            let pending = options.start_tls(&mut wire.out);
            let Ok(TlsOutcome::Refused(options, error)) = wire.answer(pending, err(5, code, ""))
            else {
                panic!("TLS was refused");
            };
            assert!(error.code.is_error());
            options.abort(&mut wire.out);
            wire.sent()
        });
        assert_eq!(sent, [cf(3), opt(5, []), opt(2, [])].concat());
    }
}

#[test]
fn an_export_that_wants_tls_does_not_end_the_session() {
    // C-065, C-066
    negotiate(|wire, options| {
        let pending = options.go(Go::new(export("secret")), &mut wire.out);
        let Ok(GoOutcome::Refused(options, error)) = wire.answer(pending, err(7, 5, "")) else {
            panic!("this is a refusal");
        };
        assert_eq!(error.code, OptionReplyCode::ErrTlsReqd);
        let pending = options.go(Go::new(export("open")), &mut wire.out);
        wire.says(iexp(7, 1 << 20, 1));
        matches!(wire.answer(pending, ack(7)), Ok(GoOutcome::Accepted(_)))
    });
    negotiate(|wire, options| {
        let options = upgrade(wire, options);
        let pending = options.list(&mut wire.out);
        let _ = wire.sent();
        let settled = wire.answer(pending, err(3, 5, "")).unwrap();
        assert_eq!(
            settled.result.unwrap_err().code,
            OptionReplyCode::ErrTlsReqd
        );
        settled.options.abort(&mut wire.out);
        assert_eq!(wire.sent(), opt(2, []));
    });
}

#[test]
fn the_client_without_tls_takes_no_more_than_the_ack_from_the_transport() {
    // C-053
    negotiate(|wire, options| {
        let mut pending = options.start_tls(&mut wire.out);
        for byte in &ack(5)[..19] {
            let Ok(Step::More(more)) = wire.says([*byte]).run(pending) else {
                panic!("one byte is missing");
            };
            pending = more;
        }
        assert_eq!(nbd_proto::Phase::space(&mut pending).len(), 1);
    });
}
