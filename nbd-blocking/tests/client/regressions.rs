//! Bugs of a known client, by the numbers of its list of defects.

mod more;

use crate::{
    streams::Counted,
    support::{
        Random,
        bytes::{self, D, content, data, error, hole, sr, status},
        chain,
        model::Model,
        pause, says,
        script::{Negotiation, play, refused, session},
        spawn, within,
    },
};
use nbd_blocking::{
    Client, CommandFlags, ConnectOptions, ContextName, Errno, Error, ExportName, Lost, Misuse,
    TlsPolicy, Uri, meta::Allocation, negotiation::Greeted,
};
use std::{
    io::Write,
    net::TcpListener,
    os::unix::net::UnixListener,
    sync::{Arc, atomic::Ordering, mpsc},
    time::Duration,
};

/// The timeout where one request takes too long, and the others have to be answered in that time.
const LIMIT: Duration = Duration::from_secs(3);

fn read(client: &Client, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
    let mut buf = vec![0xa5; len];
    client.read_exact_at(&mut buf, offset).map(|()| buf)
}

fn base_allocation() -> (Negotiation, ConnectOptions) {
    let negotiation = Negotiation {
        contexts: vec![(1, "base:allocation")],
        ..Negotiation::structured()
    };
    let options = ConnectOptions::new().context(ContextName::base_allocation());
    (negotiation, options)
}

/// A known client took the offset of an error for its message and the other way round.
#[test]
fn defect_1_the_message_of_an_error_comes_before_its_offset() {
    within(5, || {
        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let read = peer.request();
            peer.says(error(D, read.cookie, 5, "disk on fire", Some(0x1000)));
        });
        let Error::Failed { source, .. } = read(&client, 0, 8192).unwrap_err() else {
            panic!("the command failed");
        };
        assert_eq!(source.message.as_str(), "disk on fire");
        assert_eq!(source.offset, Some(0x1000));
        server.join().expect("the script ends");
    });
}

/// A known client took a read with gaps for a success, and left old bytes in the buffer.
#[test]
fn defect_2_a_read_with_a_gap_is_no_success() {
    // C-230
    within(5, || {
        for chunks in [&[(0, 128), (256, 256)][..], &[(0, 511)], &[(1, 511)], &[]] {
            let (client, server) = session(
                Negotiation::structured(),
                &ConnectOptions::new(),
                move |peer| {
                    let read = peer.request();
                    for (at, len) in chunks {
                        peer.says(data(0, read.cookie, *at, vec![1; *len]));
                    }
                    peer.says(bytes::ch(D, 0, read.cookie, []));
                },
            );
            let error = read(&client, 0, 512).unwrap_err();
            assert!(error.is_lost());
            says(&error, &["the server broke the protocol", "missing"]);
            server.join().expect("the script ends");
        }
    });
}

/// A known client returned at the first error chunk and took the rest for the next reply.
#[test]
fn defect_3_an_error_chunk_that_is_not_the_last_leaves_both_sides_in_step() {
    // C-220
    within(5, || {
        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let read = peer.request();
            peer.says(error(0, read.cookie, 5, "one", Some(4)));
            peer.says(data(0, read.cookie, 512, [1; 512]));
            peer.says(error(0, read.cookie, 22, "two", None));
            peer.says(bytes::ch(D, 0, read.cookie, []));
            let flush = peer.request();
            assert_eq!(flush.command, 3);
            peer.says(sr(0, flush.cookie, []));
        });
        let error = read(&client, 0, 1024).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Io), "the first of them");
        client.flush().expect("in step");
        server.join().expect("the script ends");
    });
}

