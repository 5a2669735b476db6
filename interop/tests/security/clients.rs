//! Vulnerabilities of clients, replayed by a server against ours.

use crate::{
    bounded::bounded,
    drivers::{each_client, each_way},
};
use interop::{Conversation, Scripted};
use nbd_io::client::Error;
use nbd_proto::{CommandFlags, ContextName, Errno};
use std::time::Duration;

pub(crate) const EXTENDED: u32 = 11;
pub(crate) const STRUCTURED: u32 = 8;
const SET_META_CONTEXT: u32 = 10;
const STARTTLS: u32 = 5;
pub(crate) const GO: u32 = 7;

/// `NBD_REP_ERR_UNSUP` and `NBD_REP_ERR_POLICY`, without the highest bit.
const UNSUP: u32 = 1;
const POLICY: u32 = 2;

/// Fixed newstyle without zeroes.
pub(crate) const FLAGS: u16 = 3;
/// Has flags, can flush.
pub(crate) const EXPORT: u16 = 5;
pub(crate) const SIZE: u64 = 1 << 20;

/// The style of negotiation of a scripted server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

/// Negotiates as the client wants it, as far as the style allows.
pub(crate) fn negotiate(peer: &mut Conversation, style: Style, size: u64) {
    peer.greet(FLAGS);
    loop {
        let (option, _) = peer.option();
        match option {
            EXTENDED if style == Style::Extended => peer.ack(option),
            STRUCTURED if style != Style::Simple => peer.ack(option),
            SET_META_CONTEXT if style != Style::Simple => {
                peer.reply(option, 4, b"\0\0\0\x01base:allocation");
                peer.ack(option);
            }
            GO => return peer.accept(option, size, EXPORT),
            _ => peer.refuse(option, UNSUP),
        }
    }
}

/// A chunk of a structured reply.
pub(crate) fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let mut bytes = 0x668e_33ef_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The header of the only chunk of an extended reply.
pub(crate) fn extended_chunk(kind: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x6e8a_278c_u32.to_be_bytes().to_vec();
    bytes.extend(DONE.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    for number in [cookie, offset, len] {
        bytes.extend(number.to_be_bytes());
    }
    bytes
}

pub(crate) const DONE: u16 = 1;
pub(crate) const NONE: u16 = 0;
pub(crate) const OFFSET_DATA: u16 = 1;
pub(crate) const BLOCK_STATUS: u16 = 5;
pub(crate) const BLOCK_STATUS_EXT: u16 = 6;
const ERROR_OFFSET: u16 = 1 << 15 | 2;

pub(crate) fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes(), bytes].concat()
}

/// A server that answers the first request like that, of any kind.
pub(crate) fn answers(
    style: Style,
    size: u64,
    answer: impl Fn(u64) -> Vec<u8> + Send + 'static,
) -> Scripted {
    Scripted::start(1, move |_, peer| {
        negotiate(peer, style, size);
        let cookie = if style == Style::Extended {
            peer.extended_request()
        } else {
            peer.request().cookie
        };
        peer.send(&answer(cookie));
        peer.rest();
    })
}

pub(crate) fn allocation() -> ContextName {
    ContextName::new("base:allocation").unwrap()
}

#[test]
fn cve_2019_14842_a_required_tls_cannot_be_declined() {
    // H-015
    bounded(64, || {
        // Declined with an error, with flags of a server that knows no options, and by oldstyle.
        let plain: [fn(&mut Conversation); 4] = [
            |peer| {
                peer.greet(FLAGS);
                assert_eq!(peer.option().0, STARTTLS);
                peer.refuse(STARTTLS, UNSUP);
            },
            |peer| {
                peer.greet(FLAGS);
                assert_eq!(peer.option().0, STARTTLS);
                peer.refuse(STARTTLS, POLICY);
            },
            |peer| peer.send(b"NBDMAGICIHAVEOPT\0\0"),
            |peer| {
                peer.send(b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53");
                peer.send(&SIZE.to_be_bytes());
                peer.send(&[0; 4 + 124]);
            },
        ];
        for decline in plain {
            each_client!(|options| {
                let server = Scripted::start(1, move |_, peer| {
                    decline(peer);
                    let rest = peer.rest();
                    // NBD_OPT_ABORT at most: no name, no request.
                    assert!(rest.len() <= 20, "{rest:02x?}");
                });
                options.connect(&server.tls_uri("secret")).unwrap_err();
                let said = server.finish().remove(0).client;
                assert!(!said.windows(6).any(|bytes| bytes == b"secret"));
            });
        }
    });
}

#[test]
fn libnbd_2019_10_a_chunk_before_the_read_writes_nowhere() {
    // H-025
    bounded(64, || {
        let at = 8192_u64;
        for offset in [at - 512, at + 512 - 1, u64::MAX - 511, u64::MAX / 2 + 1] {
            each_way!(|options, uri| {
                let server = answers(Style::Structured, SIZE, move |cookie| {
                    let payload = data(offset, &[0xee; 512]);
                    chunk(DONE, OFFSET_DATA, cookie, &payload)
                });
                let client = options.connect(&uri(&server)).unwrap();
                let mut buffer = [0; 3 * 512];
                let read = client.read_exact_at(&mut buffer[512..1024], at);
                assert!(read.unwrap_err().is_lost());
                assert!(buffer[..512].iter().chain(&buffer[1024..]).all(|b| *b == 0));
                drop(client);
                server.finish();
            });
        }
    });
}

#[test]
fn cve_2021_20286_a_server_may_vanish_in_the_middle_of_an_option() {
    bounded(64, || {
        // Within the reply to NBD_OPT_GO, and before it.
        for sent in 0..=20_usize {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| {
                    peer.greet(FLAGS);
                    while peer.option().0 != GO {
                        peer.refuse(EXTENDED, UNSUP);
                        assert_eq!(peer.option().0, STRUCTURED);
                        peer.refuse(STRUCTURED, UNSUP);
                    }
                    let reply = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c";
                    peer.send(&reply[..sent]);
                });
                let error = options.connect(&uri(&server)).unwrap_err();
                assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
                server.finish();
            });
        }
    });
}

