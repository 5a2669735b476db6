//! Servers that break the protocol, disconnect, or refuse.

use crate::support::{
    bytes::{self, D, content, data, error, hole, sr, status},
    chain, pause, says,
    script::{Negotiation, Peer, play, refused, session},
    spawn, within,
};
use nbd_blocking::{
    Client, CommandFlags, ConnectOptions, ContextName, Errno, Error, Lost,
    negotiation::NegotiationError,
};
use std::net::Shutdown;

#[test]
fn a_greeting_of_another_protocol_is_reported() {
    // C-007
    within(10, || {
        let http = b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n";
        for (greeting, texts) in [
            (&http[..], &["during the greeting", "HTTP/1.1"][..]),
            (b"NBDMAGICNOTMAGIC\0\x03", &["during the greeting"]),
            (&[0; 200], &["during the greeting", "\\x00\\x00"]),
        ] {
            let error = refused(move |peer| {
                peer.says(greeting);
                assert!(peer.rest().is_empty(), "nothing is said to it");
            });
            says(&error, &["cannot enter "]);
            says(&error, texts);
        }
    });
}

#[test]
fn a_refused_export_is_reported_with_the_text_of_the_server() {
    // C-031, C-032, C-035
    within(10, || {
        for (code, name) in [
            (6, "UNKNOWN"),
            (2, "POLICY"),
            (7, "SHUTDOWN"),
            (4, "PLATFORM"),
        ] {
            let error = refused(move |peer| {
                peer.says(bytes::hello());
                peer.hears(4);
                loop {
                    let (option, _) = peer.option();
                    match option {
                        bytes::GO => {
                            peer.says(bytes::err(option, code, "no\x1b[2J way"));
                            break;
                        }
                        _ => peer.says(bytes::ack(option)),
                    }
                }
                assert_eq!(peer.option().0, 2, "the session ends softly");
                assert!(peer.rest().is_empty());
            });
            says(&error, &["cannot enter ", name, "way"]);
            assert!(!chain(&error).contains('\x1b'), "{error:?}");
            let Error::Negotiation {
                source: negotiation,
                ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert!(matches!(**negotiation, NegotiationError::Refused(_)));
        }
        let error = refused(|peer| {
            peer.says(bytes::hello());
            peer.hears(4);
            let (option, _) = peer.option();
            peer.says(bytes::err(option, 5, "only with TLS"));
            peer.rest();
        });
        says(&error, &["the server requires TLS", "only with TLS"]);
    });
}

/// Reads, writes and asks for block status, and returns the error if one of them failed.
fn use_it(client: &Client) -> Result<(), Error> {
    let mut buf = vec![9; 300];
    client.read_exact_at(&mut buf, 100)?;
    assert_eq!(buf[..100], content(100, 100));
    assert_eq!(buf[100..200], [0; 100]);
    client.write_all_at(&buf, 0)?;
    let extents = client.block_status(0, 4096, CommandFlags::NONE)?;
    assert_eq!(extents[0].extents.len(), 2);
    client.flush()
}

/// The number of bytes that the client of [`use_it`] sends before each message of its server, and
/// those messages.
fn whole_session() -> Vec<(usize, Vec<u8>)> {
    let cookie = |generation: u64| generation << 32;
    let mut read = data(0, cookie(1), 100, content(100, 100));
    read.extend(hole(0, cookie(1), 200, 100));
    read.extend(data(D, cookie(1), 300, [5; 100]));
    let options = [
        bytes::err(bytes::EXTENDED, 1, ""),
        bytes::ack(bytes::STRUCTURED),
        [
            bytes::context(1, "base:allocation"),
            bytes::ack(bytes::SET_META),
        ]
        .concat(),
        [
            bytes::export(1 << 20, bytes::ALL_FLAGS),
            bytes::block_sizes(1, 4096, 1 << 20),
            bytes::ack(bytes::GO),
        ]
        .concat(),
    ];
    let mut session = vec![(0, bytes::hello()), (4, Vec::new())];
    session.extend(options.map(|answer| (usize::MAX, answer)));
    session.extend([
        (28, read),
        (28 + 300, sr(0, cookie(2), [])),
        (28, status(D, cookie(3), 1, &[(1024, 3), (3072, 0)])),
        (28, sr(0, cookie(4), [])),
    ]);
    session
}

/// Plays a session and ends the stream after so many bytes.
fn play_up_to(peer: &mut Peer, mut left: usize) -> std::io::Result<()> {
    for (heard, said) in whole_session() {
        if heard == usize::MAX {
            peer.try_option()?;
        } else {
            peer.try_hears(heard)?;
        }
        let now = left.min(said.len());
        peer.try_says(&said[..now])?;
        left -= now;
        if now < said.len() {
            break;
        }
    }
    peer.stream.shutdown(Shutdown::Write)?;
    peer.rest();
    Ok(())
}

fn session_of(one_byte: bool, len: usize) -> Result<(), Error> {
    let (stream, server) = play(move |peer| {
        peer.one_byte = one_byte;
        play_up_to(peer, len)
    });
    let client = ConnectOptions::new()
        .context(ContextName::base_allocation())
        .connect_over(stream, None);
    let result = client.and_then(|client| use_it(&client));
    let _ = server.join().expect("the server does not panic");
    result
}

#[test]
fn a_session_that_ends_at_any_byte_fails_with_its_reason() {
    // C-043, C-236, C-237, H-040
    within(30, || {
        let lens: Vec<_> = whole_session().iter().map(|(_, said)| said.len()).collect();
        let (negotiated, all) = (lens[..6].iter().sum(), lens.iter().sum());
        session_of(false, all).expect("nothing is missing");
        for cut in 0..all {
            let error = session_of(false, cut).expect_err("something is missing");
            let expected = if cut < negotiated {
                "of the server: the server closed the connection during "
            } else {
                "the connection is over: the server closed the connection"
            };
            says(&error, &[expected]);
        }
    });
}

#[test]
fn a_session_that_comes_byte_by_byte_is_the_same() {
    within(20, || {
        session_of(true, usize::MAX).expect("nothing is missing")
    });
}

type Answer = Box<dyn FnOnce(&mut Peer, u64) + Send>;

/// The error of a read that is answered like this.
fn read_answered(answer: impl FnOnce(&mut Peer, u64) + Send + 'static) -> Error {
    let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
        let read = peer.request();
        answer(peer, read.cookie);
        peer.rest();
    });
    let error = client
        .read_exact_at(&mut [0; 4096], 0)
        .expect_err("the read fails");
    if error.is_lost() {
        assert!(client.is_lost());
        let again = client.flush().expect_err("it is over");
        assert_eq!(chain(&again), chain(&error), "the reason stays");
    }
    drop(client);
    server.join().expect("the script ends");
    error
}

