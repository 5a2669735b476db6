//! Leaving the negotiation.

use crate::{
    regressions::listening,
    support::{bytes, script::Peer, spawn, within},
};
use nbd_blocking::{
    ConnectOptions, ExportName,
    negotiation::{Go, Greeted, Negotiation, Plain},
};
use std::time::{Duration, Instant};

const ABORT: [u8; 16] = *b"IHAVEOPT\0\0\0\x02\0\0\0\0";

/// The last bytes that a server with this script receives from a client that does this to the
/// connection.
fn last_heard(
    script: impl FnOnce(&mut Peer) + Send + 'static,
    client: impl FnOnce(Negotiation<Plain>),
) -> Vec<u8> {
    let (listener, uri, _directory) = listening("/");
    let server = spawn(move || {
        let (stream, _) = listener.accept().expect("it is connected to");
        let mut peer = Peer {
            stream,
            one_byte: false,
        };
        peer.says(bytes::hello());
        peer.hears(4);
        script(&mut peer);
        peer.rest()
    });
    // A disconnect must not have the timeout of a negotiation.
    let options = ConnectOptions::new().negotiation_timeout(None);
    let greeted = options.start(&uri).expect("greeted");
    client(greeted.negotiation().expect("fixed newstyle"));
    server.join().expect("the script ends")
}

fn refusing(option: u32) -> impl FnOnce(&mut Peer) + Send + 'static {
    move |peer| {
        assert_eq!(peer.option().0, option);
        peer.says(bytes::err(option, 6, "not here"));
    }
}

#[test]
fn a_negotiation_that_is_given_up_ends_with_an_abort() {
    // C-035
    within(10, || {
        assert_eq!(last_heard(|_| (), drop), ABORT);
        let heard = last_heard(refusing(bytes::LIST), |mut negotiation| {
            negotiation.list().unwrap_err();
        });
        assert_eq!(heard, ABORT);
        let heard = last_heard(refusing(bytes::GO), |negotiation| {
            let refused = negotiation.go(Go::default()).expect("answered");
            drop(refused.into_result().expect_err("refused"));
        });
        assert_eq!(heard, ABORT);
    });
}

#[test]
fn a_client_disconnects_after_an_option_that_cannot_be_sent() {
    // C-035
    within(10, || {
        let script = |peer: &mut Peer| {
            assert_eq!(peer.option().0, bytes::EXTENDED);
            peer.says(bytes::ack(bytes::EXTENDED));
        };
        let heard = last_heard(script, |mut negotiation| {
            negotiation.extended_headers().expect("granted");
            negotiation.export_name(&ExportName::default()).unwrap_err();
        });
        assert_eq!(heard, ABORT);
    });
}

#[test]
fn the_client_never_aborts_twice_or_to_a_server_that_broke_the_protocol() {
    // C-038
    within(10, || {
        assert_eq!(last_heard(|_| (), Negotiation::abort), ABORT);
        let nonsense = |peer: &mut Peer| {
            peer.option();
            peer.says([0; 20]);
        };
        let heard = last_heard(nonsense, |mut negotiation| {
            negotiation.list().unwrap_err();
        });
        assert!(heard.is_empty(), "{heard:?}");
    });
}

#[test]
fn dropping_a_negotiation_disconnects_without_waiting() {
    // C-038
    within(10, || {
        let drops = || {
            let (listener, uri, _directory) = listening("/");
            let server = spawn(move || {
                let (stream, _) = listener.accept().expect("it is connected to");
                let mut peer = Peer {
                    stream,
                    one_byte: false,
                };
                peer.says(bytes::hello());
                peer
            });
            let options = ConnectOptions::new().negotiation_timeout(None);
            let Greeted::FixedNewstyle(negotiation) = options.start(&uri).expect("greeted") else {
                panic!("it is fixed newstyle");
            };
            let peer = server.join().expect("the script ends");
            let started = Instant::now();
            drop(negotiation);
            let took = started.elapsed();
            drop(peer);
            took
        };
        // The machine may hold up one of them, but a wait would show in each of them.
        let least = (0..4).map(|_| drops()).min().expect("there are some");
        assert!(least < Duration::from_millis(500), "{least:?}");
    });
}
