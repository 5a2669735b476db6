//! Timeouts of clients during the negotiation.

use super::clock::Clock;
use crate::runtime::Runtime as _;
use crate::{
    Memory, NamedExports,
    server::{CloseReason, NegotiationError, Peer, Server},
    transport::Transport,
};
use nbd_proto::{ExportName, server::Limits};
use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// A client that reads every reply, and sends one message after the other, each after a pause.
struct Slow {
    clock: Clock,
    pause: Duration,
    next: Duration,
    says: Box<dyn Iterator<Item = Vec<u8>>>,
    saying: VecDeque<u8>,
}

impl Transport for Slow {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.saying.is_empty() {
            if self.clock.now() < self.next {
                return Poll::Pending;
            }
            self.next += self.pause;
            self.saying.extend(self.says.next().unwrap_or_default());
        }
        Poll::Ready(self.saying.read_vectored(bufs))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const FLAGS: &[u8] = b"\0\0\0\x03";

fn option(code: u8, data: &[u8]) -> Vec<u8> {
    let mut option = Vec::from(b"IHAVEOPT\0\0\0");
    option.push(code);
    option.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    option.extend(data);
    option
}

fn list() -> Vec<u8> {
    option(3, b"")
}

fn abort() -> Vec<u8> {
    option(2, b"")
}

/// NBD_OPT_INFO without wishes, and NBD_OPT_LIST_META_CONTEXT of all.
fn questions(name: &str) -> [Vec<u8>; 2] {
    let mut data = Vec::from(u32::try_from(name.len()).unwrap().to_be_bytes());
    data.extend(name.as_bytes());
    let info = option(6, &[&data[..], b"\0\0"].concat());
    [info, option(9, &[&data[..], b"\0\0\0\0"].concat())]
}

/// Serves a client that pauses before each message. Returns how that ended, and when.
fn serve(
    exports: NamedExports,
    limits: Limits,
    pause: Duration,
    says: impl Iterator<Item = Vec<u8>> + 'static,
) -> (CloseReason, Duration) {
    let clock = Clock::default();
    let server = Server::on_runtime(clock.clone(), Arc::new(exports)).limits(limits);
    let client = Slow {
        clock: clock.clone(),
        pause,
        next: Duration::ZERO,
        says: Box::new([FLAGS.to_vec()].into_iter().chain(says)),
        saying: VecDeque::new(),
    };
    let mut serving = pin!(server.serve_one(client, Peer::Other));
    let cx = &mut Context::from_waker(Waker::noop());
    while clock.now() < Duration::from_secs(24 * 60 * 60) {
        if let Poll::Ready(ending) = serving.as_mut().poll(cx) {
            return (ending.unwrap(), clock.now());
        }
        clock.advance(Duration::from_millis(50));
    }
    panic!("it did not end");
}

fn is_timeout(ending: &CloseReason) -> bool {
    matches!(ending, CloseReason::Negotiation(NegotiationError::Io(error))
        if error.kind() == io::ErrorKind::TimedOut)
}

#[test]
fn a_slow_client_can_ask_about_five_thousand_exports() {
    // B-006, B-007. nbdinfo behaves so: over TCP it takes a fifth of a second for each export.
    let names: Vec<String> = (0..5_000).map(|n| format!("export {n}")).collect();
    let mut exports = NamedExports::new();
    for name in &names {
        let name = ExportName::new(name.clone()).unwrap();
        exports = exports.with(name, Arc::new(Memory::new(512)));
    }
    let asked = names.into_iter().flat_map(|name| questions(&name));
    let says = [list()].into_iter().chain(asked).chain([abort()]);
    let pause = Duration::from_millis(110);
    let (ending, _) = serve(exports, Limits::default(), pause, says);
    assert!(matches!(ending, CloseReason::Aborted), "{ending}");
}

#[test]
fn a_client_that_is_silent_after_a_reply_times_out_soon() {
    // S-014, H-041
    let says = [list(), list()].into_iter().chain(std::iter::from_fn(|| {
        Some(b"IHAVEOPT"[..1].to_vec()) // never a whole option
    }));
    let pause = Duration::from_secs(7);
    let (ending, after) = serve(NamedExports::new(), Limits::default(), pause, says);
    assert!(is_timeout(&ending), "{ending}");
    assert!((21..=41).contains(&after.as_secs()), "{after:?}");
}

#[test]
fn a_client_that_asks_for_ever_times_out_some_day() {
    // S-014, B-007
    let limits = Limits {
        options: u32::MAX,
        ..Limits::default()
    };
    let says = std::iter::repeat_with(list);
    let pause = Duration::from_secs(7);
    let (ending, after) = serve(NamedExports::new(), limits, pause, says);
    assert!(is_timeout(&ending), "{ending}");
    assert!((1_800..=1_810).contains(&after.as_secs()), "{after:?}");
}
