//! Vulnerabilities around TLS.

use crate::{
    bounded::bounded,
    drivers::{Driver, Host, Setup, each_client},
    raw::{GO, STARTTLS, memory, option},
};
use interop::{Certificates, Conversation, Flaw, Scripted};
use nbd_blocking::negotiation::Greeted;
use nbd_io::tls::{ClientTls, ServerTls};
use nbd_proto::{ExportName, HeaderStyle, Uri, client::Go};
use std::io::{Read, Write};

pub(crate) fn setup(certificates: &Certificates) -> Setup {
    let mut setup = Setup::new(memory());
    setup.tls = Some(ServerTls::from_directory(certificates.dir()).unwrap());
    setup
}

#[test]
fn cve_2021_3716_nothing_that_was_agreed_in_the_clear_holds_inside_tls() {
    // S-051
    bounded(96, || {
        let certificates = Certificates::new();
        setup(&certificates).attack(|host| {
            let tls = ClientTls::new();
            let tls = tls.roots_file(certificates.ca_certificate()).unwrap();
            let options = nbd_blocking::ConnectOptions::new().tls(tls);
            let uri = Uri::parse(&host.uri("")).unwrap();
            let Greeted::FixedNewstyle(mut plain) = options.start(&uri).unwrap() else {
                panic!("the server knows options");
            };
            plain.structured_reply().unwrap();
            let inside = plain.start_tls().unwrap().into_result().unwrap();
            let go = Go::new(ExportName::default());
            let client = inside.go(go).unwrap().into_result().unwrap();
            assert_eq!(client.mode(), HeaderStyle::Simple);
            // A structured reply would be a violation.
            client.read_exact_at(&mut [1; 4096], 0).unwrap();
            client.disconnect().unwrap();
        });
    });
}

#[test]
fn options_in_the_clear_behind_starttls_are_not_obeyed() {
    // H-048
    bounded(96, || {
        setup(&Certificates::new()).attack(|host| {
            let mut stream = host.greeted();
            let both = [option(5, &[]), option(GO, b"\0\0\0\0\0\0")].concat();
            stream
                .write_all(&[&[0, 0, 0, 3], &both[..]].concat())
                .unwrap();
            let mut said = Vec::new();
            drop(stream.read_to_end(&mut said));
            // The reply to STARTTLS at most, and an alert of TLS: no export.
            assert!(said.len() < 40, "{said:02x?}");
        });
    });
}

#[test]
fn a_server_that_goes_on_in_the_clear_after_its_ack_is_left() {
    // H-013, H-014
    bounded(64, || {
        let scripts: [fn(&mut Conversation); 2] = [
            |peer| peer.ack(STARTTLS),
            |peer| peer.accept(GO, 1 << 20, 1),
        ];
        for go_on in scripts {
            each_client!(|options| {
                let server = Scripted::start(1, move |_, peer| {
                    peer.greet(3);
                    assert_eq!(peer.option().0, STARTTLS);
                    peer.ack(STARTTLS);
                    go_on(peer);
                    peer.rest();
                });
                options.connect(&server.tls_uri("secret")).unwrap_err();
                let said = server.finish().remove(0).client;
                assert!(!said.windows(6).any(|bytes| bytes == b"secret"));
            });
        }
    });
}

#[test]
fn cve_2024_7383_a_certificate_is_checked_whatever_else_is_known() {
    bounded(96, || {
        // Each flaw, with the authority given by the URI; and no flaw, with those of the system.
        let flawed = [Flaw::Expired, Flaw::OtherAuthority, Flaw::WrongName];
        let mut cases: Vec<_> = flawed
            .map(|flaw| (Certificates::with_server(flaw), true))
            .into();
        cases.push((Certificates::new(), false));
        for (certificates, knows_authority) in cases {
            let host = Host::start(Driver::Blocking, &setup(&certificates));
            let mut uri = format!("nbds://{}/", host.address);
            if knows_authority {
                uri += &format!("?tls-certificates={}", certificates.dir().display());
            }
            each_client!(|options| {
                let error = options.local_files(true).connect(&uri).unwrap_err();
                assert!(error.to_string().contains("certificate"), "{error}");
            });
            host.still_serves();
            host.stop();
        }
        // Without a host that could be compared, too.
        let certificates = Certificates::new();
        let host = Host::start(Driver::Blocking, &setup(&certificates));
        each_client!(|options| {
            let tls = ClientTls::new();
            let stream = std::net::TcpStream::connect(host.address).unwrap();
            let tls = tls.roots_file(certificates.ca_certificate()).unwrap();
            let options = options
                .tls(tls)
                .tls_policy(nbd_io::client::TlsPolicy::Always);
            options.connect_over(stream, None).unwrap_err();
        });
        host.stop();
    });
}
