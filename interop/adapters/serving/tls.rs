//! TLS: required, offered, and with certificates on both sides.

use super::{
    Server,
    commands::exercise,
    support::{Running, modes, soon},
};
use interop::{Certificates, Tap};
use nbd_blocking::{
    Client, ClientTls, ConnectOptions, Error, ExportName, ServerTls, TlsPolicy, Uri,
};
use nbd_io::{Memory, NamedExports};
use std::sync::{Arc, Mutex};

/// A server that sends its certificate, and asks for none.
pub(crate) fn shown(certificates: &Certificates) -> ServerTls {
    let chain = certificates.server_certificate();
    ServerTls::from_files(chain, certificates.server_key()).unwrap()
}

/// A client that knows the authority, and shows no certificate.
pub(crate) fn knowing(certificates: &Certificates) -> ClientTls {
    let tls = ClientTls::new().server_name("localhost");
    tls.roots_file(certificates.ca_certificate()).unwrap()
}

fn memory() -> Server {
    Server::single(Arc::new(Memory::new(64 << 20)))
}

pub(crate) fn secure(options: ConnectOptions, tls: ClientTls) -> ConnectOptions {
    options.tls(tls).tls_policy(TlsPolicy::Always)
}

fn try_connect(running: &Running, options: &ConnectOptions) -> Result<Client, Error> {
    options.connect_over(running.raw(), None)
}

#[test]
fn every_command_works_over_tls() {
    soon(|| {
        let certificates = Certificates::new();
        let running = Running::new(memory().require_tls(&shown(&certificates)).unwrap());
        for options in modes() {
            let options = secure(options, knowing(&certificates));
            let unix = running.connect(&options);
            assert!(unix.is_encrypted());
            exercise(&unix);
            unix.disconnect().unwrap();
            let tcp = options
                .connect_over(running.raw_tcp(), Some("127.0.0.1"))
                .unwrap();
            let zeroes = nbd_blocking::CommandFlags::NONE;
            tcp.write_zeroes(0, tcp.size(), zeroes).unwrap();
            exercise(&tcp);
            tcp.write_zeroes(0, tcp.size(), zeroes).unwrap();
            tcp.disconnect().unwrap();
        }
        assert_eq!(running.stop(), ["the client disconnected"; 6]);
    });
}

#[test]
fn no_client_enters_without_the_required_tls() {
    // S-053
    soon(|| {
        let certificates = Certificates::new();
        let running = Running::new(memory().require_tls(&shown(&certificates)).unwrap());
        let refused = try_connect(&running, &ConnectOptions::new());
        assert!(matches!(refused, Err(Error::Negotiation { .. })));
        running.wait_for_endings(1);
        let stranger = secure(ConnectOptions::new(), knowing(&Certificates::new()));
        assert!(try_connect(&running, &stranger).is_err());
        running.wait_for_endings(2);
        let endings = running.stop();
        assert_eq!(endings[0], "the client gave up the negotiation");
        assert!(
            endings[1].contains("TLS handshake failed"),
            "{}",
            endings[1]
        );
    });
}

#[test]
fn some_exports_are_for_tls_only() {
    // S-037, S-058
    soon(|| {
        let certificates = Certificates::new();
        let name = |name| ExportName::new(name).unwrap();
        let exports = NamedExports::new()
            .with(name("open"), Arc::new(Memory::new(1 << 20)))
            .with_tls_only(name("secret"), Arc::new(Memory::new(2 << 20)));
        let running = Running::new(
            Server::new(exports)
                .offer_tls(&shown(&certificates))
                .unwrap(),
        );
        let plain = ConnectOptions::new();
        let encrypted = secure(plain.clone(), knowing(&certificates));
        let size = |options: &ConnectOptions, export| {
            try_connect(&running, &options.clone().export(name(export)))
                .map(|client| client.size())
                .ok()
        };
        assert_eq!(size(&plain, "open"), Some(1 << 20));
        assert_eq!(size(&plain, "secret"), None);
        assert_eq!(size(&encrypted, "open"), Some(1 << 20));
        assert_eq!(size(&encrypted, "secret"), Some(2 << 20));

        let uri = |scheme| {
            let path = running.unix.display();
            Uri::parse(&format!("{scheme}+unix:///?socket={path}")).unwrap()
        };
        let nbd_blocking::negotiation::Greeted::FixedNewstyle(mut negotiation) =
            plain.start(&uri("nbd")).unwrap()
        else {
            panic!("the server is fixed newstyle");
        };
        let listed = negotiation.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].name, Ok(name("open")));
        let mut negotiation = encrypted.start_secure(&uri("nbds")).unwrap();
        assert_eq!(negotiation.list().unwrap().len(), 2);
        drop(negotiation);
        running.stop();
    });
}

