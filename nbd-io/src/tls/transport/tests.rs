//! Both roles over pipes with short reads and writes that pend in between. A lost wake-up, or a
//! loop that spins, is a failure.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod pipe;

use super::*;
use crate::{
    tls::{ClientTls, ServerTls},
    transport::{read, write_all},
};
use bytes::BytesMut;
use pipe::{End, pipe, run};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{RootCertStore, SupportedProtocolVersion};
use std::{
    future::ready as done,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Wake, Waker},
};

type Tls = TlsTransport<End>;

/// An authority, and the certificates that it has signed.
struct World {
    server: ServerTls,
    client: ClientTls,
    roots: RootCertStore,
}

impl World {
    fn new() -> Self {
        let key = || KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, key()).unwrap();
        let leaf = |name: &str| {
            let key = key();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let cert = params.signed_by(&key, &ca).unwrap();
            (cert.pem().into_bytes(), key.serialize_pem().into_bytes())
        };
        let (server, server_key) = leaf("disks.example");
        let (client, client_key) = leaf("client.example");
        let mut store = RootCertStore::empty();
        store.add(ca.der().clone()).unwrap();
        let roots = ca.pem().into_bytes();
        Self {
            roots: store,
            server: ServerTls::from_pem(&server, &server_key)
                .and_then(|tls| tls.client_roots_pem(&roots))
                .unwrap(),
            client: ClientTls::new()
                .roots_pem(&roots)
                .and_then(|tls| tls.identity_pem(&client, &client_key))
                .unwrap(),
        }
    }

    /// Shakes hands with a client that wants to speak to `name`.
    fn shake(
        &self,
        name: &str,
        ends: (End, End),
    ) -> (Result<Tls, TlsError>, Result<Tls, TlsError>) {
        let (config, name) = self.client.client(Some(name)).unwrap();
        let server = self.server.server().unwrap();
        run(
            TlsTransport::connect(ends.0, config, name),
            TlsTransport::accept(ends.1, server),
        )
    }
}

/// Both ends of a connection over pipes of `capacity` bytes that take at most `chunk` at once.
fn connected(
    version: &'static SupportedProtocolVersion,
    capacity: usize,
    chunk: usize,
) -> (Tls, Tls) {
    let world = World::new();
    let mut server = Arc::unwrap_or_clone(world.server.server().unwrap());
    // Without resumption the server has nothing to say after the handshake.
    server.send_tls13_tickets = 0;
    let client = ClientConfig::builder_with_provider(crate::tls::provider().unwrap())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(world.roots.clone())
        .with_no_client_auth();
    let name = ServerName::try_from("disks.example").unwrap();
    let (ours, theirs) = pipe(capacity, chunk);
    let (client, server) = run(
        TlsTransport::connect(ours, Arc::new(client), name),
        TlsTransport::accept(theirs, Arc::new(server)),
    );
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(client.connection.protocol_version(), Some(version.version));
    (client, server)
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..u32::try_from(len).unwrap())
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24).to_le_bytes()[0])
        .collect()
}

/// Sends all of `out` and receives `expected` bytes at the same time, in one task.
async fn exchange(tls: &mut Tls, out: &[u8], expected: usize) -> io::Result<Vec<u8>> {
    let (mut sent, mut got) = (0, Vec::new());
    let mut flushed = false;
    poll_fn(|cx| {
        loop {
            let before = (sent, got.len(), flushed);
            if got.len() < expected {
                // A header and a payload, as drivers read them.
                let (mut header, mut payload) = ([0; 28], [0; 40_000]);
                let room = (expected - got.len()).min(header.len());
                let rest = (expected - got.len() - room).min(payload.len());
                let mut bufs = [
                    IoSliceMut::new(&mut header[..room]),
                    IoSliceMut::new(&mut payload[..rest]),
                ];
                if let Poll::Ready(n) = tls.poll_read(cx, &mut bufs)? {
                    assert_ne!(n, 0, "the end came too early");
                    got.extend_from_slice(&header[..n.min(room)]);
                    got.extend_from_slice(&payload[..n.saturating_sub(room)]);
                }
            }
            if sent < out.len() {
                let (header, payload) = out[sent..].split_at((out.len() - sent).min(28));
                let bufs = [IoSlice::new(header), IoSlice::new(payload)];
                if let Poll::Ready(n) = tls.poll_write(cx, &bufs)? {
                    sent += n;
                }
            } else if !flushed {
                flushed = tls.poll_flush(cx)?.is_ready();
            }
            if flushed && got.len() == expected {
                return Poll::Ready(io::Result::Ok(()));
            }
            if before == (sent, got.len(), flushed) {
                return Poll::Pending;
            }
        }
    })
    .await?;
    Ok(got)
}

