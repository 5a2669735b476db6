//! Requirements for sockets and listeners.

use super::*;
use nbd_io::server::{Listener as _, Peer};

#[test]
fn one_call_takes_a_header_and_its_payload() {
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, mut peer) = pair();
            let (header, payload) = ([1; 28], [2; 4096]);
            let bufs = [IoSlice::new(&header), IoSlice::new(&payload)];
            let n = poll_fn(|cx| socket.poll_write(cx, &bufs)).await;
            assert_eq!(n.unwrap(), 28 + 4096);

            let mut got = [0; 28 + 4096];
            peer.read_exact(&mut got).unwrap();
            peer.write_all(&got).unwrap();
            let (mut header, mut payload) = ([0; 28], [0; 8192]);
            let mut bufs = [IoSliceMut::new(&mut header), IoSliceMut::new(&mut payload)];
            let n = poll_fn(|cx| socket.poll_read(cx, &mut bufs)).await;
            assert_eq!(n.unwrap(), 28 + 4096);
            assert!(header == [1; 28] && payload[..4096] == [2; 4096]);
        });
    });
}

#[test]
fn both_directions_go_on_at_once() {
    const LEN: usize = 8 << 20;
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, peer) = pair();
            // Echoes its input, so that a peer that only writes is held up for ever by
            // backpressure.
            let echo = thread::spawn(move || {
                let (mut from, mut to) = (peer.try_clone().unwrap(), peer);
                io::copy(&mut from, &mut to).unwrap()
            });
            let sent: Vec<u8> = (0..LEN).map(|i| (i % 251).to_le_bytes()[0]).collect();
            let mut got = vec![0; LEN];
            let (mut out, mut back) = (0, 0);
            poll_fn(|cx| {
                loop {
                    let before = (out, back);
                    if out < LEN {
                        match socket.poll_write(cx, &[IoSlice::new(&sent[out..])])? {
                            Poll::Ready(n) => out += n,
                            Poll::Pending => {}
                        }
                    }
                    let space = &mut got[back..];
                    match socket.poll_read(cx, &mut [IoSliceMut::new(space)])? {
                        Poll::Ready(n) => back += n,
                        Poll::Pending => {}
                    }
                    if back == LEN {
                        return Poll::Ready(io::Result::Ok(()));
                    }
                    if before == (out, back) {
                        return Poll::Pending;
                    }
                }
            })
            .await
            .unwrap();
            assert!(got == sent);
            poll_fn(|cx| socket.poll_shutdown(cx)).await.unwrap();
            assert_eq!(read(&mut socket, &mut [0]).await.unwrap(), 0);
            assert_eq!(echo.join().unwrap(), LEN as u64);
        });
    });
}

#[test]
fn many_small_messages_go_back_and_forth() {
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, mut peer) = pair();
            let echo = thread::spawn(move || {
                let mut request = [0; 28];
                while peer.read_exact(&mut request).is_ok() {
                    peer.write_all(&request[..16]).unwrap();
                }
            });
            for i in 0..5_000_u32 {
                write(&mut socket, &[i.to_le_bytes()[0]; 28]).await;
                let (mut got, mut space) = (0, [0; 64]);
                while got < 16 {
                    got += read(&mut socket, &mut space[got..]).await.unwrap();
                }
                assert_eq!(space[..16], [i.to_le_bytes()[0]; 16]);
            }
            drop(socket);
            echo.join().unwrap();
        });
    });
}

#[test]
fn data_before_the_end_is_read_before_the_end() {
    limited(|| {
        on_runtime(async |_| {
            let (mut socket, mut peer) = pair();
            peer.write_all(&[7; 100]).unwrap();
            drop(peer);
            let mut space = [0; 64];
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 64);
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 36);
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 0);
            assert_eq!(read(&mut socket, &mut space).await.unwrap(), 0);
        });
    });
}

#[test]
fn a_listener_accepts_clients() {
    limited(|| {
        let dir = scratch();
        let path = dir.path().join("socket");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp_address = format!("nbd://{}", tcp.local_addr().unwrap());
        let unix_address = format!("nbd+unix:///?socket={}", path.display());
        let listeners = [
            nbd_socket::Listener::new(tcp).unwrap(),
            nbd_socket::Listener::new(UnixListener::bind(&path).unwrap()).unwrap(),
        ];
        on_runtime(async |network| {
            for (listener, address) in listeners.into_iter().zip([tcp_address, unix_address]) {
                let mut listener = Listener::new(listener).unwrap();
                poll_fn(|cx| {
                    assert!(listener.poll_accept(cx).is_pending());
                    Poll::Ready(())
                })
                .await;
                for _ in 0..3 {
                    let mut client = network
                        .connect(uri(&address).address(), &DialOptions::default())
                        .await
                        .unwrap();
                    let accepted = poll_fn(|cx| listener.poll_accept(cx)).await;
                    let (mut server, peer) = accepted.unwrap();
                    assert_eq!(peer != Peer::Unix, address.starts_with("nbd:"));
                    write(&mut server, b"hello").await;
                    let mut space = [0; 64];
                    assert_eq!(read(&mut client, &mut space).await.unwrap(), 5);
                    assert_eq!(&space[..5], b"hello");
                }
            }
        });
    });
}
