//! The parameters behind the `?`.

use super::*;

#[test]
fn a_parameter_that_is_unknown_or_repeated_is_an_error() {
    // U-031, U-038, U-040, U-041, U-042, A-095
    for name in [
        "sokcet",
        "SOCKET",
        "x-foo",
        "tls-username",
        "tls-priority",
        "tls-type;socket",
        "",
    ] {
        let uri = format!("nbds+unix:///?socket=s&{name}=1");
        let expected = UriError::UnknownParameter {
            name: name.into(),
            at: 23,
        };
        assert_eq!(err(&uri), expected);
        assert!(expected.to_string().contains(&format!("`{name}`")));
    }
    for parameter in [
        "socket",
        "tls-certificates",
        "tls-hostname",
        "tls-psk-file",
        "tls-verify-peer",
    ] {
        let uri = format!("nbds+unix:///?{parameter}=1&{parameter}=1");
        let at = 17 + parameter.len();
        assert_eq!(err(&uri), UriError::RepeatedParameter { parameter, at });
    }
    assert_eq!(
        err("nbds://h/?tls-type=psk&tls-type=psk"),
        UriError::RepeatedParameter {
            parameter: "tls-type",
            at: 23
        }
    );
}

#[test]
fn tls_parameters_are_read() {
    // U-032, U-034
    let tls = |query: &str| ok(&format!("nbds://h/?{query}")).tls().cloned();
    let host = |name| Host::new(name).unwrap();
    let table = [
        ("", Tls::new()),
        ("tls-type=anon", Tls::new().with_kind(TlsType::Anon)),
        ("tls-type=psk", Tls::new().with_kind(TlsType::Psk)),
        ("tls-type=x509", Tls::new().with_kind(TlsType::X509)),
        ("tls-hostname=a%2Db", Tls::new().with_hostname(host("a-b"))),
        ("tls-hostname=::1", Tls::new().with_hostname(host("::1"))),
        ("tls-verify-peer=1", Tls::new()),
        ("tls-verify-peer=0", Tls::new().with_verify_peer(false)),
        (
            "tls-certificates=/etc/a%20b&tls-psk-file=k",
            Tls::new()
                .with_certificates("/etc/a b")
                .and_then(|tls| tls.with_psk_file("k"))
                .unwrap(),
        ),
    ];
    for (query, expected) in table {
        assert_eq!(tls(query), Some(expected), "{query:?}");
    }
    assert!(Tls::default().verify_peer());
}

#[test]
fn a_wrong_tls_parameter_is_an_error() {
    // U-032, U-034
    let kind = |got: &str| ValueError::TlsType { got: got.into() };
    let verify = |got: &str| ValueError::VerifyPeer { got: got.into() };
    let table = [
        ("tls-type", "foo", kind("foo")),
        ("tls-type", "X509", kind("X509")),
        ("tls-type", "", kind("")),
        ("tls-verify-peer", "2", verify("2")),
        ("tls-verify-peer", "yes", verify("yes")),
        ("tls-verify-peer", "01", verify("01")),
        ("tls-verify-peer", "", verify("")),
        ("tls-hostname", "", ValueError::Empty),
        ("tls-hostname", "a:b", ValueError::Ipv6),
        ("tls-hostname", "%5B::1%5D", ValueError::Ipv6),
        ("tls-hostname", "%FF", ValueError::NotUtf8 { offset: 0 }),
        ("tls-certificates", "", ValueError::Empty),
        ("tls-psk-file", "a%00", ValueError::Nul { offset: 1 }),
    ];
    for (name, text, reason) in table {
        let expected = value(Part::Parameter(name), 11 + name.len(), reason);
        assert_eq!(err(&format!("nbds://h/?{name}={text}")), expected);
    }
}

#[test]
fn tls_parameters_need_a_scheme_that_requires_tls() {
    // U-039
    for parameter in [
        "tls-certificates",
        "tls-hostname",
        "tls-psk-file",
        "tls-type",
        "tls-verify-peer",
    ] {
        for (prefix, at) in [("nbd://h/?", 9), ("nbd+unix:///?socket=s&", 22)] {
            assert_eq!(
                err(&format!("{prefix}{parameter}=x")),
                UriError::TlsParameterWithoutTls { parameter, at }
            );
        }
    }
}

#[test]
fn local_files_and_anonymous_tls_need_permission() {
    // U-032, U-036, A-097, A-105
    let none = Permissions::default();
    let table = [
        ("tls-certificates", none.local_files()),
        ("tls-psk-file", none.local_files()),
        ("tls-type", none.anonymous_tls()),
    ];
    for (parameter, permission) in table {
        let uri = format!("nbds://h/?{parameter}=anon");
        let denied = match parameter {
            "tls-type" => UriError::AnonymousTlsNotPermitted { at: 19 },
            _ => UriError::LocalFileNotPermitted { parameter, at: 10 },
        };
        assert_eq!(Uri::parse(&uri), Err(denied.clone()));
        assert_eq!(uri.parse::<Uri>(), Err(denied.clone()));
        assert_eq!(Uri::try_from(&uri[..]), Err(denied));
        assert!(Uri::parse_with(&uri, permission).is_ok());
    }
}