#[test]
fn large_transfers_go_both_ways_at_once_and_need_each_other() {
    for version in VERSIONS {
        for (capacity, chunk, len) in [(1, 1, 3_000), (700, 300, 300_000), (9_999, 9_999, 3 << 20)]
        {
            let (mut client, mut server) = connected(version, capacity, chunk);
            let (there, back) = (pattern(len, 1), pattern(len + 77, 2));
            let (at_client, at_server) = run(
                exchange(&mut client, &there, back.len()),
                exchange(&mut server, &back, there.len()),
            );
            assert!(at_client.unwrap() == back, "{version:?} {capacity}");
            assert!(at_server.unwrap() == there, "{version:?} {capacity}");
        }
    }
}

#[test]
fn one_read_takes_everything_that_came() {
    let (mut client, mut server) = connected(&rustls::version::TLS13, 1 << 20, 1 << 20);
    let sent = pattern(200_000, 3);
    let mut send = || {
        let mut out = BytesMut::from(&sent[..]);
        let write = async { write_all(&mut client, &mut out).await.unwrap() };
        run(write, done(()));
    };
    // The first time, the size of the data is not known yet.
    send();
    let (mut taken, mut space) = (0, vec![0; sent.len()]);
    while taken < sent.len() {
        let mut bufs = [IoSliceMut::new(&mut space[taken..])];
        let (n, ()) = run(poll_fn(|cx| server.poll_read(cx, &mut bufs)), done(()));
        taken += n.unwrap();
    }
    send();

    let (mut header, mut payload) = (vec![0; 28], vec![0; 300_000]);
    let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut payload)];
    let (n, ()) = run(poll_fn(|cx| server.poll_read(cx, &mut bufs)), done(()));
    assert_eq!(n.unwrap(), sent.len());
    assert_eq!(header, sent[..28]);
    assert!(payload[..sent.len() - 28] == sent[28..]);
}

#[test]
fn each_side_knows_the_certificate_of_the_other() {
    let world = World::new();
    let (client, server) = world.shake("disks.example", pipe(4096, 64));
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(client.peer_certificates().unwrap().len(), 1);
    assert_eq!(server.peer_certificates().unwrap().len(), 1);
    assert_ne!(client.peer_certificates(), server.peer_certificates());

    let mut stranger = world;
    stranger.client = ClientTls::new().dangerous_accept_any_certificate();
    let (_, server) = stranger.shake("disks.example", pipe(4096, 64));
    assert_eq!(server.unwrap().peer_certificates(), None);
}

#[test]
fn a_certificate_for_another_name_is_refused_with_an_alert() {
    let (client, server) = World::new().shake("elsewhere.example", pipe(1, 1));
    let error = client.unwrap_err();
    assert!(matches!(error, TlsError::Certificate { .. }), "{error:?}");
    let Err(TlsError::Client(rustls::Error::AlertReceived(_))) = server else {
        panic!("the server got no alert: {server:?}");
    };
}

#[test]
fn a_client_without_a_certificate_gets_an_alert_that_it_needs_one() {
    let mut world = World::new();
    world.client = ClientTls::new().dangerous_accept_any_certificate();
    world.server = world.server.require_client_certificates(true);
    let (client, server) = world.shake("disks.example", pipe(4096, 64));
    let error = server.unwrap_err();
    assert!(matches!(error, TlsError::Client(_)), "{error:?}");
    // In TLS 1.3 the client has done its part before the server has checked its certificate.
    let (read, ()) = run(
        async { read(&mut client.unwrap(), &mut [0]).await },
        done(()),
    );
    let error = read.unwrap_err().to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
}

