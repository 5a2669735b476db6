//! Coming back by TLS.

use super::{
    pipe::{Pipe, Scissors},
    recovery::{options, policy},
    server::{Manner, serve},
    sim::Sim,
};
use crate::{
    Memory, NamedExports,
    client::{Error, Lost, NegotiationError},
    tls::{ClientTls, ServerTls},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// A server by a certificate of its own authority, and who trusts it.
fn authority() -> (ServerTls, ClientTls) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let (chain, key) = (certificate.pem(), key.serialize_pem());
    (
        ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap(),
        ClientTls::new()
            .roots_pem(authority.pem().as_bytes())
            .unwrap(),
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// The certificate is of another authority.
    Stranger,
    /// The server ends during the handshake.
    BreaksOff,
}

/// Serves by TLS, but not rightly so many connections after the first.
fn host(sim: &Sim, fault: Fault, faults: usize) -> (ClientTls, Arc<Mutex<Vec<Scissors>>>) {
    let (server, client) = authority();
    let (stranger, _) = authority();
    let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(4096))));
    let connections = Arc::<Mutex<Vec<Scissors>>>::default();
    let (runtime, open, count) = (sim.clone(), connections.clone(), AtomicUsize::new(0));
    sim.on_connect(move |pipe: Pipe| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let faulty = (1..=faults).contains(&number);
        let scissors = pipe.scissors();
        if faulty && fault == Fault::BreaksOff {
            // Past the greeting and the answer to `STARTTLS`.
            let cut = scissors.clone();
            scissors.fuse(true, 18 + 20 + 100, move || cut.end());
        }
        open.lock().unwrap().push(scissors);
        let tls = if faulty && fault == Fault::Stranger {
            &stranger
        } else {
            &server
        };
        let manner = Manner {
            tls: Some(tls.clone()),
            ..Manner::default()
        };
        serve(&runtime, pipe, exports.clone(), manner);
        Ok(())
    });
    (client, connections)
}

#[test]
fn handshakes_that_fail_count_as_attempts() {
    for fault in [Fault::Stranger, Fault::BreaksOff] {
        for faults in [2, 3] {
            let sim = Sim::new(1);
            let (tls, connections) = host(&sim, fault, faults);
            sim.run(async {
                let options = options(&sim, policy().attempts(Some(3))).tls(tls);
                let client = options.connect("nbds://localhost").await.unwrap();
                client.write(0, vec![7; 10]).await.unwrap();
                let connections = std::mem::take(&mut *connections.lock().unwrap());
                connections.iter().for_each(Scissors::cut);
                let read = client.read(0, 10).await;
                if faults < 3 {
                    assert_eq!(&read.unwrap()[..], [7; 10]);
                    assert!(client.is_encrypted());
                    return;
                }
                let Err(Error::Lost(lost)) = read else {
                    panic!("{fault:?}: {read:?}");
                };
                let Lost::NotRestored { attempts, source } = &*lost else {
                    panic!("{fault:?}: {lost:?}");
                };
                assert_eq!(*attempts, 3);
                let Error::Negotiation(source) = &**source else {
                    panic!("{fault:?}: {source:?}");
                };
                assert!(
                    matches!(
                        **source,
                        NegotiationError::Tls(_) | NegotiationError::TlsBrokeOff(_)
                    ),
                    "{fault:?}: {source:?}"
                );
            });
        }
    }
}
