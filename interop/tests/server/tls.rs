//! TLS: every policy of the server with every client, and all failures.

use std::{fs, time::Duration};

use crate::runtime::Server;
use interop::{Certificates, Endpoint, Flaw, Listen, MIB, Peer, Program, Tap, require, run};

use crate::{
    exports::Spy,
    nbd_client,
    nbdsh::script,
    qemu,
    serving::{Serving, server, strict, tls},
};

/// Every policy of a server about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offer {
    Nothing,
    Tls,
    OnlyTls,
    OnlyWithCertificate,
}

fn offering(offer: Offer, certificates: &Certificates) -> Server {
    let server = server(Spy::new(MIB));
    match offer {
        Offer::Nothing => Ok(server),
        Offer::Tls => server.offer_tls(&tls(certificates)),
        Offer::OnlyTls => server.require_tls(&tls(certificates)),
        Offer::OnlyWithCertificate => server.require_tls(&strict(certificates)),
    }
    .unwrap()
}

/// The clients whose certificates can be chosen, or whose TLS can be switched off.
const CLIENTS: [Peer; 3] = [Peer::NbdInfo, Peer::QemuImg, Peer::NbdClient];

/// Whether a client can use "disk".
fn reaches(client: &Program, serving: &Serving, certificates: Option<&Certificates>) -> bool {
    let uri = match certificates {
        Some(certificates) => serving.tls_uri("disk", certificates),
        None => serving.uri("disk"),
    };
    match (client.peer(), certificates) {
        (Peer::NbdInfo, _) => {
            let finished = client.run(["--map", &uri]);
            finished.status.success() && finished.stdout.contains("1048576")
        }
        (Peer::NbdClient, _) => {
            nbd_client::enter(client, serving.endpoint(), "disk", &[], certificates)
                == Ok("1MB".to_owned())
        }
        (_, None) => client.run(["info", &uri]).status.success(),
        (_, Some(certificates)) => {
            let object = qemu::credentials(certificates);
            let options = qemu::encrypted(serving.endpoint());
            let finished = client.run(["info", "--object", &object, "--image-opts", &options]);
            finished.stdout.contains("virtual size: 1 MiB")
        }
    }
}

/// A client that knows the right authority and has no certificate of its own.
fn bare(certificates: &Certificates) -> Certificates {
    let bare = Certificates::new();
    fs::copy(certificates.ca_certificate(), bare.ca_certificate()).unwrap();
    fs::remove_file(bare.client_certificate()).unwrap();
    fs::remove_file(bare.client_key()).unwrap();
    bare
}

#[test]
fn every_offer_meets_every_client() {
    // S-041
    run(|| {
        let certificates = Certificates::new();
        let bare = bare(&certificates);
        for client in CLIENTS.into_iter().filter_map(require) {
            for (offer, in_the_clear, without, with) in [
                (Offer::Nothing, true, false, false),
                (Offer::Tls, true, true, true),
                (Offer::OnlyTls, false, true, true),
                (Offer::OnlyWithCertificate, false, false, true),
            ] {
                let serving = Serving::new(offering(offer, &certificates), Listen::Tcp4);
                let name = client.peer();
                assert_eq!(
                    reaches(&client, &serving, None),
                    in_the_clear,
                    "{name:?} {offer:?}"
                );
                let found = reaches(&client, &serving, Some(&certificates));
                assert_eq!(found, with, "{name:?} {offer:?}");
                // It needs both files or neither, and here they are named.
                if client.peer() != Peer::NbdClient {
                    let found = reaches(&client, &serving, Some(&bare));
                    assert_eq!(found, without, "{name:?} {offer:?}");
                }
                let log = serving.stop();
                let encrypted = log
                    .entered
                    .iter()
                    .filter(|entered| entered.encrypted)
                    .count();
                let expected = match client.peer() {
                    Peer::NbdClient => usize::from(with),
                    _ => usize::from(without) + usize::from(with),
                };
                assert_eq!(encrypted, expected, "{log:?}");
                assert_eq!(
                    log.entered.len(),
                    expected + usize::from(in_the_clear),
                    "{log:?}"
                );
                assert!(
                    log.broken.iter().all(|ending| ending.contains("TLS")),
                    "{log:?}"
                );
            }
        }
    });
}

#[test]
fn flawed_client_certificates_are_refused() {
    run(|| {
        for flaw in [Flaw::Expired, Flaw::OtherAuthority] {
            let flawed = Certificates::with_client(flaw);
            for client in CLIENTS.into_iter().filter_map(require) {
                let offer = Offer::OnlyWithCertificate;
                let serving = Serving::new(offering(offer, &flawed), Listen::Tcp4);
                assert!(
                    !reaches(&client, &serving, Some(&flawed)),
                    "{flaw:?} {client:?}"
                );
                let log = serving.stop();
                assert!(log.entered.is_empty(), "{log:?}");
                let [ending] = &*log.broken else {
                    panic!("{log:?}");
                };
                assert!(ending.contains("invalid peer certificate"), "{ending}");

                // Even where none is required, a wrong certificate is refused.
                let serving = Serving::new(offering(Offer::OnlyTls, &flawed), Listen::Tcp4);
                assert!(
                    !reaches(&client, &serving, Some(&flawed)),
                    "{flaw:?} {client:?}"
                );
                assert!(serving.stop().entered.is_empty());
            }
        }
    });
}

