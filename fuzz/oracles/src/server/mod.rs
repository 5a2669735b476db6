//! The server against any client.

mod negotiation;
mod serving;

pub(crate) use serving::piece_len;

/// A strict decoder of servers' bytes, which shares nothing with the code under test.
#[path = "../../../../nbd-proto/tests/server/val/mod.rs"]
#[expect(
    clippy::unwrap_used,
    reason = "it is a test, and a missing byte is an error"
)]
mod val;

use crate::{
    delivery::{Delivery, Wire, always},
    input::Input,
};
use nbd_proto::{
    BlockSizes, Error, ExportInfo, TransmissionFlags,
    server::{Config, Limits, Tls},
};
use negotiation::Connection;

/// Any client's bytes against the negotiation: the server grants and refuses as the input says, and
/// serves if the client gets that far.
pub fn server_negotiation(data: &[u8]) {
    let mut input = Input::new(data);
    let server = Server::new(&mut input);
    let pattern = input.bytes();
    check(&server, pattern, input.rest());
}

/// Any client's bytes against the server's transmission, whose answers the input decides. Every
/// request must have exactly one, which an independent decoder understands.
pub fn server_transmission(data: &[u8]) {
    let mut input = Input::new(data);
    let server = Server {
        config: Config::default(),
        forced: false,
        ..Server::new(&mut input)
    };
    let entrance = input.pick(&[SIMPLE, STRUCTURED, EXTENDED]);
    let contexts = input.flag() && entrance != SIMPLE;
    let pattern = input.bytes();
    let mut client = entrance.to_vec();
    if contexts {
        client.extend_from_slice(CONTEXTS);
    }
    client.extend_from_slice(GO);
    client.extend_from_slice(input.rest());
    let server = Server {
        willing: true,
        ..server
    };
    check(&server, pattern, &client);
}

/// Flags, and then the option that leads to a mode.
const SIMPLE: &[u8] = b"\0\0\0\x03";
const STRUCTURED: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0";
const EXTENDED: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x0b\0\0\0\0";
/// `NBD_OPT_SET_META_CONTEXT` of the export "disk" with `base:allocation` and `x:a`.
const CONTEXTS: &[u8] = b"IHAVEOPT\0\0\0\x0a\0\0\0\x26\0\0\0\x04disk\0\0\0\x02\
    \0\0\0\x0fbase:allocation\0\0\0\x03x:a";
/// `NBD_OPT_GO` of the export "disk" with its block sizes.
const GO: &[u8] = b"IHAVEOPT\0\0\0\x07\0\0\0\x0c\0\0\0\x04disk\0\x01\0\x03";

/// Lets the client's bytes arrive in every way.
fn check(server: &Server<'_>, pattern: &[u8], client: &[u8]) {
    let _ = always(pattern, |delivery: Delivery<'_>| {
        let mut connection = Connection::new(server, Wire::new(client, delivery));
        let end = connection.run();
        let ran = connection.into_ran();
        let said = val::check(client, &ran.sent, &server.config.limits);
        (end, said, ran)
    });
}

/// A server and its decisions.
#[derive(Clone, Debug)]
struct Server<'a> {
    config: Config,
    forced: bool,
    shutting_down: bool,
    /// Grants everything until transmission starts.
    willing: bool,
    export: ExportInfo,
    decisions: &'a [u8],
}

/// The end of a connection.
#[derive(Debug, PartialEq)]
enum End {
    /// The client's bytes are used up and nothing is left half-done.
    Idle,
    /// The client's bytes ended inside a message.
    Inside,
    Aborted,
    Disconnected,
}

type Ended = Result<End, Error>;

/// Everything observable from outside.
#[derive(Debug, PartialEq)]
struct Ran {
    sent: Vec<u8>,
    /// The requests to the server, in words.
    asked: Vec<String>,
}

impl<'a> Server<'a> {
    fn new(input: &mut Input<'a>) -> Self {
        let byte = input.byte();
        let more = input.byte();
        let off = |bit: u8| byte & 1 << bit == 0;
        let mut limits = Limits::default();
        if byte & 0x80 != 0 {
            limits.option_data = 64;
            limits.option_drain = 256;
            limits.meta_queries = 2;
            limits.info_requests = 2;
            limits.options = 8;
            limits.accepted = 2;
        }
        let sizes = input.pick(&[None, Some((512, 4096, 65536)), Some((1, 512, 1 << 25))]);
        let mut export = ExportInfo::new(
            input.pick(&[1 << 20, 0, 1 << 40, u64::MAX]),
            TransmissionFlags::from_bits(0x1dfd ^ input.u16()),
        );
        export.block_sizes =
            sizes.map(|(min, pref, max)| BlockSizes::new(min, pref, max).expect("legal sizes"));
        export.description = (more & 1 != 0).then(|| "a disk".into());
        Self {
            config: Config {
                limits,
                tls: if off(0) { Tls::Off } else { Tls::Selective },
                structured: off(2),
                extended: off(3),
                listing: off(4),
                fixed_newstyle: off(5),
                no_zeroes: off(6),
            },
            forced: !off(1),
            shutting_down: more & 2 != 0,
            willing: false,
            export,
            decisions: input.bytes(),
        }
    }
}