#[test]
fn replies_that_break_the_protocol_end_the_connection_with_the_reason() {
    // C-196, C-204, C-211, C-225, C-226, C-230, H-017, H-025, H-026, H-027
    within(10, || {
        let broken = "the server broke the protocol";
        let cases: Vec<(Answer, &str)> = vec![
            (Box::new(|peer, _| peer.says([0xab; 20])), "0xabababab"),
            (
                Box::new(|peer, cookie| peer.says(sr(5, cookie + 1, []))),
                "cookie",
            ),
            (
                Box::new(|peer, cookie| peer.says(bytes::ch_header(D, 1, cookie, u32::MAX))),
                "4294967295",
            ),
            (
                Box::new(|peer, cookie| peer.says(bytes::ch_header(D, 0x8001, cookie, u32::MAX))),
                "4294967295",
            ),
            (
                Box::new(|peer, cookie| peer.says(bytes::ch(D, 0x63, cookie, []))),
                "0x63",
            ),
            (
                Box::new(|peer, cookie| peer.says(data(D, cookie, u64::MAX, [1; 2]))),
                "lies outside its request",
            ),
            (
                Box::new(|peer, cookie| peer.says(data(D, cookie, 0, [1; 4095]))),
                "missing",
            ),
            (
                Box::new(|peer, cookie| {
                    peer.says(data(0, cookie, 0, [1; 4096]));
                    peer.says(data(D, cookie, 4095, [1; 1]));
                }),
                "overlap",
            ),
        ];
        for (answer, text) in cases {
            let error = read_answered(answer);
            says(&error, &["the connection is over", broken, text]);
            let text = error.to_string();
            assert_eq!(text.matches(broken).count(), 1, "{text}");
        }
    });
}

#[test]
fn a_failed_command_is_reported_with_place_and_text() {
    // C-213, C-216, C-219, C-221
    within(10, || {
        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let read = peer.request();
            peer.says(data(0, read.cookie, 0, [1; 512]));
            peer.says(error(0, read.cookie, 5, "disk on fire", Some(0x1000)));
            peer.says(error(D, read.cookie, 22, "and more", None));
            let read = peer.request();
            peer.says(error(D, read.cookie, 9999, "", None));
            let write = peer.request();
            peer.hears(512);
            peer.says(sr(28, write.cookie, []));
            let read = peer.request();
            peer.says(data(D, read.cookie, 7, content(7, 512)));
            peer.disconnect();
        });
        let failed = client.read_exact_at(&mut [0; 8192], 0).unwrap_err();
        assert_eq!(failed.errno(), Some(Errno::Io));
        assert!(!failed.is_lost());
        says(
            &failed,
            &[
                "NBD_CMD_READ failed",
                "NBD_EIO",
                "at offset 4096",
                "disk on fire",
            ],
        );
        let failed = client.read_exact_at(&mut [0; 8192], 0).unwrap_err();
        assert_eq!(failed.errno().map(Errno::normalized), Some(Errno::Inval));
        says(&failed, &["0x270f"]);
        let failed = client.write_all_at(&[0; 512], 0).unwrap_err();
        says(&failed, &["NBD_CMD_WRITE failed", "NBD_ENOSPC"]);
        let kind = std::io::Error::from(failed).kind();
        assert_eq!(kind, std::io::ErrorKind::StorageFull);
        let mut buf = [0; 512];
        client
            .read_exact_at(&mut buf, 7)
            .expect("the connection goes on");
        assert_eq!(buf[..], content(7, 512));
        client.disconnect().expect("the session ends well");
        server.join().expect("the script ends");
    });
}