#[test]
fn a_connection_that_breaks_during_the_handshake_is_an_error_for_both_roles() {
    let world = World::new();
    let (ours, theirs) = pipe(4096, 64);
    drop(theirs);
    let (config, name) = world.client.client(Some("disks.example")).unwrap();
    let (client, ()) = run(TlsTransport::connect(ours, config, name), done(()));
    assert!(matches!(client, Err(TlsError::Io { .. })), "{client:?}");

    let (ours, theirs) = pipe(4096, 64);
    drop(theirs);
    let accepting = TlsTransport::accept(ours, world.server.server().unwrap());
    let (server, ()) = run(accepting, done(()));
    assert!(matches!(server, Err(TlsError::ClientIo(_))), "{server:?}");
}

#[test]
fn the_end_of_tls_is_an_end_and_comes_before_that_of_the_transport() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(version, 5, 2);
        let mut out = BytesMut::from(&b"the rest"[..]);
        let leave = async {
            write_all(&mut client, &mut out).await.unwrap();
            poll_fn(|cx| client.poll_shutdown(cx)).await.unwrap();
            // The other direction is still open.
            let mut answer = [0; 8];
            let mut n = 0;
            while n < answer.len() {
                n += read(&mut client, &mut answer[n..]).await.unwrap();
            }
            assert_eq!(&answer, b"and you!");
        };
        let stay = async {
            let mut got = Vec::new();
            loop {
                let mut space = [0; 64];
                match read(&mut server, &mut space).await.unwrap() {
                    0 => break,
                    n => got.extend_from_slice(&space[..n]),
                }
            }
            assert_eq!(got, b"the rest");
            assert_eq!(
                read(&mut server, &mut [0]).await.unwrap(),
                0,
                "it stays over"
            );
            let mut out = BytesMut::from(&b"and you!"[..]);
            write_all(&mut server, &mut out).await.unwrap();
        };
        run(leave, stay);
    }
}

