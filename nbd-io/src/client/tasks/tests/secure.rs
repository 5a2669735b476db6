//! Reconnecting over TLS.

use super::{
    pipe::{Cutter, Pipe},
    recovery::{options, policy},
    server::{Behaviour, enter, serve},
    sim::Sim,
};
use crate::{
    Memory, NamedExports,
    client::{ConnectOptions, Error, Lost, NegotiationError},
    runtime::{Runtime, Tasks},
    tls::{ClientTls, ServerTls},
    transport::{read, write_all},
};
use bytes::BytesMut;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// A server with a certificate of its own authority, and a client that trusts it.
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

/// Serves over TLS, but with a fault on so many connections after the first.
fn host(sim: &Sim, fault: Fault, faults: usize) -> (ClientTls, Arc<Mutex<Vec<Cutter>>>) {
    let (server, client) = authority();
    let (stranger, _) = authority();
    let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(4096))));
    let connections = Arc::<Mutex<Vec<Cutter>>>::default();
    let (runtime, open, count) = (sim.clone(), connections.clone(), AtomicUsize::new(0));
    sim.on_connect(move |pipe: Pipe| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        let faulty = (1..=faults).contains(&number);
        let cutter = pipe.cutter();
        if faulty && fault == Fault::BreaksOff {
            // Past the greeting and the answer to `STARTTLS`.
            let cut = cutter.clone();
            cutter.trigger(true, 18 + 20 + 100, move || cut.end());
        }
        open.lock().unwrap().push(cutter);
        let tls = if faulty && fault == Fault::Stranger {
            &stranger
        } else {
            &server
        };
        let behaviour = Behaviour {
            tls: Some(tls.clone()),
            ..Behaviour::default()
        };
        serve(&runtime, pipe, exports.clone(), behaviour);
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
                client.write(vec![7; 10], 0).await.unwrap();
                let connections = std::mem::take(&mut *connections.lock().unwrap());
                connections.iter().for_each(Cutter::cut);
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
                let Error::Negotiation { source, .. } = &**source else {
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

#[test]
fn a_server_that_breaks_the_protocol_is_left_with_the_end_of_tls() {
    // C-040
    let sim = Sim::new(1);
    let (server, client) = authority();
    let exports = Arc::new(NamedExports::single(Arc::new(Memory::new(4096))));
    let (runtime, ended) = (
        sim.clone(),
        Arc::<Mutex<Option<io::Result<usize>>>>::default(),
    );
    let end = ended.clone();
    sim.on_connect(move |pipe: Pipe| {
        let (exports, end) = (exports.clone(), end.clone());
        let behaviour = Behaviour {
            tls: Some(server.clone()),
            ..Behaviour::default()
        };
        runtime.spawn(async move {
            let mut stream = enter(pipe, exports, &behaviour).await.unwrap().transport;
            let mut request = [0; 32];
            read(&mut stream, &mut request).await.unwrap();
            let mut garbage = BytesMut::from(&[0xff; 16][..]);
            write_all(&mut stream, &mut garbage).await.unwrap();
            let read = read(&mut stream, &mut request).await;
            *end.lock().unwrap() = Some(read);
        });
        Ok(())
    });
    sim.run(async {
        let options = ConnectOptions::with_runtime(sim.clone()).tls(client);
        let client = options.connect("nbds://localhost").await.unwrap();
        let error = client.read(0, 10).await.unwrap_err();
        assert!(
            matches!(&error, Error::Lost(lost) if matches!(**lost, Lost::Protocol(_))),
            "{error:?}"
        );
        while ended.lock().unwrap().is_none() {
            sim.sleep(Duration::from_millis(1)).await;
        }
    });
    let end = ended.lock().unwrap().take().unwrap();
    assert_eq!(end.unwrap(), 0);
}
