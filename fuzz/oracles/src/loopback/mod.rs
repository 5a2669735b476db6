//! The client against the server, over a model of a disk: the server gets the requests that the
//! client sends, and the client gets the answers that the server gives.

mod asking;
mod chopper;
mod disk;
mod negotiation;
mod peer;

use crate::input::Input;
use asking::Client;
use chopper::Chopper;
use nbd_proto::{
    BlockSizes, ExportInfo, TransmissionFlags, client,
    server::{self, Config, Tls},
};
use negotiation::{Haggler, Negotiation};
use peer::Peer;

/// Joins both machines by a chopper of bytes and lets the client ask for the input's options. The
/// server answers in any order and in many forms; every answer must be right.
pub fn loopback(data: &[u8]) {
    let mut input = Input::new(data);
    let world = World::new(&mut input);
    let chopper = Chopper::new(input.bytes());
    let actions = Input::new(input.bytes());
    let decisions = Input::new(input.bytes());
    let negotiation = Negotiation {
        world: &world,
        peer: Peer::new(&world),
        chopper,
        actions,
    };
    let Some(Haggler {
        client,
        server,
        chopper,
        asked_sizes,
    }) = negotiation.run()
    else {
        return;
    };
    assert_eq!(client.mode(), server.mode());
    assert_eq!(client.export().size, server.size());
    assert_eq!(client.export().flags, server.flags());
    let block_sizes = world.export.block_sizes.filter(|_| asked_sizes);
    assert_eq!(client.export().block_sizes, block_sizes);
    let minimum = block_sizes.map_or(1, BlockSizes::minimum).into();
    assert!(client.export().size.is_multiple_of(minimum));
    assert!(world.export.size - client.export().size < 512);
    let of_client: Vec<_> = client
        .contexts()
        .iter()
        .map(|c| (c.id, c.name.clone()))
        .collect();
    let of_server: Vec<_> = server
        .contexts()
        .iter()
        .map(|c| (c.id(), Some(c.name().clone())))
        .collect();
    assert_eq!(of_client, of_server);
    Client::new(client, server, chopper, decisions, input).run();
}

/// The exports and contexts of a server.
#[derive(Debug)]
struct World {
    config: Config,
    client: client::Config,
    export: ExportInfo,
}

/// The names of the exports, which are all the same.
const EXPORTS: [&str; 2] = ["disk", "b"];
/// The meta contexts of each.
const CONTEXTS: [&str; 3] = ["base:allocation", "x:a", "x:b"];

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let byte = input.byte();
        let on = |bit: u8| byte & 1 << bit == 0;
        let flags = TransmissionFlags::from_bits(0x1dfd ^ input.u16());
        let mut export = ExportInfo::new(input.pick(&[64 << 10, 65_000, 4096]), flags);
        export.block_sizes = input
            .pick(&[None, Some((512, 4096, 8192)), Some((1, 512, 1 << 20))])
            .map(|(min, pref, max)| BlockSizes::new(min, pref, max).expect("legal sizes"));
        export.description = Some("a disk".into());
        export.name = Some(negotiation::name("disk"));
        Self {
            config: Config {
                limits: server::Limits {
                    accepted: input.pick(&[16, 1, 2, 3]),
                    // The client sends as many options as the input says, which breaks no rule of
                    // either side.
                    options: u32::MAX,
                    ..server::Limits::default()
                },
                tls: if on(0) { Tls::Selective } else { Tls::Off },
                structured: on(1),
                extended: on(2),
                listing: on(3),
                fixed_newstyle: on(4),
                no_zeroes: on(5),
            },
            client: client::Config {
                limits: client::Limits {
                    in_flight: input.pick(&[64, 1, 2, 5]),
                    ..client::Limits::default()
                },
                // A server of ours needs no tolerance.
                tolerance: client::Tolerance::STRICT,
            },
            export,
        }
    }
}
