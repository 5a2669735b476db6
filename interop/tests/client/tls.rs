//! TLS with every server, and all its failures.

use std::net::TcpStream;

use interop::{
    Certificates, Endpoint, Image, Listen, NbdServer, Nbdkit, QemuNbd, Recording, Server, Tap,
};

use crate::{
    driver::{ClientTls, HeaderStyle, TlsPolicy},
    peers::{Who, exercise},
    support::{MIB, assert_has, assert_names, go, name, options, pattern, run, secure_uri, uri},
};

/// Every policy of a server about TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    Nothing,
    Tls,
    OnlyTls,
    OnlyWithCertificate,
}

/// A server of one export, "disk", on TCP; none where it cannot make this offer.
pub(crate) fn serve(who: Who, offer: Offer, certificates: &Certificates) -> Option<Server> {
    let image = Image::raw(MIB);
    match (who, offer) {
        (_, Offer::Nothing) => who.serve(&image, Listen::Tcp4, None),
        (_, Offer::OnlyTls) => who.serve(&image, Listen::Tcp4, Some(certificates)),
        (Who::Qemu, Offer::Tls) => None,
        (Who::Qemu, Offer::OnlyWithCertificate) => QemuNbd::new(image)
            .export_name("disk")
            .tls_verified(certificates)
            .listen(Listen::Tcp4)
            .start(),
        (Who::Nbdkit, Offer::Tls) => Nbdkit::file(image)
            .tls_offered(certificates)
            .listen(Listen::Tcp4)
            .start(),
        (Who::Nbdkit, Offer::OnlyWithCertificate) => Nbdkit::file(image)
            .tls_required(certificates)
            .verify_peer()
            .listen(Listen::Tcp4)
            .start(),
        (Who::NbdServer, Offer::Tls) => NbdServer::new("disk", image)
            .tls_offered(certificates)
            .listen(Listen::Tcp4)
            .start(),
        // It always requires a certificate.
        (Who::NbdServer, Offer::OnlyWithCertificate) => {
            who.serve(&image, Listen::Tcp4, Some(certificates))
        }
    }
}

/// A tap before a server, and the URIs of "disk" through it.
pub(crate) fn tap(server: &Server, certificates: &Certificates) -> (Tap, String, String) {
    let tap = Tap::new(server.address());
    let plain = format!("nbd://{}/disk", tap.address());
    let secure = format!(
        "nbds://{}/disk?tls-certificates={}",
        tap.address(),
        certificates.dir().display()
    );
    (tap, plain, secure)
}

fn codes(recording: &Recording) -> Vec<u32> {
    recording
        .options()
        .0
        .iter()
        .map(|(code, _)| *code)
        .collect()
}

/// Content types of the TLS records in some bytes, all of them.
#[track_caller]
pub(crate) fn records(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [content, 3, _, high, low, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        assert!((20..=23).contains(content), "{content} is no content type");
        types.push(*content);
        bytes = &rest[len..];
    }
    assert!(bytes.is_empty(), "no TLS: {bytes:02x?}");
    types
}

#[test]
fn every_policy_meets_every_offer() {
    // C-055, C-060, C-061, U-007, U-008
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            for offer in [Offer::Nothing, Offer::Tls, Offer::OnlyTls] {
                let Some(server) = serve(who, offer, &certificates) else {
                    continue;
                };
                let tls = ClientTls::new().directory(certificates.dir()).unwrap();
                let options = options().tls(tls);
                let plain = server.uri("disk");

                let never = options.connect(&plain);
                match offer {
                    Offer::OnlyTls => assert_names(
                        &never.unwrap_err(),
                        &["the server requires TLS, which is switched off here"],
                    ),
                    _ => assert!(!never.unwrap().is_encrypted()),
                }

                let options = options.tls_policy(TlsPolicy::IfOffered);
                let client = options.connect(&plain).unwrap();
                assert_eq!(client.is_encrypted(), offer != Offer::Nothing, "{who:?}");
                let _copy = exercise(&client);
                client.disconnect().unwrap();

                let secure = server.tls_uri("disk", &certificates);
                for always in [
                    options
                        .clone()
                        .tls_policy(TlsPolicy::Always)
                        .connect(&plain),
                    options.tls_policy(TlsPolicy::Never).connect(&secure),
                ] {
                    match offer {
                        Offer::Nothing => assert_names(
                            &always.unwrap_err(),
                            &["TLS is required, and the server refuses it", "STARTTLS"],
                        ),
                        _ => assert!(always.unwrap().is_encrypted()),
                    }
                }
            }
        }
    });
}

