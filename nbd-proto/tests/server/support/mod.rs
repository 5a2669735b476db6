//! A server whose decisions are fixed, the client's bytes as tests write them down, and every way
//! to deliver the one to the other.

mod run;
mod script;

pub(crate) use run::*;
pub(crate) use script::*;

use bytes::Buf;
use nbd_proto::{
    BlockSizes, ExportInfo, ExportName, TransmissionFlags,
    meta::Extent,
    server::{Config, Limits, Part, Receipt, Refusal, Reply, Request, Tls},
};

/// An export of the server under test.
#[derive(Clone)]
pub(crate) struct Export {
    pub(crate) name: &'static str,
    pub(crate) info: ExportInfo,
    pub(crate) tls_only: bool,
    pub(crate) contexts: Vec<&'static str>,
    pub(crate) refusal: Option<Refusal>,
}

impl Export {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            info: ExportInfo::new(1 << 20, ALL_FLAGS),
            tls_only: false,
            contexts: vec![
                "base:allocation",
                "qemu:dirty-bitmap:a",
                "qemu:dirty-bitmap:b",
            ],
            refusal: None,
        }
    }

    pub(crate) fn size(mut self, size: u64) -> Self {
        self.info.size = size;
        self
    }

    pub(crate) fn flags(mut self, flags: u16) -> Self {
        self.info.flags = TransmissionFlags::from_bits(flags);
        self
    }

    pub(crate) fn sizes(mut self, minimum: u32, preferred: u32, maximum: u32) -> Self {
        self.info.block_sizes = Some(BlockSizes::new(minimum, preferred, maximum).unwrap());
        self
    }
}

/// Every defined flag but READ_ONLY and RESIZE.
pub(crate) const ALL_FLAGS: TransmissionFlags = TransmissionFlags::from_bits(0x1dfd);

/// A server whose decisions are fixed.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) forced: bool,
    pub(crate) exports: Vec<Export>,
    /// Refuses everything that it can.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) shutting_down: bool,
    /// Answers requests: appends the bytes to send.
    pub(crate) answer: fn(Request, &mut Vec<u8>) -> Receipt,
    /// The number of replies to keep back before they are sent, in reverse.
    pub(crate) keep_back: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            config: Config::default(),
            forced: false,
            exports: vec![Export::new("disk"), Export::new("b").size(4096)],
            refusal: None,
            shutting_down: false,
            answer: plain,
            keep_back: 0,
        }
    }
}

impl Server {
    pub(crate) fn with(export: Export) -> Self {
        Self {
            exports: vec![export],
            ..Self::default()
        }
    }

    pub(crate) fn selective() -> Self {
        Self {
            config: Config {
                tls: Tls::Selective,
                ..Config::default()
            },
            exports: vec![
                Export::new("disk"),
                Export {
                    tls_only: true,
                    ..Export::new("secret")
                },
            ],
            ..Self::default()
        }
    }

    pub(crate) fn forced() -> Self {
        Self {
            forced: true,
            ..Self::default()
        }
    }

    pub(crate) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.config.limits);
        self
    }

    pub(crate) fn config(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    pub(crate) fn answer(mut self, answer: fn(Request, &mut Vec<u8>) -> Receipt) -> Self {
        self.answer = answer;
        self
    }

    pub(crate) fn find(&self, name: &ExportName, secure: bool) -> Result<&Export, Refusal> {
        let export = self
            .exports
            .iter()
            .find(|export| export.name == name.as_str())
            .ok_or(Refusal::Unknown)?;
        match export.refusal {
            _ if export.tls_only && !secure => Err(Refusal::TlsRequired),
            Some(refusal) => Err(refusal),
            None => self.refusal.map_or(Ok(export), Err),
        }
    }
}

/// The byte that the export has at an offset.
pub(crate) fn pattern(offset: u64) -> u8 {
    u8::try_from(offset % 251).unwrap()
}

pub(crate) fn pattern_at(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(pattern).collect()
}

pub(crate) fn send<P: Buf>(reply: Reply<P>, out: &mut Vec<u8>) -> Receipt {
    bytes::BufMut::put(out, reply.frame);
    reply.receipt
}

/// Sends the messages of a reply that has several.
pub(crate) fn send_part<P: Buf, T>(part: Part<P, T>, out: &mut Vec<u8>) -> Result<T, Receipt> {
    match part {
        Part::More { frame, rest } => {
            bytes::BufMut::put(out, frame);
            Ok(rest)
        }
        Part::Last(reply) => Err(send(reply, out)),
    }
}

/// Carries out everything.
pub(crate) fn plain(request: Request, out: &mut Vec<u8>) -> Receipt {
    match request {
        Request::Read {
            offset,
            len,
            ticket,
        } => send(ticket.data(&pattern_at(offset, len.into())[..]), out),
        Request::BlockStatus { mut ticket, .. } => loop {
            let status = u64::from(ticket.context().id());
            match send_part(ticket.extents([Extent { len: 512, status }]), out) {
                Ok(rest) => ticket = rest,
                Err(receipt) => break receipt,
            }
        },
        Request::Write { ticket, .. }
        | Request::Flush { ticket }
        | Request::Trim { ticket, .. }
        | Request::Cache { ticket, .. }
        | Request::WriteZeroes { ticket, .. } => send(ticket.done(), out),
    }
}
