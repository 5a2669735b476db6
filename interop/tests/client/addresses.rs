//! Hosts with several addresses, and names that cannot be looked up.

use std::{
    net::{SocketAddr, TcpListener, UdpSocket},
    process,
    sync::Arc,
    thread,
    time::Duration,
};

use interop::{deadline, run, with_names};
use nbd_blocking::Server;
use nbd_io::{Fault, Faults, Faulty, Memory};
use nbd_proto::Command;
use socket2::{Domain, Socket, Type};

use crate::support::{assert_names, options};

const TWO: &str = "127.0.0.2 two.test\n127.0.0.3 two.test\n";

/// A port of an address that neither accepts nor refuses: the queue of its listener is full.
struct Silent {
    listener: Socket,
    _queued: Vec<Socket>,
}

impl Silent {
    fn new(address: &str) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address: SocketAddr = address.parse().unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let connected = socket.connect_timeout(&address, Duration::from_millis(100));
            connected.ok().map(|()| socket)
        };
        // The first connection that finds no room is the last.
        let queued = (0..8).map_while(connect).collect();
        Self {
            listener,
            _queued: queued,
        }
    }

    fn port(&self) -> u16 {
        let address = self.listener.local_addr().unwrap();
        address.as_socket().unwrap().port()
    }
}

#[test]
fn a_silent_address_of_a_host_does_not_keep_from_the_next() {
    let name = "a_silent_address_of_a_host_does_not_keep_from_the_next";
    with_names(module_path!(), name, TWO, "", || {
        deadline(Duration::from_secs(100), || {
            let silent = Silent::new("127.0.0.2:0");
            let listener = TcpListener::bind(("127.0.0.3", silent.port())).unwrap();
            let server = Server::single(Arc::new(Memory::new(4096)));
            let stopper = server.stopper();
            let serving = thread::spawn(move || {
                server.serve(nbd_blocking::Listener::from_std(listener).unwrap())
            });
            let options = options().connect_timeout(Some(Duration::from_secs(300)));
            let uri = format!("nbd://two.test:{}", silent.port());
            let client = options.connect(&uri).unwrap();
            assert_eq!(client.size(), 4096);
            drop(client);
            stopper.stop();
            serving.join().unwrap().unwrap();
        });
    });
}

#[test]
fn an_error_names_every_address_and_its_failure() {
    let name = "an_error_names_every_address_and_its_failure";
    with_names(module_path!(), name, TWO, "", || {
        run(|| {
            let silent = Silent::new("127.0.0.2:0");
            let port = silent.port();
            let options = options().connect_timeout(Some(Duration::from_secs(1)));
            let uri = format!("nbd://two.test:{port}");
            let error = options.connect(&uri).unwrap_err();
            let expected = [
                &format!("cannot connect to two.test:{port}"),
                &format!("127.0.0.2:{port}: timed out"),
                &format!("127.0.0.3:{port}: Connection refused"),
            ];
            assert_names(&error, &expected.map(String::as_str));
        });
    });
}

#[test]
fn a_silent_name_server_takes_no_longer_than_connecting_may() {
    let name = "a_silent_name_server_takes_no_longer_than_connecting_may";
    // The resolver gives up after minutes, and the test would exceed its deadline.
    let resolv = "nameserver 127.0.0.4\noptions timeout:30 attempts:5\n";
    with_names(module_path!(), name, "", resolv, || {
        deadline(Duration::from_secs(100), || {
            let name_server = UdpSocket::bind("127.0.0.4:53").unwrap();
            for _ in 0..3 {
                let options = options().connect_timeout(Some(Duration::from_millis(500)));
                let error = options.connect("nbd://silent.test").unwrap_err();
                let expected = [
                    "cannot connect to silent.test:10809",
                    "looking up",
                    "timed out",
                ];
                assert_names(&error, &expected);
            }
            // The name server was asked.
            assert!(name_server.recv(&mut [0; 512]).unwrap() > 12);
        });
    });
}

#[test]
fn a_network_that_is_gone_ends_a_connection_without_a_request_timeout() {
    let name = "a_network_that_is_gone_ends_a_connection_without_a_request_timeout";
    with_names(module_path!(), name, "", "", || {
        deadline(Duration::from_secs(100), || {
            let faults = Faults::new();
            faults.add(Fault::hang().on(Command::Read));
            let disk = Faulty::new(Arc::new(Memory::new(4096)), faults.clone());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let uri = format!("nbd://{}", listener.local_addr().unwrap());
            let server = Server::single(Arc::new(disk)).grace(Duration::ZERO);
            let stopper = server.stopper();
            let serving = thread::spawn(move || {
                server.serve(nbd_blocking::Listener::from_std(listener).unwrap())
            });
            let second = Some(Duration::from_secs(1));
            let options = options().request_timeout(None);
            let options = options.tcp_keepalive(second).tcp_user_timeout(second);
            let client = options.connect(&uri).unwrap();
            let reading = thread::spawn(move || client.read_exact_at(&mut [0; 512], 0));
            while faults.hits() == 0 {
                thread::yield_now();
            }
            // The server has the request, so that nothing is unacknowledged, and sends no more.
            let lo = ["link", "set", "lo", "down"];
            assert!(
                process::Command::new("ip")
                    .args(lo)
                    .status()
                    .unwrap()
                    .success()
            );
            let error = reading.join().unwrap().unwrap_err();
            assert!(error.is_lost(), "{error}");
            faults.clear();
            stopper.stop();
            serving.join().unwrap().unwrap();
        });
    });
}