#[test]
fn a_negotiation_that_is_given_up_inside_tls_ends_with_an_abort() {
    // C-035, C-036
    soon(|| {
        let certificates = Certificates::new();
        let running = Running::new(memory().require_tls(&shown(&certificates)).unwrap());
        let options = secure(ConnectOptions::new(), knowing(&certificates));
        let uri = format!("nbds+unix:///?socket={}", running.unix.display());
        let uri = Uri::parse(&uri).unwrap();
        let mut negotiation = options.start_secure(&uri).unwrap();
        negotiation.list().unwrap();
        drop(negotiation);
        running.wait_for_endings(1);
        assert_eq!(running.stop(), ["the client gave up the negotiation"]);
    });
}

#[test]
fn a_server_can_ask_for_certificates() {
    // S-067
    soon(|| {
        let certificates = Certificates::new();
        let tls = ServerTls::from_directory(certificates.dir()).unwrap();
        let showing = |own: &Certificates| {
            let tls = knowing(&certificates);
            let tls = tls.identity_files(own.client_certificate(), own.client_key());
            secure(ConnectOptions::new(), tls.unwrap())
        };
        let anonymous = secure(ConnectOptions::new(), knowing(&certificates));
        let known = showing(&certificates);
        let unknown = showing(&Certificates::new());
        for required in [false, true] {
            let tls = tls.clone().require_client_certificates(required);
            let running = Running::new(memory().require_tls(&tls).unwrap());
            assert!(try_connect(&running, &known).is_ok());
            assert_eq!(try_connect(&running, &anonymous).is_ok(), !required);
            assert!(try_connect(&running, &unknown).is_err());
            running.stop();
        }
        let rootless = shown(&certificates).require_client_certificates(true);
        assert!(memory().require_tls(&rootless).is_err());
    });
}

#[test]
fn a_directory_has_it_all() {
    soon(|| {
        let certificates = Certificates::new();
        let directory = tempfile::tempdir().unwrap();
        assert!(ServerTls::from_directory(directory.path()).is_err());
        let tls = ServerTls::from_directory(certificates.dir()).unwrap();
        let running = Running::new(memory().require_tls(&tls).unwrap());
        let options = secure(ConnectOptions::new(), knowing(&certificates));
        assert!(try_connect(&running, &options).is_ok());
        running.stop();
    });
}

#[test]
fn a_server_stops_while_tls_is_up() {
    soon(|| {
        let certificates = Certificates::new();
        let running = Running::new(memory().require_tls(&shown(&certificates)).unwrap());
        let client = running.connect(&secure(ConnectOptions::new(), knowing(&certificates)));
        client.read_exact_at(&mut [0; 512], 0).unwrap();
        assert_eq!(running.stop(), ["the server is stopping"]);
        let lost = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
        assert!(lost.is_lost());
    });
}

#[test]
fn a_client_gets_the_exports_that_the_names_in_its_certificate_allow() {
    // S-037
    soon(|| {
        let certificates = Certificates::new();
        let name = |name| ExportName::new(name).unwrap();
        let disk = || Arc::new(Memory::new(1 << 20));
        let exports = NamedExports::new()
            .with(name("public"), disk())
            .with(name("client.example"), disk())
            .with(name("other.example"), disk());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let tls = ServerTls::from_directory(certificates.dir()).unwrap();
        let server = Server::new(exports).require_tls(&tls).unwrap();
        let running = Running::new(server.authorize(move |identity, export| {
            let names = identity.names().unwrap();
            log.lock().unwrap().push(names.subject);
            let export = export.as_str();
            identity.encrypted && (export == "public" || names.dns.iter().any(|dns| dns == export))
        }));
        let anonymous = secure(ConnectOptions::new(), knowing(&certificates));
        let tls = ClientTls::new().directory(certificates.dir()).unwrap();
        let known = secure(ConnectOptions::new(), tls.server_name("localhost"));
        for (options, subject, allowed) in [
            (anonymous, "", &["public"][..]),
            (known, "CN=client", &["public", "client.example"]),
        ] {
            for export in ["public", "client.example", "other.example"] {
                let options = options.clone().export(name(export));
                let entered = try_connect(&running, &options).is_ok();
                assert_eq!(entered, allowed.contains(&export), "{subject} {export}");
            }
            let asked = std::mem::take(&mut *asked.lock().unwrap());
            assert!(asked.iter().all(|asked| asked == subject), "{asked:?}");
        }
        running.stop();
    });
}

#[test]
fn a_server_that_stops_sends_close_notify() {
    soon(|| {
        let certificates = Certificates::new();
        let running = Running::new(memory().require_tls(&shown(&certificates)).unwrap());
        let tap = Tap::new(running.tcp);
        let options = secure(ConnectOptions::new(), knowing(&certificates));
        let stream = std::net::TcpStream::connect(tap.address()).unwrap();
        let client = options.connect_over(stream, Some("127.0.0.1")).unwrap();
        client.read_exact_at(&mut [0; 512], 0).unwrap();
        running.stop();
        drop(client);
        let said = tap.recording().server;
        // A record of TLS 1.3 with two bytes, their type and a tag: only an alert is so short, and
        // the only one after which the peer does not give up is `close_notify`.
        let last = &said[said.len() - 24..];
        assert_eq!(last[..5], [23, 3, 3, 0, 19]);
    });
}
