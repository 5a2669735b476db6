//! The reference client, `nbd-client`. It lists, and negotiates on behalf of the kernel, which
//! tests leave alone: instead of a block device of the kernel it gets `/dev/null`, and so comes as
//! far as its first ioctl.

use std::{ffi::OsString, sync::Arc};

use crate::runtime::Server;
use interop::{Certificates, Endpoint, Finished, Listen, MIB, Peer, Program, require, run};
use nbd_blocking::HeaderStyle;
use nbd_io::{Memory, NamedExports};

use crate::serving::{Serving, name, server, strict, tls};

/// Runs a test's body with `nbd-client`, or not at all.
fn with_nbd_client(body: impl FnOnce(&Program) + Send + 'static) {
    if let Some(nbd_client) = require(Peer::NbdClient) {
        run(move || body(&nbd_client));
    }
}

fn place(endpoint: &Endpoint) -> Vec<OsString> {
    match endpoint {
        Endpoint::Unix(path) => vec!["-unix".into(), path.into()],
        endpoint => {
            let address = endpoint.address();
            vec![
                address.ip().to_string().into(),
                address.port().to_string().into(),
            ]
        }
    }
}

fn encryption(certificates: &Certificates) -> Vec<OsString> {
    vec![
        "-enable-tls".into(),
        "-certfile".into(),
        certificates.client_certificate().into(),
        "-keyfile".into(),
        certificates.client_key().into(),
        "-cacertfile".into(),
        certificates.ca_certificate().into(),
        "-tlshostname".into(),
        "localhost".into(),
    ]
}

pub(crate) fn list(
    nbd_client: &Program,
    endpoint: &Endpoint,
    certificates: Option<&Certificates>,
) -> Finished {
    let certificates = certificates.map(encryption).unwrap_or_default();
    let args = [vec!["-l".into()], place(endpoint), certificates];
    nbd_client.run(args.concat())
}

/// Negotiates for an export, and returns the size that the client found.
pub(crate) fn enter(
    nbd_client: &Program,
    endpoint: &Endpoint,
    export: &str,
    more: &[&str],
    certificates: Option<&Certificates>,
) -> Result<String, String> {
    let certificates = certificates.map(encryption).unwrap_or_default();
    let options = ["-nonetlink", "-nofork", "-name", export].map(OsString::from);
    let device = vec![OsString::from("/dev/null")];
    let more = more.iter().map(OsString::from).collect();
    let args = [
        options.to_vec(),
        place(endpoint),
        device,
        more,
        certificates,
    ];
    let finished = nbd_client.run(args.concat());
    match finished.stdout.split_once("size = ") {
        Some((_, size)) => Ok(size.trim().to_owned()),
        None => Err(finished.expect_failure()),
    }
}

/// Two exports for every client, and one for clients with TLS.
fn three() -> Server {
    let disk = Memory::new(4 * MIB).with_description("the disk itself");
    Server::new(
        NamedExports::new()
            .with(name("disk"), Arc::new(disk))
            .with(name("other"), Arc::new(Memory::new(7 * MIB).read_only()))
            .with_tls_only(name("secret"), Arc::new(Memory::new(9 * MIB))),
    )
}

fn names(finished: Finished) -> Vec<String> {
    let said = finished.expect_success();
    let (before, list) = said.split_once('\n').unwrap();
    assert!(before.starts_with("Negotiation: .."), "{said}");
    list.lines().map(str::to_owned).collect()
}

#[test]
fn exports_are_listed_with_their_descriptions() {
    with_nbd_client(|nbd_client| {
        let certificates = Certificates::new();
        for listen in [Listen::Unix, Listen::Tcp4, Listen::Tcp6] {
            let server = three().offer_tls(&tls(&certificates)).unwrap();
            let serving = Serving::new(server, listen);
            let open = ["disk: the disk itself", "other"];
            assert_eq!(names(list(nbd_client, serving.endpoint(), None)), open);
            if listen != Listen::Unix {
                let all = ["disk: the disk itself", "other", "secret"];
                let found = list(nbd_client, serving.endpoint(), Some(&certificates));
                assert_eq!(names(found), all);
            }
        }
    });
}

#[test]
fn a_list_that_is_not_given_is_refused_with_words() {
    with_nbd_client(|nbd_client| {
        let serving = Serving::new(three().listing(false), Listen::Unix);
        let said = list(nbd_client, serving.endpoint(), None);
        assert!(!said.stdout.contains("disk"), "{said:?}");
        assert!(
            said.stderr.contains("policy") || said.stderr.contains("list"),
            "{said:?}"
        );
    });
}

#[test]
fn an_export_is_entered_by_its_name() {
    with_nbd_client(|nbd_client| {
        let certificates = Certificates::new();
        for listen in [Listen::Unix, Listen::Tcp4, Listen::Tcp6] {
            let server = three().offer_tls(&tls(&certificates)).unwrap();
            let serving = Serving::new(server, listen);
            let enter =
                |name, certificates| enter(nbd_client, serving.endpoint(), name, &[], certificates);
            assert_eq!(enter("disk", None).unwrap(), "4MB");
            assert_eq!(enter("other", None).unwrap(), "7MB");
            let _why = enter("none", None).unwrap_err();
            let _why = enter("secret", None).unwrap_err();
            let mut entered = vec![("disk", false), ("other", false)];
            if listen != Listen::Unix {
                assert_eq!(enter("secret", Some(&certificates)).unwrap(), "9MB");
                entered.push(("secret", true));
            }
            let log = serving.stop();
            let found = log.entered.iter();
            let found: Vec<_> = found
                .map(|entered| (&*entered.export, entered.encrypted))
                .collect();
            assert_eq!(found, entered);
            let known = [
                HeaderStyle::Simple,
                HeaderStyle::Structured,
                HeaderStyle::Extended,
            ];
            assert!(log.modes().iter().all(|mode| known.contains(mode)));
        }
    });
}

#[test]
fn a_server_that_wants_tls_gets_it() {
    with_nbd_client(|nbd_client| {
        let certificates = Certificates::new();
        let server = three().require_tls(&strict(&certificates)).unwrap();
        let serving = Serving::new(server, Listen::Tcp4);
        let enter = |certificates| enter(nbd_client, serving.endpoint(), "disk", &[], certificates);
        assert_eq!(enter(Some(&certificates)).unwrap(), "4MB");
        let why = enter(None).unwrap_err();
        assert!(why.contains("the server requires TLS"), "{why}");
    });
}

#[test]
fn terabytes_are_terabytes() {
    with_nbd_client(|nbd_client| {
        let serving = Serving::new(server(Arc::new(Memory::new(3 << 40))), Listen::Unix);
        let size = enter(nbd_client, serving.endpoint(), "disk", &[], None).unwrap();
        assert_eq!(size, format!("{}MB", 3 << 20));
    });
}