#[test]
fn a_connection_that_is_dropped_ends_tls_if_that_needs_no_waiting() {
    for (capacity, ends) in [(1 << 16, true), (1, false)] {
        let (mut client, mut server) = connected(&rustls::version::TLS13, capacity, capacity);
        client.transport.hasten();
        drop(client);
        let (end, ()) = run(read(&mut server, &mut [0; 16]), done(()));
        match end {
            Ok(n) => assert!(ends && n == 0, "{n} bytes"),
            Err(error) => {
                assert!(!ends, "{error:?}");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
    }
}

#[test]
fn a_cut_connection_is_no_end_but_an_error() {
    for version in VERSIONS {
        let (mut client, mut server) = connected(version, 1 << 10, 100);
        let mut out = BytesMut::from(&b"half of a"[..]);
        let cut = async {
            write_all(&mut client, &mut out).await.unwrap();
            drop(client);
        };
        let notice = async {
            let mut space = [0; 64];
            assert_eq!(read(&mut server, &mut space).await.unwrap(), 9);
            for _ in 0..2 {
                let error = read(&mut server, &mut space).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        };
        run(cut, notice);
    }
}

#[test]
fn forged_bytes_end_the_connection_after_the_genuine_ones() {
    let (mut client, mut server) = connected(&rustls::version::TLS13, 1 << 20, 1 << 20);
    let mut out = BytesMut::from(&b"right"[..]);
    run(
        async { write_all(&mut client, &mut out).await.unwrap() },
        done(()),
    );
    // A record of application data that is encrypted with a wrong key.
    let mut forged = BytesMut::from(&[23, 3, 3, 0, 32][..]);
    forged.resize(37, 0xa5);
    run(
        async { write_all(&mut client.transport, &mut forged).await.unwrap() },
        done(()),
    );

    let notice = async {
        let mut space = [0; 64];
        assert_eq!(read(&mut server, &mut space).await.unwrap(), 5);
        for _ in 0..2 {
            let error = read(&mut server, &mut space).await.unwrap_err();
            assert!(error.to_string().contains("decrypt"), "{error}");
        }
    };
    run(notice, done(()));
    let (result, ()) = run(async { read(&mut client, &mut [0]).await }, done(()));
    let error = result.unwrap_err().to_string();
    assert!(error.contains("BadRecordMac"), "{error}");
}

#[test]
fn keys_can_change_in_the_middle_on_either_side() {
    let (mut client, mut server) = connected(&rustls::version::TLS13, 700, 300);
    for round in 0..3 {
        client.connection.refresh_traffic_keys().unwrap();
        server.connection.refresh_traffic_keys().unwrap();
        let (there, back) = (pattern(100_000, round), pattern(90_000, round + 9));
        let (at_client, at_server) = run(
            exchange(&mut client, &there, back.len()),
            exchange(&mut server, &back, there.len()),
        );
        assert!(at_client.unwrap() == back && at_server.unwrap() == there);
    }
}

#[test]
fn a_reader_flushes_the_rest_of_a_write() {
    for chunk in [1, 50] {
        let (mut client, mut server) = connected(&rustls::version::TLS13, 50, chunk);
        let request = pattern(5_000, 4);
        let ask = async {
            let n = poll_fn(|cx| client.poll_write(cx, &[IoSlice::new(&request)])).await;
            assert_eq!(n.unwrap(), request.len(), "TLS takes it, the pipe does not");
            read(&mut client, &mut [0]).await.unwrap()
        };
        let answer = async {
            let mut got = 0;
            while got < request.len() {
                got += read(&mut server, &mut [0; 1_000]).await.unwrap();
            }
            let mut out = BytesMut::from(&b"!"[..]);
            write_all(&mut server, &mut out).await.unwrap();
        };
        assert_eq!(run(ask, answer), (1, ()));
    }
}

#[test]
fn a_blocked_write_does_not_block_reads() {
    let (mut client, mut server) = connected(&rustls::version::TLS13, 100, 100);
    let mut hello = BytesMut::from(&b"hello"[..]);
    let greet = async { write_all(&mut server, &mut hello).await.unwrap() };
    run(greet, done(()));
    // The client's bytes stay unread.
    let big = vec![0; SEND_BUFFER];
    let work = async {
        poll_fn(|cx| {
            while client.poll_write(cx, &[IoSlice::new(&big)]).is_ready() {}
            Poll::Ready(())
        })
        .await;
        let mut space = [0; 64];
        assert_eq!(read(&mut client, &mut space).await.unwrap(), 5);
        assert_eq!(&space[..5], b"hello");
    };
    run(work, done(()));
}

/// A waker of a writer is not given to a reader: a program may wait for both in different places.
#[test]
fn a_reader_leaves_the_wake_up_of_a_waiting_writer_alone() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (mut client, mut server) = connected(&rustls::version::TLS13, 100, 100);
    let (writer, reader) = (Arc::new(Count(0.into())), Arc::new(Count(0.into())));
    let (writing, reading) = (Waker::from(Arc::clone(&writer)), Waker::from(reader));
    let big = vec![0; SEND_BUFFER];
    // Twice, since the pipe is lazy.
    let mut cx = Context::from_waker(&writing);
    while client.poll_write(&mut cx, &[IoSlice::new(&big)]).is_ready() {}
    assert!(
        client
            .poll_write(&mut cx, &[IoSlice::new(&big)])
            .is_pending()
    );
    let mut space = [0; 64];
    for _ in 0..2 {
        let mut bufs = [IoSliceMut::new(&mut space)];
        let read = client.poll_read(&mut Context::from_waker(&reading), &mut bufs);
        assert!(read.is_pending());
    }
    let before = writer.0.load(Ordering::Relaxed);
    let (n, ()) = run(
        async { read(&mut server.transport, &mut [0; 64]).await },
        done(()),
    );
    assert_eq!(n.unwrap(), 64);
    assert_eq!(writer.0.load(Ordering::Relaxed), before + 1);
}
