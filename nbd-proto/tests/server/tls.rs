//! The three TLS modes. The harness has no TLS: after its acknowledgement, the client's bytes stand
//! for those that TLS has decrypted.

use crate::support::*;
use nbd_proto::{Error, server::Refusal};

fn said(server: &Server, parts: &[Vec<u8>]) -> Vec<String> {
    let ran = run(server, &options(parts));
    assert!(matches!(ran.end, End::Idle | End::Aborted), "{:?}", ran.end);
    ran.said
}

#[test]
fn without_tls_the_server_says_so_and_goes_on_in_the_clear() {
    // S-042, S-043, S-045, S-046
    let server = Server::default();
    let mut parts = vec![opt(5, b""), opt(5, b"x")];
    parts.extend([3, 4, 6, 7, 8, 9, 10, 11, 12].map(|code| opt(code, b"")));
    parts.push(info("nope", &[]));
    let said = said(&server, &parts);
    assert_eq!(said[..2], ["5: POLICY", "5: INVALID"]);
    assert!(said.iter().all(|said| !said.contains("TLS_REQD")));
    // Even if the embedder requires TLS, no client is asked to start TLS where there is none.
    let server = Server {
        refusal: Some(Refusal::TlsRequired),
        ..server
    };
    let parts = [
        opt(8, b""),
        opt(3, b""),
        info("disk", &[]),
        go("disk", &[]),
        list_meta("disk", &[]),
        set_meta("disk", &["base:allocation"]),
    ];
    let expected = [
        "8: ACK",
        "3: POLICY",
        "6: UNKNOWN",
        "7: UNKNOWN",
        "9: UNKNOWN",
        "10: UNKNOWN",
    ];
    assert_eq!(crate::tls::said(&server, &parts), expected);
}

#[test]
fn starttls_with_data_is_invalid_and_starts_nothing() {
    // S-047
    for server in [Server::selective(), Server::forced()] {
        let ran = run(&server, &options(&[opt(5, b"x"), opt(2, b"")]));
        assert_eq!(ran.said, ["5: INVALID", "2: ACK"]);
        assert!(ran.asked.is_empty());
    }
}

