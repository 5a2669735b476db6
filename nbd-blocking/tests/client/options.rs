//! Every option of a connection.

use crate::support::{
    bytes::{self, D, content, data, error, sr, status},
    chain,
    model::Model,
    pause, says,
    script::{Negotiation, play, refused_with, session},
    spawn, within,
};
use nbd_blocking::{
    BlockSizes, CommandFlags, ConnectOptions, ContextName, Errno, Error, ExportName, HeaderStyle,
    Limits, Tolerance,
    negotiation::{Greeted, InfoSet},
};
use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

fn limited(set: impl FnOnce(&mut Limits)) -> ConnectOptions {
    let mut limits = Limits::default();
    set(&mut limits);
    ConnectOptions::new().limits(limits)
}

/// The options that a client sends with these options of its own.
fn asked(options: &ConnectOptions) -> Vec<(u32, Vec<u8>)> {
    let (stream, server) = play(|peer| {
        peer.says(bytes::hello());
        peer.hears(4);
        let mut asked = Vec::new();
        loop {
            let (option, data) = peer.option();
            asked.push((option, data));
            match option {
                bytes::GO => {
                    peer.says(bytes::export(1 << 20, bytes::ALL_FLAGS));
                    peer.says(bytes::ack(option));
                    peer.rest();
                    return asked;
                }
                bytes::EXTENDED => peer.says(bytes::err(option, 1, "")),
                option => peer.says(bytes::ack(option)),
            }
        }
    });
    options.connect_over(stream, None).expect("entered");
    server.join().expect("the script ends")
}

#[test]
fn requested_options_follow_from_the_connect_options() {
    // C-114, C-115, C-136, C-137, C-149
    within(10, || {
        let codes = |options| asked(&options).iter().map(|ask| ask.0).collect::<Vec<_>>();
        let new = ConnectOptions::new;
        let context = ContextName::base_allocation();
        assert_eq!(codes(new()), [11, 8, 7]);
        assert_eq!(codes(new().extended_headers(false)), [8, 7]);
        assert_eq!(codes(new().structured_replies(false)), [11, 7]);
        let simple = new().extended_headers(false).structured_replies(false);
        assert_eq!(codes(simple.clone()), [7]);
        assert_eq!(codes(simple.context(context.clone())), [7]);
        let two = new()
            .context(context)
            .context(ContextName::new("x-y:z").expect("a name"));
        let both = asked(&two);
        assert_eq!(both[2].0, 10);
        assert_eq!(both[2].1[4..8], 2_u32.to_be_bytes());
        assert!(
            both[2]
                .1
                .ends_with(b"\0\0\0\x0fbase:allocation\0\0\0\x05x-y:z")
        );
        let named = new().export(ExportName::try_from("disk").expect("a name"));
        assert!(asked(&named)[2].1.starts_with(b"\0\0\0\x04disk"));
        let infos = |infos| asked(&new().infos(infos))[2].1[4..].to_vec();
        assert_eq!(infos(InfoSet::NONE), [0, 1, 0, 3], "block sizes always");
        assert!(infos(InfoSet::ALL).len() > 4);
    });
}

#[test]
fn the_negotiated_modes_are_reported() {
    // C-133, C-134
    within(10, || {
        for (model, extended, structured, mode) in [
            (Model::new(4096), true, true, HeaderStyle::Extended),
            (Model::new(4096), false, true, HeaderStyle::Structured),
            (Model::new(4096), false, false, HeaderStyle::Simple),
            (
                Model::new(4096).structured(),
                true,
                true,
                HeaderStyle::Structured,
            ),
            (Model::new(4096).simple(), true, true, HeaderStyle::Simple),
        ] {
            let client = ConnectOptions::new()
                .extended_headers(extended)
                .structured_replies(structured)
                .context(ContextName::base_allocation())
                .connect_over(model.unix().0, None)
                .expect("entered");
            assert_eq!(client.mode(), mode);
            assert_eq!(
                client.contexts().len(),
                usize::from(mode != HeaderStyle::Simple)
            );
            assert_eq!((client.size(), client.is_encrypted()), (4096, false));
            assert!(client.export().can_flush());
        }
        let model = Model::new(8192).block_sizes(512, 4096, 65_536);
        let client = ConnectOptions::new()
            .connect_over(model.unix().0, None)
            .expect("entered");
        let sizes = BlockSizes::new(512, 4096, 65_536).expect("legal");
        assert_eq!(client.block_sizes(), sizes);
    });
}

