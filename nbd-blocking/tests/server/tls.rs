//! TLS: required, offered, and with certificates on both sides.

use crate::{
    commands::exercise,
    support::{Running, modes, soon},
};
use nbd_blocking::{
    Client, ClientTls, ConnectOptions, Error, ExportName, ServerTls, TlsPolicy, Uri, server::Server,
};
use nbd_io::{Memory, NamedExports};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::sync::Arc;

pub(crate) struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            ca: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn leaf(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn server(&self) -> ServerTls {
        let (chain, key) = self.leaf("localhost");
        ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap()
    }

    pub(crate) fn client(&self) -> ClientTls {
        ClientTls::new()
            .roots_pem(self.ca.pem().as_bytes())
            .unwrap()
            .server_name("localhost")
    }
}

fn memory() -> Server {
    Server::single(Arc::new(Memory::new(64 << 20)))
}

pub(crate) fn secure(options: ConnectOptions, tls: ClientTls) -> ConnectOptions {
    options.tls(tls).tls_policy(TlsPolicy::Always)
}

fn try_connect(running: &Running, options: &ConnectOptions) -> Result<Client, Error> {
    options.connect_unix(running.raw())
}

#[test]
fn every_command_works_over_tls() {
    soon(|| {
        let pki = Pki::new();
        let running = Running::new(memory().require_tls(&pki.server()).unwrap());
        for options in modes() {
            let options = secure(options, pki.client());
            let unix = running.connect(&options);
            assert!(unix.is_encrypted());
            exercise(&unix);
            unix.disconnect().unwrap();
            let tcp = options.connect_tcp(running.raw_tcp()).unwrap();
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
fn nobody_gets_in_without_the_tls_that_is_required() {
    // S-053
    soon(|| {
        let pki = Pki::new();
        let running = Running::new(memory().require_tls(&pki.server()).unwrap());
        let refused = try_connect(&running, &ConnectOptions::new());
        assert!(matches!(refused, Err(Error::Negotiation(_))));
        running.wait_for_endings(1);
        let stranger = secure(ConnectOptions::new(), Pki::new().client());
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
        let pki = Pki::new();
        let name = |name| ExportName::new(name).unwrap();
        let exports = NamedExports::new()
            .with(name("open"), Arc::new(Memory::new(1 << 20)))
            .with_tls_only(name("secret"), Arc::new(Memory::new(2 << 20)));
        let running = Running::new(Server::new(exports).offer_tls(&pki.server()).unwrap());
        let plain = ConnectOptions::new();
        let encrypted = secure(plain.clone(), pki.client());
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
        let nbd_blocking::Greeted::Options(mut haggling) = plain.start(&uri("nbd")).unwrap() else {
            panic!("the server is fixed newstyle");
        };
        let listed = haggling.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].name, Ok(name("open")));
        let mut haggling = encrypted.start_secure(&uri("nbds")).unwrap();
        assert_eq!(haggling.list().unwrap().len(), 2);
        drop(haggling);
        running.stop();
    });
}

#[test]
fn haggling_that_is_given_up_inside_tls_ends_with_a_goodbye() {
    // C-035, C-036
    soon(|| {
        let pki = Pki::new();
        let running = Running::new(memory().require_tls(&pki.server()).unwrap());
        let options = secure(ConnectOptions::new(), pki.client());
        let uri = format!("nbds+unix:///?socket={}", running.unix.display());
        let uri = Uri::parse(&uri).unwrap();
        let mut haggling = options.start_secure(&uri).unwrap();
        haggling.list().unwrap();
        drop(haggling);
        running.wait_for_endings(1);
        assert_eq!(running.stop(), ["the client gave up the negotiation"]);
    });
}

#[test]
fn a_server_can_ask_for_certificates() {
    // S-067
    soon(|| {
        let pki = Pki::new();
        let tls = pki
            .server()
            .client_roots_pem(pki.ca.pem().as_bytes())
            .unwrap();
        let with_certificate = |pki: &Pki, issuer: &Pki| {
            let (chain, key) = issuer.leaf("client");
            let tls = pki.client();
            let tls = tls.identity_pem(chain.as_bytes(), key.as_bytes()).unwrap();
            secure(ConnectOptions::new(), tls)
        };
        let anonymous = secure(ConnectOptions::new(), pki.client());
        let known = with_certificate(&pki, &pki);
        let unknown = with_certificate(&pki, &Pki::new());
        for required in [false, true] {
            let tls = tls.clone().require_client_certificates(required);
            let running = Running::new(memory().require_tls(&tls).unwrap());
            assert!(try_connect(&running, &known).is_ok());
            assert_eq!(try_connect(&running, &anonymous).is_ok(), !required);
            assert!(try_connect(&running, &unknown).is_err());
            running.stop();
        }
        let nobody = pki.server().require_client_certificates(true);
        assert!(memory().require_tls(&nobody).is_err());
    });
}

#[test]
fn a_directory_has_it_all() {
    soon(|| {
        let pki = Pki::new();
        let directory = tempfile::tempdir().unwrap();
        assert!(ServerTls::from_directory(directory.path()).is_err());
        let (chain, key) = pki.leaf("localhost");
        let write = |name: &str, pem: String| std::fs::write(directory.path().join(name), pem);
        write("server-cert.pem", chain).unwrap();
        write("server-key.pem", key).unwrap();
        write("ca-cert.pem", pki.ca.pem()).unwrap();
        let tls = ServerTls::from_directory(directory.path()).unwrap();
        let running = Running::new(memory().require_tls(&tls).unwrap());
        let options = secure(ConnectOptions::new(), pki.client());
        assert!(try_connect(&running, &options).is_ok());
        running.stop();
    });
}

#[test]
fn a_server_stops_while_tls_is_up() {
    soon(|| {
        let pki = Pki::new();
        let running = Running::new(memory().require_tls(&pki.server()).unwrap());
        let client = running.connect(&secure(ConnectOptions::new(), pki.client()));
        client.read_exact_at(&mut [0; 512], 0).unwrap();
        assert_eq!(running.stop(), ["the server is stopping"]);
        let lost = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
        assert!(lost.is_lost());
    });
}