/// A known client could not take more than 640 extents.
#[test]
fn defect_4_many_extents_are_taken() {
    within(10, || {
        for count in [700_u32, 100_000] {
            let (negotiation, options) = base_allocation();
            let (client, server) = session(negotiation, &options, move |peer| {
                let request = peer.request();
                let extents: Vec<_> = (0..count).map(|n| (512, n % 2)).collect();
                peer.says(status(D, request.cookie, 1, &extents));
                let flush = peer.request();
                peer.says(sr(0, flush.cookie, []));
            });
            let len = 512 * u64::from(count);
            let status = client
                .block_status(0, len, CommandFlags::NONE)
                .expect("taken");
            assert_eq!(
                status[0].extents.len(),
                usize::try_from(count).expect("short")
            );
            client.flush().expect("in step");
            server.join().expect("the script ends");
        }
    });
}

/// A listener and its URI.
pub(crate) fn listening(path: &str) -> (UnixListener, Uri, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).expect("bound");
    let uri = format!("nbd+unix://{path}?socket={}", socket.display());
    (listener, Uri::parse(&uri).expect("a URI"), directory)
}

/// A known client gave the description of an export as a part of its name.
#[test]
fn defect_5_names_and_descriptions_are_apart() {
    within(5, || {
        let (listener, uri, _directory) = listening("/");
        let server = spawn(move || {
            let (mut stream, _) = listener.accept().expect("it is connected to");
            let mut answer = bytes::hello();
            answer.extend(bytes::server("disk", "A nice description"));
            answer.extend(bytes::server("", ""));
            answer.extend(bytes::ack(bytes::LIST));
            stream.write_all(&answer).expect("heard");
            let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        });
        let greeted = ConnectOptions::new().start(&uri).expect("greeted");
        let mut negotiation = greeted.negotiation().expect("fixed newstyle");
        let list = negotiation.list().expect("listed");
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].name.as_ref().expect("legal").as_str(), "disk");
        assert_eq!(list[0].description.as_str(), "A nice description");
        assert!(
            list[1].name.as_ref().is_ok_and(ExportName::is_default)
                && list[1].description.is_empty()
        );
        drop(negotiation);
        server.join().expect("the script ends");
    });
}

/// A known client took `nbds` for a name and sent everything in the clear.
#[test]
fn defect_6_nbds_is_never_in_the_clear() {
    within(10, || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        let server = spawn(move || {
            let (mut stream, _) = listener.accept().expect("it is connected to");
            let mut answer = bytes::hello();
            answer.extend(bytes::err(5, 1, "no TLS here"));
            stream.write_all(&answer).expect("heard");
            let mut heard = Vec::new();
            let _ = std::io::Read::read_to_end(&mut stream, &mut heard);
            heard
        });
        let uri = format!("nbds://{address}/secret");
        let error = ConnectOptions::new().connect(&uri).unwrap_err();
        let heard = server.join().expect("the script ends");
        if cfg!(feature = "tls-base") {
            says(&error, &["TLS is required", "no TLS here"]);
            assert_eq!(
                heard[4 + 8..4 + 12],
                5_u32.to_be_bytes(),
                "STARTTLS and nothing before"
            );
        }
        assert!(!heard.windows(6).any(|part| part == b"secret"));
        let policy = ConnectOptions::new().tls_policy(TlsPolicy::Always);
        let (stream, server) = play(|peer| {
            peer.says(b"NBDMAGICIHAVEOPT\0\0"); // not even options
            peer.rest()
        });
        policy
            .connect_over(stream, None)
            .expect_err("TLS cannot be had");
        let heard = server.join().expect("the script ends");
        assert!(heard.len() <= 4, "no export is named: {heard:?}");
    });
}

/// A known client parsed the name of the export in a URI and then ignored it.
#[test]
fn defect_7_the_path_of_a_uri_is_the_export() {
    within(5, || {
        let (listener, uri, _directory) = listening("/a%20disk/1");
        let server = spawn(move || {
            let (stream, _) = listener.accept().expect("it is connected to");
            let mut peer = crate::support::script::Peer {
                stream,
                one_byte: false,
            };
            peer.says(bytes::hello());
            peer.hears(4);
            loop {
                let (option, data) = peer.option();
                if option == bytes::GO {
                    return data;
                }
                peer.says(bytes::err(option, 1, ""));
            }
        });
        let error = ConnectOptions::new().connect_uri(&uri).unwrap_err();
        says(
            &error,
            &["the server closed the connection during NBD_OPT_GO"],
        );
        let data = server.join().expect("the script ends");
        assert!(data.starts_with(b"\0\0\0\x08a disk/1"), "{data:?}");
    });
}

