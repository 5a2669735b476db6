use alloc::{format, string::ToString, vec::Vec};

use super::*;
use crate::NameError;

mod parameters;
mod properties;

fn all() -> Permissions {
    Permissions::default().local_files().anonymous_tls()
}

fn ok(uri: &str) -> Uri {
    Uri::parse_with(uri, all()).unwrap_or_else(|e| panic!("{uri:?}: {e}"))
}

fn err(uri: &str) -> UriError {
    Uri::parse_with(uri, all()).expect_err(uri)
}

fn value(part: Part, at: usize, reason: ValueError) -> UriError {
    UriError::Value { part, at, reason }
}

fn assert_errors(table: &[(&str, UriError)]) {
    for (uri, expected) in table {
        assert_eq!(&err(uri), expected, "{uri:?}");
    }
}

fn assert_exports(table: &[(&str, &str)]) {
    for (uri, expected) in table {
        assert_eq!(ok(uri).export().as_str(), *expected, "{uri:?}");
    }
}

#[test]
fn a_scheme_of_any_case_chooses_transport_and_tls() {
    // U-003, U-004, U-015, A-102, A-103
    let tcp = Uri::tcp("h", 1).unwrap();
    let unix = Uri::unix("/s").unwrap();
    let vsock = Uri::vsock(3, 1).unwrap();
    let tls = |uri: &Uri| uri.clone().with_tls(Tls::new());
    let table = [
        ("nbd://h:1", tcp.clone()),
        ("NBD://h:1", tcp.clone()),
        ("nbd+tcp://h:1", tcp.clone()),
        ("nbds://h:1", tls(&tcp)),
        ("nbd+unix://?socket=/s", unix.clone()),
        ("Nbds+UNIX://?socket=/s", tls(&unix)),
        ("nbd+vsock://3:1", vsock.clone()),
        ("nbds+vsock://3:1", tls(&vsock)),
    ];
    for (uri, expected) in table {
        assert_eq!(ok(uri), expected, "{uri:?}");
    }
}

#[test]
fn another_scheme_or_none_is_an_error() {
    // U-002, U-004, U-005, U-006
    let slashes = UriError::MissingSlashes {
        scheme: "nbd",
        at: 3,
    };
    let mut table = Vec::from([
        ("nbd:host/x", slashes.clone()),
        ("NBD:/x", slashes.clone()),
        ("nbd:", slashes),
    ]);
    for uri in [
        "",
        "/tmp/s",
        "localhost:10809",
        "[::1]:10809",
        " nbd://h",
        "nbd",
        "://h",
    ] {
        table.push((uri, UriError::NoScheme));
    }
    for scheme in [
        "nbdx", "nbd+ssh", "nbds+ssh", "nbds+tcp", "nbd+exec", "http",
    ] {
        let uri = format!("{scheme}://h/");
        let scheme = scheme.into();
        assert_eq!(err(&uri), UriError::UnknownScheme { scheme });
    }
    assert_errors(&table);
}

#[test]
fn text_outside_rfc_3986_is_an_error() {
    // U-001
    let character = |part, got, at| UriError::Character { part, got, at };
    assert_errors(&[
        ("nbd://h/a b", character(Part::Export, ' ', 9)),
        ("nbd://h/%zz", UriError::Escape { at: 8 }),
        ("nbd://h/x%4", UriError::Escape { at: 9 }),
        ("nbd://h/%", UriError::Escape { at: 8 }),
        ("nbd://h/%+4", UriError::Escape { at: 8 }),
        ("nbd://h/%\u{e9}4", UriError::Escape { at: 8 }),
        ("nbd://h/a[1]", character(Part::Export, '[', 9)),
        ("nbd://h/\u{e9}", character(Part::Export, '\u{e9}', 8)),
        ("nbd://h\\x/", character(Part::Host, '\\', 7)),
        ("nbd://a b@h/", character(Part::User, ' ', 7)),
        ("nbd://h@i@j/", character(Part::Host, '@', 9)),
        ("nbd://h/?a\"b", character(Part::ParameterName, '"', 10)),
        (
            "nbd+unix:///?socket=/a\n",
            character(Part::Parameter("socket"), '\n', 22),
        ),
    ]);
}

