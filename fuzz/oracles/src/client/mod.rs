//! The client against any server.

mod negotiation;
mod replies;
mod requests;
mod transmission;

use crate::{
    bytes,
    delivery::{Wire, always},
    input::Input,
};
use nbd_proto::client::{Config, Limits, Tolerance};
use negotiation::Script;
use requests::Entry;
use transmission::Session;

/// Any server's bytes against the negotiation: it asks for the options that the input names, checks
/// the replies, and goes on to transmission where the server lets it.
pub fn client_negotiation(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(&mut input);
    let script = Script::new(config, &mut input);
    let pattern = input.bytes();
    let server = input.rest();
    always(pattern, |delivery| script.play(Wire::new(server, delivery)));
}

/// Any server's bytes against requests in flight. The server is either the input itself, or built
/// from it out of messages which mostly make sense.
pub fn client_transmission(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(&mut input);
    let entry = Entry::new(config, &mut input);
    let pattern = input.bytes();
    let built = input.flag();
    let server = if built {
        replies::build(&entry, input)
    } else {
        input.rest().to_vec()
    };
    let _ = always(pattern, |delivery| {
        let mut session = Session::new(entry.enter(), &entry.asks);
        let end = session.run(&mut Wire::new(&server, delivery));
        (end, session.into_log())
    });
}

/// Any legal configuration of a client.
fn config(input: &mut Input<'_>) -> Config {
    let byte = input.byte();
    Config {
        limits: if byte & 8 == 0 {
            Limits::default()
        } else {
            TIGHT
        },
        tolerance: match byte & 3 {
            0 | 1 => Tolerance::default(),
            2 => Tolerance::STRICT,
            _ => Tolerance::LENIENT,
        },
    }
}

/// Limits that short inputs reach.
const TIGHT: Limits = Limits {
    payload: 4096,
    unknown_info: 16,
    infos: 2,
    meta_contexts: 2,
    list_entries: 2,
    option_replies: 64,
    in_flight: 3,
    extents: 4,
    read_ranges: 2,
    error_chunks: 2,
    unknown_error: 16,
};

/// The answers that lead a client into transmission.
fn prologue(entry: &Entry) -> Vec<u8> {
    let mut out = bytes::hello(3);
    match entry.mode {
        nbd_proto::HeaderStyle::Simple => {}
        nbd_proto::HeaderStyle::Structured => out.extend(bytes::ack(8)),
        nbd_proto::HeaderStyle::Extended => out.extend(bytes::ack(11)),
    }
    if entry.mode.has_chunks() {
        for (id, name) in requests::CONTEXTS {
            out.extend(bytes::meta(10, id, name));
        }
        out.extend(bytes::ack(10));
    }
    out.extend(bytes::iexp(7, entry.size, entry.flags));
    if let Some([minimum, preferred, maximum]) = entry.block_sizes {
        out.extend(bytes::ibs(7, minimum, preferred, maximum));
    }
    out.extend(bytes::ack(7));
    out
}