/// A known client could not connect to `nbd://[::1]` and `nbd://host:`.
#[test]
fn defect_8_every_way_to_write_an_address_can_be_connected_to() {
    within(10, || {
        for (bind, host) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("127.0.0.1:0", "localhost"),
            ("[::1]:0", "[::1]"),
        ] {
            let Ok(listener) = TcpListener::bind(bind) else {
                continue; // no IPv6 here
            };
            let port = listener.local_addr().expect("bound").port();
            let server = spawn(move || {
                let (mut stream, _) = listener.accept().expect("it is connected to");
                stream.write_all(&bytes::oldstyle(4096, 1)).expect("heard");
                let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
            });
            let uri = format!("nbd://{host}:{port}");
            let client = nbd_blocking::connect(&uri).expect("connected");
            assert_eq!(client.size(), 4096);
            drop(client);
            server.join().expect("the script ends");
        }
        // There is no server at the default port, but the client tries it.
        for (uri, address) in [
            ("nbd://[::1]", "[::1]:10809"),
            ("nbd://127.0.0.1:", "127.0.0.1:10809"),
            ("nbd://[::1]:", "[::1]:10809"),
        ] {
            if let Err(error) = nbd_blocking::connect(uri) {
                says(&error, &[&format!("cannot connect to {address}")]);
            }
        }
    });
}

/// A known client went on after a timeout with a reply to an abandoned request.
#[test]
fn defect_9_after_a_timeout_the_connection_is_in_step() {
    within(10, || {
        let options = ConnectOptions::new().request_timeout(Some(LIMIT));
        let (sender, receiver) = mpsc::channel();
        let (client, server) = session(Negotiation::simple(), &options, move |peer| {
            let late = peer.request();
            receiver.recv().expect("it is given up");
            peer.says(sr(0, late.cookie, [0xee; 512]));
            let read = peer.request();
            assert_ne!(read.cookie, late.cookie);
            peer.says(sr(0, read.cookie, content(512, 512)));
        });
        let error = read(&client, 0, 512).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        assert!(!client.is_lost());
        sender.send(()).expect("the server waits");
        assert_eq!(read(&client, 512, 512).expect("read"), content(512, 512));
        server.join().expect("the script ends");
    });
}

/// A known client entered an export of 0 bytes by the answer to another option.
#[test]
fn defect_10_only_the_whole_answer_to_go_enters_an_export() {
    // C-025
    within(5, || {
        for answer in [bytes::ack(bytes::LIST), bytes::ack(bytes::GO)] {
            let error = refused(move |peer| {
                peer.says(bytes::hello());
                peer.hears(4);
                loop {
                    let (option, _) = peer.option();
                    if option == bytes::GO {
                        peer.says(answer);
                        peer.rest();
                        return;
                    }
                    peer.says(bytes::err(option, 1, ""));
                }
            });
            says(&error, &["the server broke the protocol during NBD_OPT_GO"]);
        }
    });
}

/// A known client took any answer to `NBD_OPT_STRUCTURED_REPLY` for a yes.
#[test]
fn defect_11_structured_replies_are_agreed_on_by_an_ack_alone() {
    // C-028
    within(5, || {
        let error = refused(|peer| {
            peer.says(bytes::hello());
            peer.hears(4);
            peer.option();
            peer.says(bytes::err(bytes::EXTENDED, 1, ""));
            let (option, _) = peer.option();
            peer.says(bytes::rep(option, 2, b"\0\0\0\0"));
            peer.rest();
        });
        says(
            &error,
            &["the server broke the protocol during NBD_OPT_STRUCTURED_REPLY"],
        );
    });
}