#[test]
fn a_fragment_is_an_error() {
    // U-043
    assert_errors(&[
        ("nbd://h/x#y", UriError::Fragment { at: 9 }),
        ("nbd://h#", UriError::Fragment { at: 7 }),
        ("nbd+unix:///?socket=/s#y", UriError::Fragment { at: 22 }),
    ]);
    assert_exports(&[("nbd://h/x%23y", "x#y")]);
}

#[test]
fn a_unix_uri_takes_its_server_from_socket() {
    // U-012, U-013, U-031, A-096, A-100
    let path = |path: &str| Uri::unix(path).unwrap();
    let table = [
        (
            "nbd+unix:///?socket=%2Ftmp%2Fa%20b",
            Uri::unix("/tmp/a b").unwrap(),
        ),
        ("nbd+unix:///?socket=../s", path("../s")),
        ("nbd+unix:///?socket=a+b", path("a+b")),
        ("nbd+unix://?%73ocket=a=b", path("a=b")),
        ("nbd+unix://?socket=/a;b", path("/a;b")),
        ("nbd+unix://?&socket=/a?b&&", path("/a?b")),
        ("nbd+unix://?socket=a%26b%2526", path("a&b%26")),
        ("nbd+unix://?socket=%FF", Uri::unix(b"\xff").unwrap()),
        (
            "nbd+unix:///?socket=%00/abstract",
            Uri::abstract_socket("/abstract").unwrap(),
        ),
    ];
    for (uri, expected) in table {
        assert_eq!(ok(uri), expected, "{uri:?}");
    }
}

#[test]
fn a_unix_uri_without_a_usable_socket_is_an_error() {
    // U-010, U-013, U-014
    let socket = |reason| value(Part::Parameter("socket"), 19, reason);
    assert_errors(&[
        ("nbd+unix:///x", UriError::MissingSocket),
        ("nbds+unix://", UriError::MissingSocket),
        ("nbd+unix://?socket=", socket(ValueError::Empty)),
        (
            "nbd+unix://?socket",
            value(Part::Parameter("socket"), 18, ValueError::Empty),
        ),
        ("nbd+unix://?socket=%00", socket(ValueError::Empty)),
        (
            "nbd+unix://?socket=a%00",
            socket(ValueError::Nul { offset: 1 }),
        ),
        (
            "nbd+unix://?socket=%00a%00",
            socket(ValueError::Nul { offset: 1 }),
        ),
    ]);
    for prefix in ["nbd+unix://?socket=", "nbd+unix://?socket=%00"] {
        assert!(Uri::parse(&format!("{prefix}{}", "x".repeat(107))).is_ok());
        assert_eq!(
            err(&format!("{prefix}{}", "x".repeat(108))),
            socket(ValueError::SocketTooLong { len: 108 })
        );
    }
}

#[test]
fn host_and_socket_exclude_each_other() {
    // U-011, U-016, A-099
    assert_errors(&[
        ("nbd://h/?socket=/s", UriError::SocketWithoutUnix { at: 9 }),
        (
            "nbd+vsock://3/?socket=/s",
            UriError::SocketWithoutUnix { at: 15 },
        ),
        ("nbd+unix://h/?socket=s", UriError::HostOfUnix { at: 11 }),
        ("nbd+unix://:1/?socket=s", UriError::HostOfUnix { at: 11 }),
        ("nbds+unix://a@h/?socket=s", UriError::HostOfUnix { at: 14 }),
    ]);
    let uri = ok("nbds+unix://alice@/x?socket=s");
    assert_eq!(uri.user(), Some("alice"));
}