#[test]
fn cve_2022_0485_a_read_that_fails_is_no_data() {
    // H-026
    bounded(64, || {
        each_way!(|options, uri| {
            // Half of the data comes before the error.
            let server = answers(Style::Structured, SIZE, |cookie| {
                let mut bytes = chunk(0, OFFSET_DATA, cookie, &data(0, &[1; 2048]));
                let mut failure = 5_u32.to_be_bytes().to_vec();
                failure.extend(*b"\0\0");
                failure.extend(2048_u64.to_be_bytes());
                bytes.extend(chunk(DONE, ERROR_OFFSET, cookie, &failure));
                bytes
            });
            let client = options.connect(&uri(&server)).unwrap();
            let error = client.read_exact_at(&mut [0; 4096], 0).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::Io));
            drop(client);
            server.finish();
        });
    });
}

#[test]
fn libnbd_2023_07_no_block_status_crashes_a_client() {
    // H-028, H-031, H-032
    bounded(64, || {
        let extent = [0, 0, 16, 0, 0, 0, 0, 3];
        let payloads: [Vec<u8>; 5] = [
            // A context that was not selected, no extents, half of one, an empty one, and no context.
            [&[0, 0, 0, 9][..], &extent].concat(),
            vec![0, 0, 0, 1],
            [&[0, 0, 0, 1][..], &extent[..5]].concat(),
            [&[0, 0, 0, 1][..], &[0; 8]].concat(),
            vec![0, 0],
        ];
        for payload in payloads {
            each_way!(|options, uri| {
                let payload = payload.clone();
                let server = answers(Style::Structured, SIZE, move |cookie| {
                    chunk(DONE, BLOCK_STATUS, cookie, &payload)
                });
                let client = options.context(allocation()).connect(&uri(&server));
                let status = client.unwrap().block_status(0, 4096, CommandFlags::NONE);
                assert!(status.unwrap_err().is_lost());
                server.finish();
            });
            // And as the answer to a read, without a context that was selected.
            each_way!(|options, uri| {
                let payload = payload.clone();
                let server = answers(Style::Structured, SIZE, move |cookie| {
                    chunk(DONE, BLOCK_STATUS, cookie, &payload)
                });
                let client = options.connect(&uri(&server)).unwrap();
                assert!(
                    client
                        .read_exact_at(&mut [0; 512], 0)
                        .unwrap_err()
                        .is_lost()
                );
                drop(client);
                server.finish();
            });
        }
    });
}

#[test]
fn cve_2023_5215_a_size_of_more_than_63_bits_is_no_negative_one() {
    // H-011
    bounded(64, || {
        for size in [1 << 63, (1 << 63) + 512, u64::MAX - 511, u64::MAX] {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| {
                    negotiate(peer, Style::Simple, size);
                    peer.rest();
                });
                // Whether it is refused or used, it is this size.
                if let Ok(client) = options.connect(&uri(&server)) {
                    assert_eq!(client.size(), size);
                    let beyond = client.read_exact_at(&mut [0; 512], size - 256);
                    assert!(matches!(beyond, Err(Error::Misuse(_))), "{beyond:?}");
                    let wraps = client.read_exact_at(&mut [0; 512], u64::MAX - 100);
                    assert!(matches!(wraps, Err(Error::Misuse(_))), "{wraps:?}");
                }
                server.finish();
            });
        }
    });
}

#[test]
fn cve_2023_5871_status_flags_may_have_64_bits() {
    // H-030
    bounded(64, || {
        let status = 0xf0f0_f0f0_0000_0003_u64;
        each_way!(|options, uri| {
            let server = answers(Style::Extended, SIZE, move |cookie| {
                // One extent of one context.
                let mut payload = vec![0, 0, 0, 1, 0, 0, 0, 1];
                payload.extend(SIZE.to_be_bytes());
                payload.extend(status.to_be_bytes());
                let mut bytes = extended_chunk(BLOCK_STATUS_EXT, cookie, 0, 24);
                bytes.extend(payload);
                bytes
            });
            let client = options.context(allocation()).connect(&uri(&server));
            let client = client.unwrap();
            let found = client.block_status(0, SIZE, CommandFlags::NONE).unwrap();
            assert_eq!(found[0].extents[0].status, status);
            drop(client);
            server.finish();
        });
    });
}

#[test]
fn a_server_that_dribbles_is_given_up_in_time() {
    // H-001
    bounded(64, || {
        let scripts: [fn(&mut Conversation); 2] =
            [|_| {}, |peer| drop((peer.greet(FLAGS), peer.option()))];
        for begin in scripts {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| {
                    begin(peer);
                    // A byte at a time, for longer than the client waits.
                    for byte in b"NBDMAGICIHAVEOPT".iter().cycle() {
                        if peer.try_send(&[*byte]).is_err() {
                            return;
                        }
                        std::thread::sleep(Duration::from_millis(60));
                    }
                });
                let options = options.negotiation_timeout(Some(Duration::from_secs(1)));
                options.connect(&uri(&server)).unwrap_err();
                server.finish();
            });
        }
    });
}