#[test]
fn limits_bound_requests_and_accepted_replies() {
    // C-130
    within(10, || {
        let small = limited(|limits| limits.payload = 65_536);
        let (client, server) = session(Negotiation::structured(), &small, |peer| {
            for _ in 0..4 {
                let read = peer.request();
                assert!(read.len <= 65_536);
                let len = usize::try_from(read.len).expect("short");
                peer.says(data(D, read.cookie, read.offset, content(read.offset, len)));
            }
        });
        let mut whole = vec![0; 200_000];
        client.read_exact_at(&mut whole, 3).expect("read");
        assert!(whole == content(3, 200_000));
        server.join().expect("the script ends");

        let few = limited(|limits| limits.extents = 3).context(ContextName::base_allocation());
        let negotiation = Negotiation {
            contexts: vec![(1, "base:allocation")],
            ..Negotiation::structured()
        };
        let (client, server) = session(negotiation, &few, |peer| {
            let request = peer.request();
            peer.says(status(D, request.cookie, 1, &[(512, 0); 4]));
        });
        let error = client
            .block_status(0, 4096, CommandFlags::NONE)
            .unwrap_err();
        says(
            &error,
            &[
                "the server broke the protocol",
                "BLOCK_STATUS",
                "limit of 28",
            ],
        );
        server.join().expect("the script ends");
    });
}

#[test]
fn no_more_requests_are_in_flight_than_the_limits_allow() {
    within(10, || {
        let two = limited(|limits| limits.in_flight = 2);
        let (client, server) = session(Negotiation::simple(), &two, |peer| {
            for _ in 0..3 {
                let first = peer.request();
                let second = peer.request();
                assert!(peer.silence(20), "a third request is not sent");
                peer.says(sr(0, second.cookie, []));
                peer.says(sr(0, first.cookie, []));
            }
        });
        let workers: Vec<_> = (0..6)
            .map(|number| {
                let client = client.clone();
                spawn(move || client.trim(number, 1, CommandFlags::NONE))
            })
            .collect();
        for worker in workers {
            worker.join().expect("no panics").expect("done");
        }
        server.join().expect("the script ends");
    });
}

#[test]
fn tolerance_decides_the_meaning_of_an_error_number_of_zero() {
    // C-215
    within(10, || {
        let fails_with = |tolerance| {
            let options = ConnectOptions::new().tolerance(tolerance);
            let (client, server) = session(Negotiation::structured(), &options, |peer| {
                let read = peer.request();
                peer.says(error(D, read.cookie, 0, "", None));
            });
            let error = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
            server.join().expect("the script ends");
            error
        };
        let error = fails_with(Tolerance::LENIENT);
        assert_eq!(error.errno(), Some(Errno::Inval), "{error:?}");
        assert!(fails_with(Tolerance::default()).is_lost());
    });
}

/// A listener whose queue is full.
fn full(path: &std::path::Path) -> (UnixListener, Vec<socket2::Socket>) {
    let listener = UnixListener::bind(path).expect("bound");
    let address = socket2::SockAddr::unix(path).expect("an address");
    let mut waiting = Vec::new();
    loop {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None);
        let socket = socket.expect("sockets can be made");
        socket.set_nonblocking(true).expect("sockets have modes");
        if socket.connect(&address).is_err() {
            return (listener, waiting);
        }
        waiting.push(socket);
    }
}

#[test]
fn connecting_to_a_full_unix_socket_takes_as_long_as_it_may() {
    within(10, || {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let (listener, waiting) = full(&path);
        let uri = format!("nbd+unix:///?socket={}", path.display());
        let started = Instant::now();
        let error = ConnectOptions::new()
            .connect_timeout(Some(Duration::from_millis(100)))
            .connect(&uri)
            .expect_err("no server accepts");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(90), "{took:?}");
        says(&error, &["cannot connect to", "socket", "timed out"]);
        drop((listener, waiting));
    });
}

#[test]
fn connecting_to_a_full_tcp_socket_takes_as_long_as_it_may() {
    within(10, || {
        use socket2::{Domain, SockAddr, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("sockets can be made");
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().expect("an address");
        listener.bind(&SockAddr::from(any)).expect("bound");
        listener.listen(1).expect("listening");
        let address = listener
            .local_addr()
            .expect("bound")
            .as_socket()
            .expect("TCP");
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                socket.set_nonblocking(true).expect("sockets have modes");
                let _ = socket.connect(&SockAddr::from(address));
                socket
            })
            .collect();
        pause(50);
        let error = ConnectOptions::new()
            .connect_timeout(Some(Duration::from_millis(100)))
            .connect(&format!("nbd://{address}/disk"))
            .expect_err("no server accepts");
        says(
            &error,
            &[&format!("cannot connect to {address}"), "timed out"],
        );
        drop(waiting);
    });
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    // C-043, H-001, B-007
    within(10, || {
        let hasty = ConnectOptions::new().negotiation_timeout(Some(Duration::from_millis(100)));
        let error = refused_with(&hasty, |peer| drop(peer.rest()));
        says(
            &error,
            &["cannot enter ", "during the greeting", "timed out"],
        );
        let error = refused_with(&hasty, |peer| {
            // However late the client reads, the greeting is not complete.
            for byte in &bytes::hello()[..17] {
                pause(10);
                if peer.try_says([*byte]).is_err() {
                    return;
                }
            }
            peer.rest();
        });
        says(&error, &["during the greeting", "timed out"]);
        // Time enough to get that far.
        let hasty = ConnectOptions::new().negotiation_timeout(Some(Duration::from_secs(3)));
        let error = refused_with(&hasty, |peer| {
            peer.says(bytes::hello());
            peer.hears(4);
            peer.option();
            peer.rest();
        });
        says(&error, &["during NBD_OPT_EXTENDED_HEADERS", "timed out"]);
    });
}