#[test]
fn a_host_is_a_name_or_an_address() {
    // U-015, U-017, U-018, U-020, U-021, A-098
    let table = [
        ("nbd://example.com/", "example.com", 10809),
        ("nbd://ex%61mple/", "example", 10809),
        ("nbd://127.0.0.1:1/", "127.0.0.1", 1),
        ("nbd://[::1]:10810/x", "::1", 10810),
        ("nbd://[2001:DB8:0::1]", "2001:db8::1", 10809),
        ("nbd://[::ffff:1.2.3.4]:", "::ffff:1.2.3.4", 10809),
        ("nbd://[fe80::1%25eth0]:1/", "fe80::1%eth0", 1),
        ("nbd://[fe80::1%25a%2Db]/", "fe80::1%a-b", 10809),
        ("nbd:///x", "localhost", 10809),
        ("nbd://", "localhost", 10809),
        ("nbd://:1/", "localhost", 1),
        ("nbd://alice@:1/", "localhost", 1),
    ];
    for (uri, host, port) in table {
        assert_eq!(
            ok(uri).address(),
            &Address::tcp(Host::new(host).unwrap(), port).unwrap(),
            "{uri:?}"
        );
    }
}

#[test]
fn a_host_that_could_be_misread_is_an_error() {
    // U-017, U-019, U-020, A-098
    let host = |at, reason| value(Part::Host, at, reason);
    assert_errors(&[
        ("nbds:///x", UriError::MissingHost { at: 7 }),
        ("nbds://alice@:1/x", UriError::MissingHost { at: 13 }),
        ("nbd://::1/", host(6, ValueError::Ipv6)),
        ("nbd://h:1:2/", host(6, ValueError::Ipv6)),
        ("nbd://[::1", host(7, ValueError::Ipv6)),
        ("nbd://[::1]1/", host(7, ValueError::Ipv6)),
        ("nbd://[]/", host(7, ValueError::Ipv6)),
        ("nbd://[1.2.3.4]/", host(7, ValueError::Ipv6)),
        ("nbd://[v1.x]/", host(7, ValueError::Ipv6)),
        ("nbd://[fe80::1%eth0]/", host(7, ValueError::Ipv6)),
        ("nbd://[fe80::1%25]/", host(7, ValueError::Empty)),
        (
            "nbd://[fe80::1%25a%5D]/",
            host(7, ValueError::HostCharacter { got: ']' }),
        ),
        (
            "nbd://%3A%3A1/",
            host(6, ValueError::HostCharacter { got: ':' }),
        ),
        (
            "nbd://a%2Fb/",
            host(6, ValueError::HostCharacter { got: '/' }),
        ),
        (
            "nbd://a%0Ab/",
            host(6, ValueError::HostCharacter { got: '\n' }),
        ),
        ("nbd://a%00/", host(6, ValueError::Nul { offset: 1 })),
        ("nbd://a%FF/", host(6, ValueError::NotUtf8 { offset: 1 })),
    ]);
}

#[test]
fn a_port_is_10809_or_a_number_from_1_to_65535() {
    // U-021, U-022, A-101
    let range = |got| value(Part::Port, 8, ValueError::out_of_range(got, 1, 65535));
    let no_number = || value(Part::Port, 8, ValueError::NotANumber);
    assert_eq!(ok("nbd://h"), Uri::tcp("h", 10809).unwrap());
    assert_eq!(ok("nbd://h:"), Uri::tcp("h", 10809).unwrap());
    assert_eq!(ok("nbd://h:65535"), Uri::tcp("h", 65535).unwrap());
    assert_eq!(ok("nbd://h:00001"), Uri::tcp("h", 1).unwrap());
    assert_errors(&[
        ("nbd://h:0", range("0")),
        ("nbd://h:65536", range("65536")),
        (
            "nbd://h:99999999999999999999",
            range("99999999999999999999"),
        ),
        ("nbd://h:x", no_number()),
        ("nbd://h:+1", no_number()),
        ("nbd://h:-1", no_number()),
        ("nbd://h:%31", no_number()),
        ("nbd://h:1 ", no_number()),
    ]);
}

