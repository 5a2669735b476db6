//! An export that was entered, and the requests to send.

use super::prologue;
use crate::{
    delivery::{Delivery, Wire},
    input::Input,
};
use nbd_proto::{
    Command, CommandFlags, ContextName, ExportName, HeaderStyle,
    client::{Config, Go, GoOutcome, Greeted, Handshake, Transmission},
};

/// Meta contexts and their ids.
pub(super) const CONTEXTS: [(u32, &str); 2] = [(7, "base:allocation"), (8, "x:a")];

/// The longest read, in bytes.
const MAX_READ: u64 = 16 << 10;

/// A request that may be sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The request is abandoned.
    pub(super) abandoned: bool,
    /// Only for the first context.
    pub(super) filtered: bool,
}

impl Ask {
    /// Up to eight requests.
    pub(super) fn list(input: &mut Input<'_>) -> Vec<Self> {
        let count = input.below(8) + 1;
        (0..count).map(|_| Self::new(input)).collect()
    }

    fn new(input: &mut Input<'_>) -> Self {
        let byte = input.byte();
        let command = match byte & 15 {
            0..=7 => Command::Read,
            8 => Command::Write,
            9 => Command::Flush,
            10 => Command::Trim,
            11 => Command::Cache,
            12 => Command::WriteZeroes,
            _ => Command::BlockStatus,
        };
        let flags = input.byte();
        let unit = match (flags >> 6, command) {
            (0, _) => 1,
            (3, Command::BlockStatus | Command::Trim | Command::WriteZeroes) => 1 << 44,
            _ => 512,
        };
        let offset = u64::from(input.u16()) * unit;
        let len = u64::from(input.u16()) * unit;
        let payload = matches!(command, Command::Read | Command::Write);
        Self {
            command,
            // All flags but the one that the machine sets itself.
            flags: CommandFlags::from_bits(u16::from(flags & 0x1f)),
            offset,
            len: if payload { len.min(MAX_READ) } else { len },
            abandoned: byte & 16 != 0,
            filtered: byte & 32 != 0,
        }
    }
}

/// An export and the way into it.
#[derive(Debug)]
pub(super) struct Entry {
    config: Config,
    pub(super) mode: HeaderStyle,
    pub(super) size: u64,
    pub(super) flags: u16,
    pub(super) block_sizes: Option<[u32; 3]>,
    pub(super) asks: Vec<Ask>,
}

impl Entry {
    pub(super) fn new(config: Config, input: &mut Input<'_>) -> Self {
        Self {
            config,
            mode: input.pick(&[
                HeaderStyle::Simple,
                HeaderStyle::Structured,
                HeaderStyle::Extended,
            ]),
            size: input.pick(&[1 << 20, u64::MAX, 4096, 0]),
            flags: input.pick(&[0x1ded, 0x1def, 1]),
            block_sizes: input.pick(&[None, Some([512, 4096, 8192]), Some([1, 512, u32::MAX])]),
            asks: Ask::list(input),
        }
    }

    /// The transmission that the server let the client enter.
    pub(super) fn enter(&self) -> Transmission {
        // The limits of the input apply later.
        let config = Config {
            limits: nbd_proto::client::Limits {
                infos: 8,
                meta_contexts: 8,
                option_replies: 4096,
                ..self.config.limits
            },
            ..self.config
        };
        let bytes = prologue(self);
        let mut wire = Wire::new(&bytes, Delivery::Whole);
        let Ok(Ok(Greeted::FixedNewstyle(mut options))) = wire.drive(Handshake::new(config)) else {
            panic!("the greeting is right");
        };
        let out = &mut wire.out.split();
        let granted = "the answer is right";
        match self.mode {
            HeaderStyle::Simple => {}
            HeaderStyle::Structured => {
                let pending = options.structured_reply(out).expect("asked once");
                let settled = wire.drive(pending).expect(granted).expect(granted);
                options = settled.options;
            }
            HeaderStyle::Extended => {
                let pending = options.extended_headers(out).expect("asked once");
                let settled = wire.drive(pending).expect(granted).expect(granted);
                options = settled.options;
            }
        }
        let name = ExportName::default();
        if self.mode.has_chunks() {
            let queries = CONTEXTS.map(|(_, name)| ContextName::new(name).expect("a legal name"));
            let pending = options.set_meta_context(&name, &queries, out);
            let pending = pending.expect("chunks were agreed on");
            let settled = wire.drive(pending).expect(granted).expect(granted);
            options = settled.options;
        }
        let pending = options.go(Go::new(name), out);
        match wire.drive(pending).expect(granted) {
            Ok(GoOutcome::Accepted(transmission)) => transmission,
            other => panic!("{other:?}"),
        }
    }
}
