//! The rules about hostile servers of `docs/conformance.md`, over real sockets.

use crate::{
    bounded::bounded,
    clients::{
        DONE, EXPORT, FLAGS, NONE, OFFSET_DATA, SIZE, STRUCTURED, Style, allocation, answers,
        chunk, data, extended_chunk, negotiate,
    },
    drivers::{List, each_way},
    raw::{GO, LIST, MIB, reply_header},
};
use interop::{Conversation, Scripted};
use nbd_io::client::{Error, Lost};
use nbd_proto::Error as Broken;
use std::{sync::mpsc, time::Duration};

#[test]
fn no_reply_to_an_option_takes_memory_or_never_ends() {
    // H-002, H-004, H-005, H-006, H-010
    bounded(64, || {
        let scripts: [fn(&mut Conversation); 7] = [
            |peer| {
                let (option, _) = peer.option();
                peer.send(&reply_header(option, 1, u32::MAX));
            },
            |peer| {
                let (option, _) = peer.option();
                peer.send(&reply_header(option ^ 1, 1, 0));
            },
            |peer| {
                let (option, _) = peer.option();
                peer.send(&reply_header(option, 1, 0).repeat(2));
            },
            // NBD_REP_INFO of a type that no client knows, for ever.
            |peer| {
                refuse_until(peer, GO);
                let info = [&reply_header(GO, 3, 2)[..], &[0x77, 0x77]].concat();
                while peer.try_send(&info.repeat(64)).is_ok() {}
            },
            // NBD_REP_META_CONTEXT for ever.
            |peer| {
                assert_eq!(peer.option().0, 11);
                peer.refuse(11, 1);
                assert_eq!(peer.option().0, STRUCTURED);
                peer.ack(STRUCTURED);
                assert_eq!(peer.option().0, 10);
                for id in 0_u32.. {
                    let name = format!("other:{id}");
                    let len = u32::try_from(4 + name.len()).unwrap();
                    let mut context = reply_header(10, 4, len);
                    context.extend(id.to_be_bytes());
                    context.extend(name.as_bytes());
                    if peer.try_send(&context).is_err() {
                        return;
                    }
                }
            },
            // The same one twice.
            |peer| {
                while let (option, _) = peer.option()
                    && option != 10
                {
                    peer.ack(option);
                }
                peer.reply(10, 4, b"\0\0\0\x01base:allocation");
                peer.reply(10, 4, b"\0\0\0\x01base:allocation");
                peer.ack(10);
            },
            // Block sizes that nothing may be divided by.
            |peer| {
                refuse_until(peer, GO);
                peer.reply(GO, 3, &[0, 3, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]);
                peer.accept(GO, SIZE, EXPORT);
            },
        ];
        for script in scripts {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| {
                    peer.greet(FLAGS);
                    script(peer);
                    peer.rest();
                });
                let error = options.context(allocation()).connect(&uri(&server));
                error.unwrap_err();
                server.finish();
            });
        }
    });
}

