//! Properties of every URI and of every text.

use alloc::string::String;

use proptest::prelude::*;

use super::*;

fn uris() -> impl Strategy<Value = Uri> {
    let name = || any::<String>().prop_filter("no NUL", |name| !name.contains('\0'));
    let path = || prop::collection::vec(1..=u8::MAX, 1..=MAX_SOCKET);
    let host = prop_oneof![
        "[^:]{1,20}".prop_filter_map("a host", |name| Host::new(&name).ok()),
        (any::<[u16; 8]>(), "(%[^:]{1,5})?").prop_filter_map("a host", |(ip, zone)| {
            Host::new(&format!("{}{zone}", core::net::Ipv6Addr::from(ip))).ok()
        }),
    ];
    let hosts = host.clone();
    let server = prop_oneof![
        (host, 1..=u16::MAX).prop_map(|(host, port)| Uri::tcp(host.as_str(), port)),
        path().prop_map(Uri::unix),
        path().prop_map(Uri::abstract_socket),
        (0..u32::MAX, 1..u32::MAX).prop_map(|(cid, port)| Uri::vsock(cid, port)),
    ];
    let kind = prop::option::of(prop_oneof![
        Just(TlsType::Anon),
        Just(TlsType::Psk),
        Just(TlsType::X509)
    ]);
    let tls = (
        kind,
        prop::option::of(hosts),
        any::<bool>(),
        prop::option::of(path()),
        prop::option::of(path()),
    )
        .prop_map(|(kind, hostname, verify_peer, dir, file)| {
            let mut tls = Tls::new().with_verify_peer(verify_peer);
            if let Some(kind) = kind {
                tls = tls.with_kind(kind);
            }
            if let Some(hostname) = hostname {
                tls = tls.with_hostname(hostname);
            }
            if let Some(dir) = dir {
                tls = tls.with_certificates(dir).unwrap();
            }
            if let Some(file) = file {
                tls = tls.with_psk_file(file).unwrap();
            }
            tls
        });
    (server, name(), name(), prop::option::of(tls)).prop_map(|(uri, user, export, tls)| {
        let mut uri = uri.unwrap().with_export(ExportName::new(export).unwrap());
        if !user.is_empty() {
            uri = uri.with_user(&user).unwrap();
        }
        match tls {
            Some(tls) => uri.with_tls(tls),
            None => uri,
        }
    })
}

proptest! {
    #[test]
    fn every_uri_parses_back_to_itself(uri in uris()) {
        // U-046
        let text = uri.to_string();
        prop_assert!(text.is_ascii(), "{}", text);
        prop_assert_eq!(Uri::parse_with(&text, all()), Ok(uri), "{}", text);
    }

    #[test]
    fn a_parsed_uri_is_written_so_that_it_parses_again(
        text in "nbds?(\\+(unix|vsock))?://(a@)?(h|3|\\[::1\\])?(:[0-9]{0,5})?(/[!-~]{0,9})?\
                 (\\?(socket=[!-~]{0,9})?(&tls-[a-z]{4,8}=[!-~]{0,9})?)?"
    ) {
        // U-046
        if let Ok(uri) = Uri::parse_with(&text, all()) {
            prop_assert_eq!(Uri::parse_with(&uri.to_string(), all()), Ok(uri));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(
        scheme in "(nbds?(\\+(unix|vsock))?://)?",
        text in "([\\[\\]:/@?&=%#0-9]|socket=|tls-hostname=|\\PC){0,20}|\\PC*",
    ) {
        if let Err(e) = Uri::parse_with(&format!("{scheme}{text}"), all()) {
            prop_assert!(!e.to_string().is_empty());
        }
    }
}