#[test]
fn vsock_has_a_cid_and_a_port_of_32_bits() {
    // U-022, U-025
    let table = [
        ("nbd+vsock://3:1234/x", 3, 1234),
        ("nbd+vsock://", 2, 10809),
        ("nbd+vsock://:4294967294/", 2, u32::MAX - 1),
        ("nbd+vsock://4294967294:/", u32::MAX - 1, 10809),
    ];
    for (uri, cid, port) in table {
        let address = Address::vsock(cid, port).unwrap();
        assert_eq!(ok(uri).address(), &address, "{uri:?}");
    }
    let range = |got, min| ValueError::out_of_range(got, min, u32::MAX - 1);
    assert_errors(&[
        (
            "nbd+vsock://4294967295",
            value(Part::Host, 12, range("4294967295", 0)),
        ),
        (
            "nbd+vsock://h",
            value(Part::Host, 12, ValueError::NotANumber),
        ),
        (
            "nbd+vsock://[::1]",
            value(Part::Host, 12, ValueError::NotANumber),
        ),
        ("nbd+vsock://3:0", value(Part::Port, 14, range("0", 1))),
        (
            "nbd+vsock://3:4294967295",
            value(Part::Port, 14, range("4294967295", 1)),
        ),
        (
            "nbd+vsock://3:4294967296",
            value(Part::Port, 14, range("4294967296", 1)),
        ),
        (
            "nbd+vsock://3:1:1",
            value(Part::Port, 14, ValueError::NotANumber),
        ),
    ]);
}

#[test]
fn userinfo_is_a_user_name() {
    // U-023
    let table = [
        ("nbds://alice@h/", Some("alice")),
        ("nbd://alice@h/", Some("alice")),
        ("nbds://al%20ice%3A%40%C3%A9@h/", Some("al ice:@\u{e9}")),
        ("nbds://h/", None),
    ];
    for (uri, expected) in table {
        assert_eq!(ok(uri).user(), expected, "{uri:?}");
    }
    assert_errors(&[
        ("nbds://@h/", value(Part::User, 7, ValueError::Empty)),
        (
            "nbds://a%00@h/",
            value(Part::User, 7, ValueError::Nul { offset: 1 }),
        ),
        (
            "nbds://%C3@h/",
            value(Part::User, 7, ValueError::NotUtf8 { offset: 0 }),
        ),
    ]);
}

#[test]
fn a_password_is_an_error_that_does_not_repeat_it() {
    // U-024
    assert_eq!(err("nbd://alice:@h/"), UriError::Password { at: 11 });
    for uri in [
        "nbd://alice:secret@h/",
        "nbd://alice:s%ecret\"secret@h/",
        "nbd://alice:secret/secret@h/",
        "nbd://alice:secret?secret@h/",
        "nbd://alice:secret#secret@h/",
        "nbd+unix://alice:secret/secret@/?socket=s",
    ] {
        let message = err(uri).to_string();
        assert!(!message.contains("secret"), "{message}");
    }
}

#[test]
fn the_export_follows_one_slash() {
    // U-026, U-027, U-028
    assert_exports(&[
        ("nbd://h", ""),
        ("nbd://h/", ""),
        ("nbd://h/disk", "disk"),
        ("nbd://h//disk", "/disk"),
        ("nbd://h///", "//"),
        ("nbd://h/a/b", "a/b"),
        ("nbd://h/hello%20world", "hello world"),
        ("nbd://h/%2Fx", "/x"),
        ("nbd://h/%252Fx", "%2Fx"),
        ("nbd://h/%c3%A9", "\u{e9}"),
        ("nbd://h/a%3Fb", "a?b"),
        ("nbd://h/a:b@c;d=e", "a:b@c;d=e"),
        ("nbd://h/a+b", "a+b"),
        ("nbd://h/../x", "../x"),
        ("nbd://h/./x/.", "./x/."),
        ("nbd://h/?", ""),
        ("nbd+unix:///x?socket=s", "x"),
        ("nbd+unix:////x?socket=s", "/x"),
    ]);
}

#[test]
fn an_export_name_must_be_legal() {
    // U-029
    let export = |reason| value(Part::Export, 8, ValueError::Export(reason));
    let long = format!("nbd://h/{}", "%78".repeat(4097));
    assert_errors(&[
        ("nbd://h/a%00", export(NameError::Nul { at: 1 })),
        ("nbd://h/a%FFb", export(NameError::NotUtf8 { at: 1 })),
        (&long, export(NameError::TooLong { len: 4097 })),
    ]);
    let longest = format!("nbd://h/{}", "%78".repeat(4096));
    assert_eq!(ok(&longest).export().as_str().len(), 4096);
}