#[test]
fn timeouts_of_any_length_can_be_asked_for() {
    within(10, || {
        for timeout in [
            None,
            Some(Duration::MAX),
            Some(Duration::from_nanos(1)),
            Some(Duration::ZERO),
        ] {
            let is_short = timeout.is_some_and(|timeout| timeout < Duration::from_secs(1));
            let (stream, _) = Model::new(4096).unix();
            let options = ConnectOptions::new().connect_timeout(timeout);
            // The negotiation is a part of connecting.
            if let Err(error) = options.connect_over(stream, None) {
                says(&error, &["timed out"]);
                assert!(is_short);
            }
            let (stream, _) = Model::new(4096).unix();
            let options = ConnectOptions::new().request_timeout(timeout);
            let client = options.connect_over(stream, None).expect("connected");
            match client.read_exact_at(&mut [0; 512], 0) {
                Ok(()) => {}
                Err(Error::Timeout { .. }) => assert!(is_short),
                Err(error) => panic!("{}", chain(&error)),
            }
        }
    });
}

#[test]
fn an_export_is_entered_by_name_where_nothing_else_is_spoken() {
    within(10, || {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        let uri = format!("nbd+unix:///disk?socket={}", path.display());
        let uri = nbd_blocking::Uri::parse(&uri).expect("a URI");
        let enter = |answer: Vec<u8>, timeout: Option<Duration>| {
            let listener = listener.try_clone().expect("sockets can be cloned");
            let server = spawn(move || {
                let (mut stream, _) = listener.accept().expect("it is connected to");
                stream.write_all(b"NBDMAGICIHAVEOPT\0\0").expect("heard");
                stream.read_exact(&mut [0; 4 + 16 + 4]).expect("said");
                stream.write_all(&answer).expect("heard");
                if timeout.is_some() {
                    let left = stream.read(&mut [0]).expect("it is closed");
                    assert_eq!(left, 0, "nothing more is said");
                }
            });
            let options = match timeout {
                None => ConnectOptions::new(),
                timeout => ConnectOptions::new().negotiation_timeout(timeout),
            };
            let Greeted::Newstyle(by_name) = options.start(&uri).expect("greeted") else {
                panic!("it speaks more");
            };
            let entered = by_name.export_name(uri.export());
            server.join().expect("the script ends");
            entered
        };
        let mut answer = 4096_u64.to_be_bytes().to_vec();
        answer.extend([0, 1]);
        answer.extend([0; 124]);
        assert_eq!(enter(answer, None).expect("entered").size(), 4096);
        let error = enter(Vec::new(), None).unwrap_err();
        says(
            &error,
            &[
                "the server has no export \"disk\"",
                "it closed the connection",
            ],
        );
        let timeout = Duration::from_secs(3);
        let error = enter(vec![0; 8], Some(timeout)).unwrap_err();
        says(&error, &["during NBD_OPT_EXPORT_NAME", "timed out"]);
    });
}

#[test]
fn options_that_need_an_address_are_refused_where_there_is_none() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let policy = nbd_blocking::Reconnect::new();
    let options = ConnectOptions::new().reconnect(Some(policy));
    let error = options.connect_over(ours, None).expect_err("no address");
    assert!(
        error.to_string().contains("`reconnect` needs an address"),
        "{error}"
    );
    let options = ConnectOptions::new().connections(2);
    let command = std::process::Command::new("nothing");
    let error = options.connect_command(command).expect_err("no address");
    assert!(
        error.to_string().contains("`connections` needs an address"),
        "{error}"
    );
    let uri = "nbd://127.0.0.1:1".parse().expect("a URI");
    let error = options.start(&uri).expect_err("its steps are not known");
    assert!(
        error.to_string().contains("`connections` needs an address"),
        "{error}"
    );
}
