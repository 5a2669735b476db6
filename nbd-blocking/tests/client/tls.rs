//! One connection, many threads, inside TLS.

use crate::support::{
    Random,
    bytes::{self, content, sr},
    script::play,
    spawn, within,
};
use nbd_blocking::{
    Client, ClientTls, CommandFlags, ConnectOptions, Error, Reconnect, Server, ServerTls, TlsPolicy,
};
use nbd_io::{
    Memory,
    tls::rustls::{ServerConnection, StreamOwned},
};
use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::Arc,
    thread::JoinHandle,
};

const MIB: usize = 1 << 20;

fn field(bytes: &[u8]) -> usize {
    let bytes = bytes.try_into().expect("4 bytes");
    usize::try_from(u32::from_be_bytes(bytes)).expect("it fits")
}

/// Serves requests one after the other, with backpressure: no request is read before the last reply
/// is sent.
fn serve(mut stream: impl Read + Write) {
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header).expect("an option");
        let option = u32::from_be_bytes(header[8..12].try_into().expect("4 bytes"));
        let mut data = vec![0; field(&header[12..])];
        stream.read_exact(&mut data).expect("its data");
        if option == bytes::GO {
            stream
                .write_all(&bytes::export(1 << 30, bytes::ALL_FLAGS))
                .expect("heard");
            stream.write_all(&bytes::ack(option)).expect("heard");
            break;
        }
        stream.write_all(&bytes::err(option, 1, "")).expect("heard");
    }
    loop {
        stream.flush().expect("heard");
        let mut header = [0; 28];
        stream.read_exact(&mut header).expect("a request");
        let number = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8"));
        let len = field(&header[24..]);
        match header[7] {
            0 => {
                let reply = sr(0, number(8), content(number(16), len));
                stream.write_all(&reply).expect("heard");
            }
            1 => {
                let mut payload = vec![0; len];
                stream.read_exact(&mut payload).expect("the payload");
                assert!(payload == content(number(16), len));
                stream.write_all(&sr(0, number(8), [])).expect("heard");
            }
            _ => return,
        }
    }
}

fn certified() -> ServerTls {
    let certified =
        rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("certified");
    let (chain, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    ServerTls::from_pem(chain.as_bytes(), key.as_bytes()).expect("usable")
}

fn secure() -> (Client, JoinHandle<()>) {
    let config = certified().server().expect("usable");
    let (stream, server) = play(move |peer| {
        peer.says(bytes::hello());
        peer.hears(4);
        assert_eq!(peer.option().0, 5);
        peer.says(bytes::ack(5));
        let connection = ServerConnection::new(config).expect("usable");
        let socket = peer.stream.try_clone().expect("sockets can be cloned");
        serve(StreamOwned::new(connection, socket));
    });
    let client = ConnectOptions::new()
        .request_timeout(None)
        .tls_policy(TlsPolicy::Always)
        .tls(ClientTls::new().dangerous_accept_any_certificate())
        .connect_over(stream, None)
        .expect("entered");
    assert!(client.is_encrypted());
    (client, server)
}

#[test]
fn threads_read_and_write_inside_tls() {
    // C-185, H-037
    within(30, || {
        let (client, server) = secure();
        let workers: Vec<_> = (0..8_u64)
            .map(|number| {
                let client = client.clone();
                spawn(move || {
                    let mut random = Random::new(number);
                    for _ in 0..6 {
                        let offset = random.below(64 * MIB) as u64;
                        let len = 1 + random.below(MIB);
                        if random.below(2) == 0 {
                            let data = content(offset, len);
                            client.write_all_at(&data, offset).expect("written");
                        } else {
                            let mut data = vec![0; len];
                            client.read_exact_at(&mut data, offset).expect("read");
                            assert!(data == content(offset, len));
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("no worker fails");
        }
        client.disconnect().expect("the session ends well");
        server.join().expect("the client disconnects");
    });
}

#[test]
fn a_queue_takes_its_replies_while_it_writes_inside_tls() {
    // C-185, H-037
    within(30, || {
        let (client, server) = secure();
        let mut queue = client.queue();
        for number in 0..8 {
            queue.read(vec![0; MIB], number << 20).expect("submitted");
        }
        queue.send().expect("sent");
        client
            .write_all_at(&content(0, 8 * MIB), 0)
            .expect("written");
        let payload = content(5, 8 * MIB);
        queue
            .write(payload, 5, CommandFlags::NONE)
            .expect("submitted");
        for number in 0..4 {
            queue.read(vec![0; MIB], number << 20).expect("submitted");
        }
        let mut seen = 0;
        while let Some(completion) = queue.complete().expect("the connection holds") {
            completion.result.expect("done");
            seen += 1;
        }
        assert_eq!(seen, 13);
        drop((queue, client));
        server.join().expect("the client disconnects");
    });
}

#[test]
fn a_restored_connection_has_tls_too() {
    within(30, || {
        let tls = certified();
        let disk = Arc::new(Memory::new(1 << 20));
        let listener = TcpListener::bind("localhost:0").expect("there is a loopback");
        let address = listener.local_addr().expect("it is bound");
        let start = |listener| {
            let server = Server::single(disk.clone())
                .require_tls(&tls)
                .expect("usable");
            let stopper = server.stopper();
            (
                stopper,
                spawn(move || server.serve(nbd_blocking::Listener::from_std(listener).unwrap())),
            )
        };
        let (stopper, serving) = start(listener);
        let client = ConnectOptions::new()
            .reconnect(Some(Reconnect::new()))
            .connections(2)
            .tls(ClientTls::new().dangerous_accept_any_certificate())
            .connect(&format!("nbds://localhost:{}", address.port()))
            .expect("entered");
        client.write_all_at(&[7; 512], 0).expect("written");
        stopper.stop();
        serving.join().expect("no panics").expect("it has served");
        let (stopper, serving) = start(TcpListener::bind(address).expect("it is free"));
        let mut data = [0; 512];
        client.read_exact_at(&mut data, 0).expect("read");
        assert_eq!(data, [7; 512]);
        assert!(client.is_encrypted());
        assert!(matches!(client.flush(), Err(Error::Unflushed)));
        while client.connections() < 2 {
            client.read_exact_at(&mut data, 0).expect("read");
        }
        client.disconnect().expect("the session ends well");
        stopper.stop();
        serving.join().expect("no panics").expect("it has served");
    });
}