#[test]
fn no_list_of_exports_takes_memory_or_never_ends() {
    // H-003, H-008, H-009
    bounded(96, || {
        // A name longer than its reply, one of all ones, and no room for a length.
        let ill: [&[u8]; 3] = [b"\0\0\0\x05name", b"\xff\xff\xff\xffname", b"\0\0"];
        for data in ill {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| {
                    peer.greet(FLAGS);
                    assert_eq!(peer.option().0, LIST);
                    peer.reply(LIST, 2, data);
                    peer.ack(LIST);
                    peer.rest();
                });
                options.list(&uri(&server)).unwrap_err();
                server.finish();
            });
        }
        each_way!(|options, uri| {
            let server = Scripted::start(1, |_, peer| {
                peer.greet(FLAGS);
                assert_eq!(peer.option().0, LIST);
                let entry = [&reply_header(LIST, 2, 8)[..], b"\0\0\0\x04name"].concat();
                while peer.try_send(&entry.repeat(64)).is_ok() {}
            });
            options.list(&uri(&server)).unwrap_err();
            server.finish();
        });
        // Names are bytes of the server's, and shown in a way that does nothing to a terminal.
        each_way!(|options, uri| {
            let server = Scripted::start(1, |_, peer| {
                peer.greet(FLAGS);
                assert_eq!(peer.option().0, LIST);
                peer.reply(LIST, 2, b"\0\0\0\x0d../\x1b[2J%n\n\xe2\x80\xae");
                peer.ack(LIST);
                peer.rest();
            });
            if let Ok(entries) = options.list(&uri(&server)) {
                let mut shown = format!("{entries:?}");
                if let Ok(name) = &entries[0].name {
                    shown += &name.to_string();
                }
                assert!(!shown.contains(['\x1b', '\n', '\u{202e}']), "{shown:?}");
            }
            server.finish();
        });
    });
}

/// Refuses options until that one.
pub(crate) fn refuse_until(peer: &mut Conversation, last: u32) {
    loop {
        match peer.option() {
            (option, _) if option == last => return,
            (option, _) => peer.refuse(option, 1),
        }
    }
}

#[test]
fn no_reply_to_a_read_is_believed_that_breaks_the_protocol() {
    // H-017, H-020, H-022, H-023, H-027, H-034, H-035, H-036
    bounded(64, || {
        type Answer = fn(u64) -> Vec<u8>;
        let simple_reply = |cookie: u64| {
            let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend(cookie.to_be_bytes());
            bytes
        };
        let _: Answer = simple_reply;
        let structured: [Answer; 6] = [
            simple_reply,
            |cookie| chunk(0, OFFSET_DATA, cookie, &data(0, &[1; 512])).repeat(2),
            |cookie| chunk(0, 1 << 15 | 1, cookie, &[0, 0, 0, 5, 0, 0]).repeat(2000),
            |cookie| {
                let mut bytes = chunk(0, OFFSET_DATA, cookie, &[]);
                bytes.truncate(16);
                bytes.extend(u32::MAX.to_be_bytes());
                bytes
            },
            |cookie| chunk(DONE, NONE, cookie ^ 1, &[]),
            // Done, and nothing has come.
            |cookie| chunk(DONE, NONE, cookie, &[]),
        ];
        for answer in structured {
            each_way!(|options, uri| {
                let server = answers(Style::Structured, SIZE, answer);
                let client = options.connect(&uri(&server)).unwrap();
                let error = client.read_exact_at(&mut [0; 4096], 0).unwrap_err();
                assert!(error.is_lost(), "{error}");
                drop(client);
                server.finish();
            });
        }
        // A text that is longer than its chunk, and one that is no text.
        let texts: [Answer; 2] = [
            |cookie| chunk(DONE, 1 << 15 | 1, cookie, &[0, 0, 0, 5, 0xff, 0xff]),
            |cookie| {
                let text = [&[0, 0, 0, 5, 0, 8][..], b"\0\x1b[2J\xff\xff\n"].concat();
                chunk(DONE, 1 << 15 | 1, cookie, &text)
            },
        ];
        for answer in texts {
            each_way!(|options, uri| {
                let server = answers(Style::Structured, SIZE, answer);
                let client = options.connect(&uri(&server)).unwrap();
                let error = client.read_exact_at(&mut [0; 4096], 0).unwrap_err();
                let text = error.to_string();
                assert!(
                    !text.contains(|letter: char| letter.is_control()),
                    "{text:?}"
                );
                drop(client);
                server.finish();
            });
        }
        let others: [(Style, Answer); 4] = [
            (Style::Simple, |cookie| {
                let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
                bytes.extend([0; 4]);
                bytes.extend((cookie ^ 1).to_be_bytes());
                bytes
            }),
            (Style::Extended, simple_reply),
            // The reply to a request for another offset.
            (Style::Extended, |cookie| {
                extended_chunk(NONE, cookie, 77, 0)
            }),
            (Style::Extended, |cookie| {
                extended_chunk(OFFSET_DATA, cookie, 0, 1 << 63)
            }),
        ];
        for (style, answer) in others {
            each_way!(|options, uri| {
                let server = answers(style, SIZE, answer);
                let client = options.connect(&uri(&server)).unwrap();
                let error = client.read_exact_at(&mut [0; 4096], 0).unwrap_err();
                assert!(error.is_lost(), "{error}");
                drop(client);
                server.finish();
            });
        }
    });
}