#[test]
fn bytes_behind_starttls_are_left_to_tls() {
    // S-048, S-050, S-051, H-048
    for server in [Server::selective(), Server::forced()] {
        let starttls = opt(5, b"");
        let ran = run(
            &server,
            &options(&[starttls.clone(), opt(8, b""), opt(2, b"")]),
        );
        assert_eq!(ran.said, ["5: ACK", "8: ACK", "2: ACK"]);
        assert_eq!(ran.asked, ["TLS with 32 bytes to come"]);
        // The acknowledgement is the last byte in the clear.
        let ran = run(&server, &options(&[starttls]));
        assert_eq!(
            ran.sent[18..],
            [&b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x05\0\0\0\x01\0\0\0\0"[..]].concat()
        );
    }
}

#[test]
fn starttls_inside_tls_is_invalid() {
    // S-049
    for server in [Server::selective(), Server::forced()] {
        let said = said(
            &server,
            &[opt(5, b""), opt(5, b""), opt(5, b"x"), opt(2, b"")],
        );
        assert_eq!(said, ["5: ACK", "5: INVALID", "5: INVALID", "2: ACK"]);
    }
}

#[test]
fn inside_tls_every_option_finds_the_exports_that_require_it() {
    // S-057, S-058, S-085
    let parts = [
        opt(8, b""),
        info("secret", &[]),
        list_meta("secret", &["base:"]),
        set_meta("secret", &["base:allocation"]),
        opt(2, b""),
    ];
    let in_the_clear = said(&Server::selective(), &parts);
    assert_eq!(
        in_the_clear,
        ["8: ACK", "6: TLS_REQD", "9: POLICY", "10: POLICY", "2: ACK"]
    );
    let inside = [vec![opt(5, b"")], parts.to_vec()].concat();
    assert_eq!(
        said(&Server::selective(), &inside),
        [
            "5: ACK",
            "8: ACK",
            "6: EXPORT 1048576 0x0dfd",
            "6: ACK",
            "9: CONTEXT 0 \"base:allocation\"",
            "9: ACK",
            "10: CONTEXT 1 \"base:allocation\"",
            "10: ACK",
            "2: ACK",
        ]
    );
    // That has no answer but the export.
    let name = opt(1, b"secret");
    let ran = run(&Server::selective(), &options(std::slice::from_ref(&name)));
    assert!(matches!(ran.end, End::Dead(_)), "{:?}", ran.end);
    let ran = run(&Server::selective(), &options(&[opt(5, b""), name]));
    assert_eq!(ran.end, End::Idle);
}

#[test]
fn a_handshake_that_forces_tls_is_one_that_can_start_it() {
    // S-053
    let mut server = Server::forced();
    server.config.fixed_newstyle = false;
    let ran = run(&server, &options(&[opt(5, b""), opt(2, b"")]));
    assert_eq!(ran.said, ["5: ACK", "2: ACK"]);
    assert_eq!(ran.sent[16..18], [0, 3], "the flags of the greeting");
}

#[test]
fn the_end_of_a_clients_bytes_is_no_loss_between_messages_only() {
    for server in [Server::default(), Server::forced()] {
        let script = options(&[opt(5, b"x")]);
        for len in 0..=script.len() {
            let between = [0, 4, script.len()].contains(&len);
            let end = if between { End::Idle } else { End::Inside };
            assert_eq!(run(&server, &script[..len]).end, end, "after {len} bytes");
        }
    }
}

#[test]
fn tls_forgets_everything_negotiated_in_the_clear() {
    // S-052, S-115, S-141
    let server = Server::selective();
    let starttls = opt(5, b"");
    let read = Enter::Simple.req(0, 0, 1, 0, 4, b"");
    for mode in [Enter::Structured, Enter::Extended] {
        let before = options(&[mode.mode(), starttls.clone(), go("disk", &[])]);
        let ran = serve_after(&server, &before, std::slice::from_ref(&read));
        assert_eq!(ran.said, ["#1 ok 4"]);
    }
    let status = Enter::Structured.req(0, 7, 1, 0, 512, b"");
    let contexts = set_meta("disk", &["base:allocation"]);
    let before = options(&[
        opt(8, b""),
        contexts.clone(),
        starttls,
        opt(8, b""),
        go("disk", &[]),
    ]);
    let ran = serve_after(&server, &before, std::slice::from_ref(&status));
    assert_eq!(ran.said, ["#1 error 22 done"]);
    // Without TLS in between the contexts stay selected.
    let before = options(&[opt(8, b""), contexts, go("disk", &[])]);
    let ran = serve_after(&server, &before, &[status]);
    assert_eq!(ran.said, ["#1 status 1 512:1 done"]);
}

#[test]
fn a_server_that_forces_tls_answers_nothing_else() {
    // S-053, S-055, S-056, S-042
    let parts = [
        opt(3, b""),
        opt(4, b""),
        info("disk", &[3]),
        go("disk", &[3]),
        opt(8, b""),
        list_meta("disk", &[]),
        set_meta("disk", &[]),
        opt(11, b""),
        opt(99, &[0; 1000]),
        opt(7, &vec![0; 100_000]),
        opt(2, b""),
    ];
    let said = said(&Server::forced(), &parts);
    let codes = [3, 4, 6, 7, 8, 9, 10, 11, 99, 7];
    let mut expected: Vec<_> = codes
        .iter()
        .map(|code| format!("{code}: TLS_REQD"))
        .collect();
    expected.push("2: ACK".into());
    assert_eq!(said, expected);
}

#[test]
fn a_server_that_forces_tls_cannot_refuse_export_name_but_by_closing() {
    // S-022, S-044, S-054
    let why = "TLS has to be started first";
    for flags in [vec![0, 0, 0, 3], vec![0; 4]] {
        let ran = run(&Server::forced(), &script(&[flags, opt(1, b"disk")]));
        assert_eq!(ran.end, End::Dead(Error::ExportNameRefused { why }));
        assert_eq!(ran.sent.len(), 18);
    }
    let ran = run(&Server::forced(), &script(&[vec![0; 4], opt(5, b"")]));
    let option = 5.into();
    assert_eq!(
        ran.end,
        End::Dead(Error::OptionNeedsFixedNewstyle { option })
    );
    // Where TLS is optional, a client that cannot start it is served without.
    let selective = Server::selective();
    let ran = run(&selective, &script(&[vec![0; 4], opt(1, b"disk")]));
    assert_eq!((ran.said.len(), ran.end), (1, End::Idle));
    let ran = run(&selective, &script(&[vec![0; 4], opt(5, b"")]));
    let refused = Error::OptionNeedsFixedNewstyle { option };
    assert_eq!((ran.said.len(), ran.end), (0, End::Dead(refused)));
}

#[test]
fn inside_tls_everything_works_and_no_option_needs_tls() {
    // S-052, S-057, S-058
    for server in [Server::selective(), Server::forced()] {
        let parts = [opt(5, b""), go("nope", &[]), opt(11, b""), go("disk", &[])];
        let ran = serve_after(
            &server,
            &options(&parts),
            &[Enter::Extended.req(0, 0, 1, 0, 4, b"")],
        );
        assert_eq!(ran.said, ["#1 data 0+4 done"]);
        assert_eq!(run(&server, &options(&parts)).said[1], "7: UNKNOWN");
        let insists = Server {
            refusal: Some(Refusal::TlsRequired),
            ..server
        };
        assert_eq!(
            said(&insists, &[opt(5, b""), info("disk", &[])])[1],
            "6: UNKNOWN"
        );
    }
}

#[test]
fn a_selective_server_protects_some_exports() {
    // S-037, S-058, S-060, S-061, S-062, S-063, S-064
    let server = Server::selective();
    let parts = [
        opt(8, b""),
        opt(3, b""),
        info("secret", &[1, 2, 3]),
        go("secret", &[1, 2, 3]),
        list_meta("secret", &[]),
        set_meta("secret", &["base:allocation"]),
        info("disk", &[]),
        opt(5, b""),
        opt(3, b""),
        go("secret", &[]),
    ];
    let expected = [
        "8: ACK",
        "3: SERVER \"disk\" \"about it\"",
        "3: ACK",
        "6: TLS_REQD",
        "7: TLS_REQD",
        "9: POLICY",
        "10: POLICY",
        "6: EXPORT 1048576 0x0dfd",
        "6: ACK",
        "5: ACK",
        "3: SERVER \"disk\" \"about it\"",
        "3: SERVER \"secret\" \"about it\"",
        "3: ACK",
        "7: EXPORT 1048576 0x0d7d",
        "7: ACK",
    ];
    assert_eq!(said(&server, &parts), expected);
    let ran = run(&server, &options(&[opt(1, b"secret")]));
    assert_eq!((ran.said.len(), ran.sent.len()), (0, 18));
    let only_secret = Server {
        exports: server.exports[1..].to_vec(),
        ..server
    };
    assert_eq!(said(&only_secret, &[opt(3, b"")]), ["3: ACK"]);
}

#[test]
fn unknown_and_hidden_exports_can_be_given_the_same_answer() {
    // S-059, H-051
    let server = Server {
        refusal: Some(Refusal::TlsRequired),
        ..Server::selective()
    };
    let hidden = Server {
        exports: vec![Export {
            refusal: Some(Refusal::TlsRequired),
            ..Export::new("nope")
        }],
        ..server.clone()
    };
    let a = run(&server, &options(&[info("secret", &[]), go("secret", &[])]));
    let b = run(&hidden, &options(&[info("nope", &[]), go("nope", &[])]));
    assert_eq!(a.sent, b.sent);
}