#[test]
fn a_server_that_shuts_down_is_left() {
    // C-188, H-038
    within(10, || {
        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let first = peer.request();
            let second = peer.request();
            peer.says(error(D, first.cookie, 108, "power is going", None));
            pause(30);
            let len = usize::try_from(second.len).expect("short");
            peer.says(data(
                D,
                second.cookie,
                second.offset,
                content(second.offset, len),
            ));
            peer.disconnect();
        });
        let other = {
            let client = client.clone();
            spawn(move || client.read_exact_at(&mut [0; 512], 0))
        };
        pause(10);
        let second = client.read_exact_at(&mut [0; 512], 512);
        let results = [other.join().expect("no panics"), second];
        let failed = results.iter().filter_map(|result| result.as_ref().err());
        let failed: Vec<_> = failed.collect();
        assert_eq!(
            failed.len(),
            1,
            "requests in flight are answered: {failed:?}"
        );
        assert_eq!(failed[0].errno(), Some(Errno::Shutdown));
        says(failed[0], &["NBD_ESHUTDOWN", "power is going"]);
        let later = client.flush().unwrap_err();
        assert!(matches!(&later, Error::Lost(lost) if matches!(**lost, Lost::ShutsDown)));
        server.join().expect("the client disconnects");
    });
}

#[test]
fn a_queue_leaves_a_server_that_shuts_down() {
    // C-188
    within(10, || {
        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let first = peer.request();
            let second = peer.request();
            peer.says(sr(108, first.cookie, []));
            peer.says(sr(0, second.cookie, []));
            peer.disconnect();
        });
        let mut queue = client.queue();
        queue.trim(0, 512, CommandFlags::NONE).expect("sent");
        queue.trim(512, 512, CommandFlags::NONE).expect("sent");
        let first = queue
            .complete()
            .expect("it holds")
            .expect("two are in flight");
        assert_eq!(first.result.unwrap_err().errno(), Some(Errno::Shutdown));
        let second = queue
            .complete()
            .expect("it came")
            .expect("one was in flight");
        second.result.expect("done");
        server.join().expect("the client disconnects");
    });
}

#[test]
fn everything_in_flight_fails_once_when_the_server_goes_away() {
    // C-237
    within(10, || {
        for polite in [true, false] {
            let (client, server) =
                session(Negotiation::simple(), &ConnectOptions::new(), move |peer| {
                    for _ in 0..6 {
                        peer.request();
                    }
                    if polite {
                        peer.stream.shutdown(Shutdown::Write).expect("connected");
                        peer.rest();
                    }
                });
            let readers: Vec<_> = (0..4)
                .map(|number| {
                    let client = client.clone();
                    spawn(move || client.read_exact_at(&mut [0; 512], 512 * number))
                })
                .collect();
            let mut queue = client.queue();
            for number in 0..2 {
                queue.read(vec![0; 512], 512 * number).expect("sent");
            }
            let error = queue.complete().unwrap_err();
            says(&error, &["the connection is over"]);
            for reader in readers {
                let error = reader.join().expect("no panics").unwrap_err();
                assert!(error.is_lost(), "{error:?}");
            }
            assert!(client.read_exact_at(&mut [0; 1], 0).unwrap_err().is_lost());
            drop((queue, client));
            server.join().expect("the script ends");
        }
    });
}

#[test]
fn a_server_that_closes_unasked_is_lost_and_not_disconnected() {
    within(10, || {
        let (client, server) = session(Negotiation::simple(), &ConnectOptions::new(), |_| {});
        server.join().expect("the script ends");
        let error = client.disconnect();
        let later = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
        assert!(later.is_lost(), "{error:?} {later:?}");
    });
}

#[test]
fn an_unknown_magic_is_noticed_without_waiting_for_a_whole_header() {
    // C-203, H-036
    within(5, || {
        let (client, server) = session(Negotiation::extended(), &ConnectOptions::new(), |peer| {
            let read = peer.extended_request();
            peer.says(sr(0, read.cookie, []));
            assert!(peer.rest().is_empty());
        });
        let error = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
        says(
            &error,
            &["the server broke the protocol", "cannot start a reply"],
        );
        server.join().expect("the script ends");
    });
}