#[test]
fn chunks_of_one_byte_cost_no_more_than_their_number() {
    // H-021, H-024
    bounded(64, || {
        each_way!(|options, uri| {
            let (leave, left) = mpsc::channel::<()>();
            let server = Scripted::start(1, move |_, peer| {
                negotiate(peer, Style::Structured, SIZE);
                let cookie = peer.request().cookie;
                // The odd ones, then the even ones, and never the end of the reply.
                let offsets = (1..4096).step_by(2).chain((0..4096).step_by(2));
                let one = |offset: u64| chunk(0, OFFSET_DATA, cookie, &data(offset, &[7]));
                peer.send(&offsets.flat_map(one).collect::<Vec<_>>());
                // Until the other end is dropped.
                let _ = left.recv();
            });
            let options = options.request_timeout(Some(Duration::from_millis(500)));
            let client = options.connect(&uri(&server)).unwrap();
            let error = client.read_exact_at(&mut [0; 4096], 0).unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error}");
            drop(leave);
            server.finish();
        });
    });
}

#[test]
fn a_read_does_not_come_in_pieces_without_end() {
    // B-015, H-021
    const LIMIT: u64 = 65_536;
    bounded(64, || {
        each_way!(|options, uri| {
            let server = answers(Style::Structured, SIZE, |cookie| {
                // Every second byte, so that none of them touch, nor the beginning.
                let one = |at: u64| chunk(0, OFFSET_DATA, cookie, &data(2 * at, &[7]));
                (1..=LIMIT + 1).flat_map(one).collect()
            });
            let client = options.connect(&uri(&server)).unwrap();
            let mut buffer = vec![0; 256 << 10];
            let error = client.read_exact_at(&mut buffer, 0).unwrap_err();
            let Error::Lost(lost) = &error else {
                panic!("{error}");
            };
            let broken = matches!(
                &**lost,
                Lost::Protocol(Broken::TooManyRanges { limit: 65_536 })
            );
            assert!(broken, "{error}");
            drop(client);
            server.finish();
        });
    });
}

#[test]
fn a_server_that_reads_nothing_and_floods_is_given_up_in_time() {
    // H-019, H-037
    bounded(160, || {
        for floods in [false, true] {
            each_way!(|options, uri| {
                let (leave, left) = mpsc::channel::<()>();
                let server = Scripted::start(1, move |_, peer| {
                    negotiate(peer, Style::Simple, 64 * MIB);
                    let cookie = peer.request().cookie;
                    if floods {
                        // Answered before its payload was read, and then without end.
                        let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
                        reply.extend([0; 4]);
                        reply.extend(cookie.to_be_bytes());
                        while peer.try_send(&reply).is_ok() {}
                    }
                    // Until the other end is dropped.
                    let _ = left.recv();
                });
                let options = options.request_timeout(Some(Duration::from_millis(700)));
                let client = options.connect(&uri(&server)).unwrap();
                let payload = vec![1; 32 << 20];
                // An answer that comes early counts, and those that follow are a violation.
                let written = client.write_all_at(&payload, 0);
                assert!(floods || written.is_err());
                client.read_exact_at(&mut [0; 512], 0).unwrap_err();
                drop((client, leave));
                server.finish();
            });
        }
    });
}