#[test]
fn nothing_but_the_wish_for_tls_is_said_in_the_clear() {
    // C-057, C-058, C-071
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::OnlyTls, &certificates) else {
                continue;
            };
            let (tap, plain, secure) = tap(&server, &certificates);
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let if_offered = options().tls(tls).tls_policy(TlsPolicy::IfOffered);
            for (options, uri) in [(&options(), &secure), (&if_offered, &plain)] {
                let client = options.connect(uri).unwrap();
                client.write_all_at(b"private data here", 0).unwrap();
                assert_has(&client, 0, b"private data here");
                client.disconnect().unwrap();
                drop(client);

                let recording = tap.recording();
                let (asked, rest) = recording.options();
                assert_eq!(asked, [(5, Vec::new())], "only NBD_OPT_STARTTLS");
                let _types = records(rest);
                for secret in [&b"disk"[..], b"private data"] {
                    for said in [&recording.client, &recording.server] {
                        assert!(!said.windows(secret.len()).any(|bytes| bytes == secret));
                    }
                }
            }
        }
    });
}

#[test]
fn a_refusal_of_tls_ends_a_connection_that_requires_it() {
    // C-056, U-008
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::Nothing, &certificates) else {
                continue;
            };
            let (tap, _, secure) = tap(&server, &certificates);
            let error = options().connect(&secure).unwrap_err();
            assert_names(&error, &["TLS is required", "NBD_OPT_STARTTLS"]);
            let recording = tap.recording();
            let (asked, rest) = recording.options();
            assert_eq!(asked, [(5, Vec::new()), (2, Vec::new())]);
            assert!(rest.is_empty());
        }
    });
}

#[test]
fn unix_sockets_are_no_excuse() {
    // U-009, U-033, U-035
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let image = Image::raw(MIB);
            let Some(plain) = who.serve(&image, Listen::Unix, None) else {
                continue;
            };
            let error = options()
                .connect(&secure_uri(&plain, "disk", &certificates))
                .unwrap_err();
            assert_names(&error, &["TLS is required, and the server refuses it"]);

            let Some(server) = who.serve(&image, Listen::Unix, Some(&certificates)) else {
                continue;
            };
            let nameless = server.tls_uri("disk", &certificates);
            let error = options().connect(&nameless).unwrap_err();
            assert_names(&error, &["no name to check the server's certificate"]);

            let error = options()
                .connect(&format!("{nameless}&tls-hostname=elsewhere.example"))
                .unwrap_err();
            assert_names(&error, &["\"elsewhere.example\" is not accepted"]);

            for accepted in ["tls-hostname=localhost", "tls-verify-peer=0"] {
                let client = options()
                    .connect(&format!("{nameless}&{accepted}"))
                    .unwrap();
                assert!(client.is_encrypted());
                client.disconnect().unwrap();
            }
        }
    });
}

