//! Servers that announce features without an agreement, or that vanish, over real sockets.

use crate::{
    bounded::bounded,
    clients::{DONE, EXPORT, EXTENDED, FLAGS, OFFSET_DATA, SIZE, STRUCTURED, chunk, data},
    drivers::each_way,
    hostile_servers::refuse_until,
    raw::{EXPORT_NAME, GO, reply_header},
};
use interop::{Conversation, Scripted};
use nbd_io::client::Error;
use nbd_proto::CommandFlags;
use std::time::Duration;

#[test]
fn features_that_were_not_agreed_on_are_not_used_whatever_an_export_announces() {
    // H-011, H-012
    bounded(64, || {
        for (size, flags) in [(0, EXPORT), (SIZE, 0), (SIZE, u16::MAX)] {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| {
                    peer.greet(FLAGS);
                    refuse_until(peer, GO);
                    peer.accept(GO, size, flags);
                    let rest = peer.rest();
                    // NBD_CMD_DISC at most.
                    assert!(rest.len() <= 28, "{rest:02x?}");
                });
                match options.connect(&uri(&server)) {
                    // An export has flags.
                    Err(error) => assert!(flags == 0, "{error}"),
                    Ok(client) => {
                        assert_ne!(flags, 0);
                        assert_eq!(client.size(), size);
                        let mut buffer = [0; 512];
                        let whole = CommandFlags::DF;
                        let read = client.read_exact_at_with(&mut buffer, 0, whole);
                        assert!(matches!(read, Err(Error::Misuse(_))), "{read:?}");
                        let beyond = client.read_exact_at(&mut buffer, size);
                        assert!(matches!(beyond, Err(Error::Misuse(_))), "{beyond:?}");
                        let status = client.block_status(0, 512, CommandFlags::NONE);
                        assert!(matches!(status, Err(Error::Misuse(_))), "{status:?}");
                    }
                }
                server.finish();
            });
        }
    });
}

#[test]
fn zeroes_that_were_agreed_on_otherwise_are_no_replies() {
    // H-016
    bounded(64, || {
        // The server's flags have been changed on their way, or the client's.
        for flags in [1, 3] {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| {
                    let wants_zeroes = peer.greet(flags) & 2 == 0;
                    refuse_until(peer, EXPORT_NAME);
                    peer.send(&SIZE.to_be_bytes());
                    peer.send(&EXPORT.to_be_bytes());
                    if !wants_zeroes {
                        peer.send(&[0; 124]);
                    }
                    peer.rest();
                });
                let options = options.negotiation_timeout(Some(Duration::from_secs(1)));
                let client = options.connect(&uri(&server));
                let read = client.and_then(|client| client.read_exact_at(&mut [0; 512], 0));
                read.unwrap_err();
                server.finish();
            });
        }
    });
}

/// The bytes that a server has left to say before it vanishes.
struct Rest(usize);

impl Rest {
    /// Whether all of that was said.
    fn say(&mut self, peer: &mut Conversation, bytes: &[u8]) -> bool {
        let len = bytes.len().min(self.0);
        peer.send(&bytes[..len]);
        self.0 -= len;
        len == bytes.len()
    }
}

/// The bytes of a session with a read of a sector.
const SESSION: usize = 18 + 2 * 20 + 20 + 12 + 20 + 20 + 8 + 512;

/// Plays the server of such a session, which vanishes after so many bytes.
fn vanish(peer: &mut Conversation, after: usize) {
    let greeting = b"NBDMAGICIHAVEOPT\0\x03";
    let Some(after) = after.checked_sub(greeting.len()) else {
        return peer.send(&greeting[..after]);
    };
    peer.greet(FLAGS);
    let mut rest = Rest(after);
    let unsupported = 1 | 1 << 31;
    let mut info = vec![0, 0];
    info.extend(SIZE.to_be_bytes());
    info.extend(EXPORT.to_be_bytes());
    let accepted = [&reply_header(GO, 3, 12)[..], &info, &reply_header(GO, 1, 0)].concat();
    for (option, reply) in [
        (EXTENDED, reply_header(EXTENDED, unsupported, 0)),
        (STRUCTURED, reply_header(STRUCTURED, 1, 0)),
        (GO, accepted),
    ] {
        assert_eq!(peer.option().0, option);
        if !rest.say(peer, &reply) {
            return;
        }
    }
    let cookie = peer.request().cookie;
    rest.say(peer, &chunk(DONE, OFFSET_DATA, cookie, &data(0, &[7; 512])));
}

#[test]
fn a_server_may_vanish_after_any_byte_of_a_session() {
    // H-040
    bounded(64, || {
        // A third of them, at another distance to the beginning of each message.
        for after in (0..SESSION - 500).step_by(3).chain([SESSION - 1, SESSION]) {
            each_way!(|options, uri| {
                let server = Scripted::start(1, move |_, peer| vanish(peer, after));
                let read = options.connect(&uri(&server)).and_then(|client| {
                    let mut sector = [0; 512];
                    client.read_exact_at(&mut sector, 0)?;
                    assert_eq!(sector, [7; 512]);
                    Ok(())
                });
                assert_eq!(read.is_ok(), after == SESSION, "{after}: {read:?}");
                server.finish();
            });
        }
    });
}