#[test]
fn a_uri_is_written_in_its_canonical_form() {
    // U-046
    let table = [
        ("NBD+TCP://h:10809", "nbd://h/"),
        ("nbd:///x", "nbd://localhost/x"),
        ("nbd://H:1//a%2Fb%20+", "nbd://H:1//a/b%20%2B"),
        ("nbd://[::0:1%25a-b]:1", "nbd://[::1%25a-b]:1/"),
        ("nbds://%61%3A@h", "nbds://a%3A@h/"),
        ("nbd+vsock://", "nbd+vsock://2/"),
        ("nbd+vsock://3:4/a", "nbd+vsock://3:4/a"),
        (
            "nbd+unix:////a?socket=%2Fa%26%FF",
            "nbd+unix:////a?socket=/a%26%FF",
        ),
        ("nbd+unix://?socket=%00a", "nbd+unix:///?socket=%00a"),
        (
            "nbds://h?tls-psk-file=/k&tls-certificates=c&tls-verify-peer=0&tls-hostname=::1\
             &tls-type=anon",
            "nbds://h/?tls-type=anon&tls-hostname=%3A%3A1&tls-verify-peer=0&tls-certificates=c\
             &tls-psk-file=/k",
        ),
    ];
    for (uri, expected) in table {
        assert_eq!(ok(uri).to_string(), expected);
        assert_eq!(ok(expected), ok(uri));
    }
}

#[test]
fn text_for_logs_hides_the_user() {
    // U-047
    let uri = ok("nbds://alice@h/x?tls-verify-peer=0");
    assert_eq!(
        uri.redacted().to_string(),
        "nbds://***@h/x?tls-verify-peer=0"
    );
    assert_eq!(format!("{uri:?}"), "Uri(nbds://***@h/x?tls-verify-peer=0)");
    assert_eq!(uri.to_string(), "nbds://alice@h/x?tls-verify-peer=0");
}

#[test]
fn a_program_cannot_make_an_illegal_uri() {
    let zero = ValueError::out_of_range("0", 1, 65535);
    assert_eq!(Uri::tcp("h", 0), Err(zero));
    assert_eq!(Uri::tcp("", 1), Err(ValueError::Empty));
    assert_eq!(Uri::tcp("[::1]", 1), Err(ValueError::Ipv6));
    for got in [' ', '\u{a0}', '\u{7f}', '/', '@', '%'] {
        let wrong = ValueError::HostCharacter { got };
        assert_eq!(Uri::tcp(&format!("a{got}"), 1), Err(wrong));
    }
    assert_eq!(Uri::unix("a\0"), Err(ValueError::Nul { offset: 1 }));
    assert_eq!(Uri::abstract_socket(""), Err(ValueError::Empty));
    assert!(Uri::vsock(u32::MAX, 1).is_err());
    assert!(Uri::vsock(3, 0).is_err());
    let uri = Uri::tcp("h", 1).unwrap();
    let named = uri.clone().with_user("alice").unwrap();
    assert_eq!(named.user(), Some("alice"));
    assert_eq!(uri.with_user(""), Err(ValueError::Empty));
}

#[test]
fn a_message_names_the_expected_and_the_actual_text_and_its_place() {
    let table = [
        (
            "nbd://h:0/",
            "the port at byte 8: expected a number from 1 to 65535, got 0",
        ),
        (
            "nbd://h/a b",
            "' ' at byte 9 must be percent-encoded in the export name",
        ),
        (
            "nbds://h/?tls-type=foo",
            "the value of `tls-type` at byte 19: expected `anon`, `psk` or `x509`, got `foo`",
        ),
        (
            "nbd://h/%00",
            "the export name at byte 8: a string must not contain NUL, this one does at byte 0",
        ),
    ];
    for (uri, expected) in table {
        assert_eq!(err(uri).to_string(), expected);
    }
}