#[test]
fn no_conclusion_is_carried_over_to_the_next_connection() {
    // C-062
    run(|| {
        let certificates = Certificates::new();
        let tls = ClientTls::new().directory(certificates.dir()).unwrap();
        let options = options().tls(tls).tls_policy(TlsPolicy::IfOffered);
        for offer in [Offer::Nothing, Offer::OnlyTls, Offer::Nothing, Offer::Tls] {
            let Some(server) = serve(Who::Nbdkit, offer, &certificates) else {
                return;
            };
            let client = options.connect(&server.uri("disk")).unwrap();
            assert_eq!(client.is_encrypted(), offer != Offer::Nothing);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn tls_forgets_everything_negotiated_before() {
    // C-063
    run(|| {
        let certificates = Certificates::new();
        let Some(server) = serve(Who::Nbdkit, Offer::Tls, &certificates) else {
            return;
        };
        let tls = ClientTls::new().directory(certificates.dir()).unwrap();
        let options = options().tls(tls);
        for again in [false, true] {
            let mut negotiation = options
                .start(&uri(&server.uri("disk")))
                .unwrap()
                .negotiation()
                .unwrap();
            negotiation.structured_reply().unwrap();
            assert_eq!(negotiation.mode(), HeaderStyle::Structured);
            let mut negotiation = negotiation.start_tls().unwrap().into_result().unwrap();
            assert_eq!(negotiation.mode(), HeaderStyle::Simple);
            if again {
                negotiation.structured_reply().unwrap();
            }
            let client = negotiation.go(go("disk")).unwrap().into_result().unwrap();
            assert!(client.is_encrypted());
            assert_eq!(client.mode() == HeaderStyle::Structured, again);
            let _copy = exercise(&client);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn a_server_of_the_past_is_refused_where_tls_is_required() {
    // C-011, C-018, U-045
    run(|| {
        let certificates = Certificates::new();
        let memory = || Nbdkit::new("memory").param("size=1M").listen(Listen::Tcp4);
        for server in [
            memory().oldstyle().start(),
            memory().mask_handshake(0).start(),
        ] {
            let Some(server) = server else { return };
            let (tap, plain, secure) = tap(&server, &certificates);
            for (options, uri) in [
                (options(), &secure),
                (options().tls_policy(TlsPolicy::Always), &plain),
            ] {
                let error = options.connect(uri).unwrap_err();
                assert_names(&error, &["the greeting", "TLS"]);
                assert!(tap.recording().client.is_empty(), "not a byte is sent");
            }
        }
    });
}

#[test]
fn tls_1_2_is_spoken_and_nothing_older_is_offered() {
    // C-036, C-052, C-069, C-070, C-072
    run(|| {
        let certificates = Certificates::new();
        let server = QemuNbd::new(Image::raw(MIB))
            .export_name("disk")
            .tls_1_2_required(&certificates)
            .listen(Listen::Tcp4);
        let Some(server) = server.start() else { return };
        let (tap, _, secure) = tap(&server, &certificates);
        for politely in [true, false] {
            let client = options().connect(&secure).unwrap();
            let data = pattern(1, 400_000);
            client.write_all_at(&data, 5).unwrap();
            assert_has(&client, 5, &data);
            if politely {
                client.disconnect().unwrap();
            }
            drop(client);

            let recording = tap.recording();
            let (_, rest) = recording.options();
            let types = records(rest);
            assert!(types.contains(&20), "TLS 1.2 changes ciphers and says so");
            assert_eq!(types.last(), Some(&21), "the last record is close_notify");
            let versions = [0, 43, 0, 5, 4, 3, 4, 3, 3]; // 1.3 and 1.2
            let offered = rest
                .windows(versions.len())
                .position(|bytes| bytes == versions);
            assert!(offered.is_some());
            assert_eq!(types.first(), Some(&22), "a handshake comes first");
        }

        // A client that gives up inside TLS sends NBD_OPT_ABORT there, and ends TLS.
        let at = uri(&secure);
        options().start_secure(&at).unwrap().abort();
        let recording = tap.recording();
        let (asked, rest) = recording.options();
        assert_eq!(asked.len(), 1, "only TLS is asked for in the clear");
        assert_eq!(records(rest).last(), Some(&21), "close_notify");
    });
}

#[test]
fn tls_that_breaks_off_is_a_lost_connection() {
    // C-073
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::OnlyTls, &certificates) else {
                continue;
            };
            let client = options()
                .connect(&server.tls_uri("disk", &certificates))
                .unwrap();
            client.write_all_at(&[1; 512], 0).unwrap();
            server.kill();
            let error = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
            assert!(error.is_lost(), "{error:?}");
            assert!(client.is_lost());
        }
    });
}

#[test]
fn a_connection_of_the_programs_own_can_be_encrypted() {
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::OnlyTls, &certificates) else {
                continue;
            };
            let Endpoint::Tcp(address) = server.endpoint() else {
                panic!("it listens on TCP");
            };
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let options = options()
                .export(name("disk"))
                .tls_policy(TlsPolicy::Always)
                .tls(tls.clone());
            // The certificate is made out to the address as well.
            let stream = TcpStream::connect(address).unwrap();
            let host = address.ip().to_string();
            let client = options.connect_over(stream, Some(&host)).unwrap();
            assert!(client.is_encrypted());
            client.disconnect().unwrap();

            let stream = TcpStream::connect(address).unwrap();
            let options = options.tls(tls.server_name("localhost"));
            let client = options.connect_over(stream, Some(&host)).unwrap();
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn those_without_tls_are_shown_something_else() {
    run(|| {
        let certificates = Certificates::new();
        let server = Nbdkit::new("memory")
            .param("size=1M")
            .filter("tls-fallback")
            .tls_offered(&certificates)
            .listen(Listen::Tcp4);
        let Some(server) = server.start() else { return };
        let client = options().connect(&server.uri("")).unwrap();
        assert_eq!(client.size(), 512);
        assert_has(&client, 0, b"This NBD server requires TLS");
        client.disconnect().unwrap();
        let client = options()
            .connect(&server.tls_uri("", &certificates))
            .unwrap();
        assert_eq!(client.size(), MIB);
        client.disconnect().unwrap();
    });
}

#[test]
fn an_export_is_asked_for_by_the_best_option() {
    // C-067, C-074, C-114, C-137
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::Nothing, &certificates) else {
                continue;
            };
            let (tap, plain, _) = tap(&server, &certificates);
            let options = options().context(crate::support::context("base:allocation"));
            options.connect(&plain).unwrap().disconnect().unwrap();
            let recording = tap.recording();
            let expected: &[u32] = match who {
                Who::Qemu => &[11, 10, 7],
                Who::Nbdkit => &[11, 8, 10, 7],
                Who::NbdServer if who.has_structured_replies() => &[11, 8, 10, 7],
                Who::NbdServer => &[11, 8, 7],
            };
            assert_eq!(codes(&recording), expected, "{who:?}");
            let (asked, _) = recording.options();
            let (_, go) = asked.last().unwrap();
            assert_eq!(go[..8], *b"\0\0\0\x04disk");
            let (count, infos) = go[8..].split_at(2);
            assert_eq!(usize::from(count[1]) * 2, infos.len());
            assert!(infos.chunks(2).any(|info| info == [0, 3]), "block sizes");
        }
    });
}
