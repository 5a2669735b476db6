//! Certificates of every server and of the client, right and wrong ones.

use interop::{Certificates, Flaw};

use crate::{
    driver::{ClientTls, ConnectOptions, Error, TlsPolicy},
    peers::{Who, exercise},
    support::{assert_names, causes, options, run},
    tls::{Offer, records, serve, tap},
};

#[test]
fn a_flawed_certificate_is_named_and_nothing_follows_it() {
    // C-059
    run(|| {
        for flaw in [Flaw::Expired, Flaw::OtherAuthority, Flaw::WrongName] {
            let certificates = Certificates::with_server(flaw);
            let cause = match flaw {
                Flaw::Expired => "certificate expired",
                Flaw::OtherAuthority => "invalid peer certificate",
                _ => "certificate not valid for name",
            };
            for who in Who::ALL {
                let Some(server) = serve(who, Offer::OnlyTls, &certificates) else {
                    continue;
                };
                let (tap, plain, secure) = tap(&server, &certificates);
                let tls = ClientTls::new().directory(certificates.dir()).unwrap();
                let if_offered = options().tls(tls).tls_policy(TlsPolicy::IfOffered);
                for result in [options().connect(&secure), if_offered.connect(&plain)] {
                    let error = result.unwrap_err();
                    assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
                    assert_names(
                        &error,
                        &[
                            "TLS",
                            "certificate for \"127.0.0.1\" is not accepted",
                            cause,
                        ],
                    );
                    let recording = tap.recording();
                    let (asked, rest) = recording.options();
                    assert_eq!(asked, [(5, Vec::new())]);
                    let types = records(rest);
                    assert_eq!(types.first(), Some(&22), "the handshake");
                }
            }
        }
    });
}

#[test]
fn a_certificate_can_be_accepted_unseen() {
    run(|| {
        let certificates = Certificates::with_server(Flaw::OtherAuthority);
        let Some(server) = serve(Who::Nbdkit, Offer::OnlyTls, &certificates) else {
            return;
        };
        let uri = format!(
            "{}&tls-verify-peer=0",
            server.tls_uri("disk", &certificates)
        );
        let client = options().connect(&uri).unwrap();
        assert!(client.is_encrypted());
        client.disconnect().unwrap();
    });
}

#[test]
fn an_unknown_authority_is_not_trusted() {
    // U-035: without an authority of its own the client asks the system's, which do not know this
    // one.
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::OnlyTls, &certificates) else {
                continue;
            };
            let uri = server.uri("disk").replace("nbd://", "nbds://");
            let text = causes(&ConnectOptions::new().connect(&uri).unwrap_err());
            assert!(
                text.contains("UnknownIssuer") || text.contains("no trusted certificates"),
                "{text}"
            );
            let strangers = Certificates::new();
            let error = options()
                .connect(&server.tls_uri("disk", &strangers))
                .unwrap_err();
            assert_names(&error, &["is not accepted", "invalid peer certificate"]);
        }
    });
}

#[test]
fn a_server_that_wants_a_certificate_gets_one() {
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::OnlyWithCertificate, &certificates) else {
                continue;
            };
            let client = options()
                .connect(&server.tls_uri("disk", &certificates))
                .unwrap();
            let _copy = exercise(&client);
            client.disconnect().unwrap();

            // No certificate, and one of another authority.
            let none = ClientTls::new()
                .roots_file(certificates.ca_certificate())
                .unwrap();
            let strangers = Certificates::new();
            let stranger = none
                .clone()
                .identity_files(strangers.client_certificate(), strangers.client_key())
                .unwrap();
            let uri = server.uri("disk").replace("nbd://", "nbds://");
            for tls in [none, stranger] {
                let error = ConnectOptions::new().tls(tls).connect(&uri).unwrap_err();
                assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
                // The server refuses by closing the connection, after TLS 1.3 has begun on this
                // side.
                assert_names(&error, &["after the TLS handshake", "client certificate"]);
            }
        }
    });
}
