use super::{Dialer, Unreachable, Waiting, connect, race::interleaved};
use crate::{Listener, Lookup};
use nbd_io::{client::DialOptions, transport::block_on_ready};
use nbd_proto::Uri;
use socket2::{Domain, SockRef, Socket, Type};
use std::{
    io::{self, IoSlice},
    net::{SocketAddr, TcpListener},
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

/// An address that neither accepts nor refuses, because the queue of its listener is full.
fn silent(address: &str) -> (Vec<Socket>, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sockets = vec![listener];
    for _ in 0..8 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if socket
            .connect_timeout(&address, Duration::from_millis(100))
            .is_err()
        {
            break;
        }
        sockets.push(socket);
    }
    (sockets, address.as_socket().unwrap())
}

/// An address that refuses.
fn refusing(address: &str) -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address: SocketAddr = address.parse().unwrap();
    socket.bind(&address.into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address.as_socket().unwrap())
}

fn race(addresses: Vec<SocketAddr>, timeout: Option<Duration>) -> io::Result<crate::Socket> {
    let mut options = DialOptions::default();
    options.timeout = timeout;
    let dialer = Dialer {
        reactor: &Waiting,
        options: &options,
        deadline: timeout.map(|time| Instant::now() + time),
    };
    block_on_ready(dialer.race(addresses))
}

#[test]
fn addresses_are_tried_while_others_are_silent() {
    let (_first, first) = silent("127.0.0.2:0");
    let (_second, second) = silent("127.0.0.3:0");
    let (_third, third) = refusing("127.0.0.4:0");
    let listener = TcpListener::bind("127.0.0.5:0").unwrap();
    let last = listener.local_addr().unwrap();
    // Without a deadline the silent ones take minutes.
    let started = Instant::now();
    let socket = race(vec![first, second, third, last], None).unwrap();
    let peer = SockRef::from(&socket).peer_addr().unwrap();
    assert_eq!(peer.as_socket(), Some(last));
    // None begins before the time of the one before it has passed.
    assert!(started.elapsed() >= Duration::from_millis(500));
}

#[test]
fn the_next_address_is_tried_at_once_after_a_refusal() {
    let (_first, first) = refusing("127.0.0.2:0");
    let (_second, second) = refusing("127.0.0.3:0");
    let error = race(vec![first, second], None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    let text = error.to_string();
    let unreachable = error.get_ref().and_then(|error| error.downcast_ref());
    let Some(Unreachable { attempts }) = unreachable else {
        panic!("{error:?}");
    };
    let tried: Vec<_> = attempts.iter().map(|(address, _)| *address).collect();
    assert_eq!(tried, [first, second]);
    assert!(
        text.starts_with(&format!("{first}: Connection refused")),
        "{text}"
    );
    assert!(
        text.contains(&format!("; {second}: Connection refused")),
        "{text}"
    );
}

#[test]
fn an_error_after_the_deadline_distinguishes_silence_from_refusals() {
    let (_first, first) = refusing("127.0.0.2:0");
    let (_second, second) = silent("127.0.0.3:0");
    let error = race(vec![first, second], Some(Duration::from_millis(300))).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let text = error.to_string();
    assert!(
        text.contains(&format!("{first}: Connection refused")),
        "{text}"
    );
    assert!(text.contains(&format!("{second}: timed out")), "{text}");
}

#[test]
fn a_host_without_addresses_is_an_error() {
    let error = race(Vec::new(), None).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("no address"), "{error}");
}

#[test]
fn families_take_turns_from_the_resolvers_first_on() {
    let parse = |address: &&str| format!("{address}:1").parse::<SocketAddr>().unwrap();
    let given = ["[::1]", "[::2]", "[::3]", "1.1.1.1", "2.2.2.2"];
    let expected = ["[::1]", "1.1.1.1", "[::2]", "2.2.2.2", "[::3]"];
    let turns = interleaved(given.iter().map(parse).collect());
    assert_eq!(turns, expected.iter().map(parse).collect::<Vec<_>>());
    let given = ["1.1.1.1", "2.2.2.2", "[::1]"];
    let expected = ["1.1.1.1", "[::1]", "2.2.2.2"];
    let turns = interleaved(given.iter().map(parse).collect());
    assert_eq!(turns, expected.iter().map(parse).collect::<Vec<_>>());
    let many = (0..2000).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    assert_eq!(interleaved(many.collect()).len(), 64);
}

#[test]
fn a_lookup_has_the_addresses_of_a_host() {
    let lookup = Lookup::new("localhost", 7).unwrap();
    assert!(lookup.wait(None));
    let found = lookup.result().unwrap().unwrap();
    assert!(
        found
            .iter()
            .all(|found| found.ip().is_loopback() && found.port() == 7)
    );
    assert!(!found.is_empty());
}

#[test]
fn tcp_watches_the_other_side_as_the_options_say() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connected = |options: &DialOptions| {
        let dialer = Dialer {
            reactor: &Waiting,
            options,
            deadline: None,
        };
        block_on_ready(dialer.one(&address.into())).unwrap()
    };
    let mut options = DialOptions::default();
    let socket = connected(&options);
    let socket = SockRef::from(&socket);
    assert!(socket.keepalive().unwrap());
    #[cfg(target_os = "linux")]
    {
        let seconds = Duration::from_secs;
        assert_eq!(socket.tcp_keepalive_time().unwrap(), seconds(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), seconds(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(seconds(90)));
    }
    options.tcp_keepalive = None;
    options.tcp_user_timeout = None;
    let socket = connected(&options);
    let socket = SockRef::from(&socket);
    assert!(!socket.keepalive().unwrap());
    #[cfg(target_os = "linux")]
    assert_eq!(socket.tcp_user_timeout().unwrap(), None);
}

#[cfg(target_os = "linux")]
#[test]
fn a_unix_socket_takes_a_payload_of_256_kib_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = Listener::bind_unix(&path).unwrap();
    let uri = Uri::unix(path.as_os_str().as_bytes()).unwrap();
    let options = DialOptions::default();
    let client = block_on_ready(connect(&Waiting, uri.address(), &options)).unwrap();
    let (server, _) = listener.accept().unwrap();
    let message = vec![0; (256 << 10) + 32];
    for socket in [&client, &server] {
        let sent = socket.send(&[IoSlice::new(&message)], false).unwrap();
        assert_eq!(sent, message.len());
    }
}
