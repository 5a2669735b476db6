//! Addresses that clients connect to.

use super::{
    Server, serve,
    support::{Running, eventually, soon},
};
use nbd_blocking::ConnectOptions;
use nbd_io::Memory;
use nbd_socket::Listener;
use std::{
    io::{self, Read},
    net::TcpStream,
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
};

fn memory() -> Server {
    Server::single(Arc::new(Memory::new(1 << 20)))
}

#[test]
fn listeners_share_one_disk_one_limit_and_one_end() {
    soon(|| {
        let running = Running::new(memory().max_connections(2).displace_idle(None));
        let options = ConnectOptions::new();
        let unix = running.connect(&options);
        let tcp = options.connect_over(running.raw_tcp(), None).unwrap();
        unix.write_all_at(b"hello", 4096).unwrap();
        let mut read = [0; 5];
        tcp.read_exact_at(&mut read, 4096).unwrap();
        assert_eq!(&read, b"hello");
        for mut refused in [
            Box::new(running.raw()) as Box<dyn Read>,
            Box::new(running.raw_tcp()),
        ] {
            assert_eq!(refused.read(&mut [0; 18]).unwrap_or(0), 0);
        }
        assert_eq!(running.refused(), (2, Vec::new()));
        let (address, path) = (running.tcp, running.unix.clone());
        assert_eq!(running.stop(), ["the server is stopping"; 2]);
        let error = TcpStream::connect(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(UnixStream::connect(path).is_err());
    });
}

#[test]
fn a_server_that_was_stopped_serves_no_more() {
    soon(|| {
        let server = memory();
        server.stopper().stop();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let served = serve(server, vec![Listener::bind_unix(&path).unwrap()]);
        served.recv().unwrap().unwrap();
        assert!(UnixStream::connect(&path).is_err());
    });
}

#[test]
fn a_socket_that_a_server_has_left_behind_is_replaced() {
    soon(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        for _ in 0..2 {
            let server = memory();
            let stopper = server.stopper();
            let served = serve(server, vec![Listener::bind_unix(&path).unwrap()]);
            let stream = UnixStream::connect(&path).unwrap();
            let client = ConnectOptions::new().connect_over(stream, None).unwrap();
            let error = Listener::bind_unix(&path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            client.write_all_at(&[1; 512], 0).unwrap();
            client.disconnect().unwrap();
            eventually(|| stopper.connections() == 0);
            stopper.stop();
            served.recv().unwrap().unwrap();
            // A server removes its socket, but a killed one leaves it behind.
            assert!(!path.exists());
            drop(UnixListener::bind(&path).unwrap());
        }
    });
}