#[test]
fn flawed_certificates_of_the_servers_are_refused_by_clients() {
    run(|| {
        for flaw in [Flaw::Expired, Flaw::OtherAuthority, Flaw::WrongName] {
            let flawed = Certificates::with_server(flaw);
            for client in CLIENTS.into_iter().filter_map(require) {
                let server = offering(Offer::OnlyTls, &flawed);
                // One of them refuses, but waits for the server to disconnect.
                let server = server.handshake_timeout(Some(Duration::from_secs(1)));
                let serving = Serving::new(server, Listen::Tcp4);
                assert!(
                    !reaches(&client, &serving, Some(&flawed)),
                    "{flaw:?} {client:?}"
                );
                // Some finish the handshake before they refuse.
                let _log = serving.stop();
            }
        }
    });
}

#[test]
fn older_tls_will_do_and_no_older_one() {
    // S-065
    run(|| {
        let Some(qemu_img) = require(Peer::QemuImg) else {
            return;
        };
        let certificates = Certificates::new();
        for (versions, accepted) in [
            ("+VERS-TLS1.3", true),
            ("+VERS-TLS1.2", true),
            ("+VERS-TLS1.1", false),
        ] {
            let offer = Offer::OnlyWithCertificate;
            let serving = Serving::new(offering(offer, &certificates), Listen::Tcp4);
            let object = qemu::credentials(&certificates);
            let object = format!("{object},priority=NORMAL:-VERS-ALL:{versions}");
            let options = qemu::encrypted(serving.endpoint());
            let finished = qemu_img.run(["info", "--object", &object, "--image-opts", &options]);
            assert_eq!(
                finished.status.success(),
                accepted,
                "{versions}: {}",
                finished.stderr
            );
            let log = serving.stop();
            assert_eq!(log.entered.len(), usize::from(accepted));
            assert_eq!(log.broken.is_empty(), accepted, "{log:?}");
        }
    });
}

#[test]
fn unix_sockets_are_encrypted_too() {
    run(|| {
        let certificates = Certificates::new();
        let offer = Offer::OnlyWithCertificate;
        for client in [Peer::NbdInfo, Peer::QemuImg]
            .into_iter()
            .filter_map(require)
        {
            let serving = Serving::new(offering(offer, &certificates), Listen::Unix);
            assert!(reaches(&client, &serving, Some(&certificates)));
            assert!(!reaches(&client, &serving, None));
            let entered = serving.stop().entered;
            assert!(entered.len() == 1 && entered[0].encrypted);
        }
    });
}

#[test]
fn a_client_that_allows_tls_gets_it_where_it_is_offered() {
    run(|| {
        let certificates = Certificates::new();
        for offer in [Offer::Nothing, Offer::Tls, Offer::OnlyWithCertificate] {
            let serving = Serving::new(offering(offer, &certificates), Listen::Tcp4);
            let port = serving.endpoint().address().port();
            let lines = format!(
                "dir, port, offered = {:?}, '{port}', {}",
                certificates.dir(),
                if offer == Offer::Nothing {
                    "False"
                } else {
                    "True"
                },
            );
            if script("tls.py", &lines).is_none() {
                return;
            }
            let log = serving.stop();
            let encrypted: Vec<_> = log
                .entered
                .iter()
                .map(|entered| entered.encrypted)
                .collect();
            let expected = match offer {
                Offer::Nothing => vec![false, false],
                Offer::Tls => vec![true, false, true],
                _ => vec![true, true],
            };
            assert_eq!(encrypted, expected, "{log:?}");
        }
    });
}

#[test]
fn names_and_data_are_encrypted() {
    run(|| {
        let certificates = Certificates::new();
        let offer = Offer::OnlyWithCertificate;
        let serving = Serving::new(offering(offer, &certificates), Listen::Tcp4);
        let tap = Tap::new(serving.endpoint().address());
        let uri = Endpoint::Tcp(tap.address()).tls_uri("disk", &certificates);
        let secret =
            "h.connect_uri(uri); h.pwrite(b'a secret' * 100, 0); h.pread(800, 0); h.shutdown()";
        let Some(nbdsh) = require(Peer::NbdSh) else {
            return;
        };
        let lines = format!("h.set_uri_allow_local_file(True); uri = {uri:?}; {secret}");
        let _said = nbdsh.run(["-c", &lines]).expect_success();
        let recording = tap.recording();
        assert_eq!(
            recording.options().0,
            [(5, Vec::new())],
            "only NBD_OPT_STARTTLS"
        );
        for secret in ["disk", "a secret"] {
            for said in [&recording.client, &recording.server] {
                let secret = secret.as_bytes();
                assert!(!said.windows(secret.len()).any(|bytes| bytes == secret));
            }
        }
    });
}
