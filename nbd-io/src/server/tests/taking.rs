//! Clients that do not read their replies, and the consequences for others.

use super::{
    clock::Clock,
    disconnect::{DISC, GO},
};
use crate::{
    AsyncExport, Export, Memory, NamedExports, ReadData, Unblock,
    runtime::Runtime as _,
    server::{CloseReason, Peer, Server},
    transport::Transport,
};
use nbd_proto::{Failure, TransmissionFlags};
use std::{
    future::pending,
    io::{self, IoSlice, IoSliceMut, Read},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

const LEN: u32 = 4 << 20;

/// A client that sends all its bytes, and reads a limited number.
struct Client<'a> {
    says: &'a [u8],
    takes: usize,
    heard: &'a mut Vec<u8>,
    /// It closes its side when it has sent everything.
    closes: bool,
}

impl Transport for Client<'_> {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.says.is_empty() && !self.closes {
            return Poll::Pending;
        }
        Poll::Ready(self.says.read_vectored(bufs))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let room = self.takes - self.heard.len();
        let bytes = bufs.iter().flat_map(|buf| buf.iter().copied());
        let before = self.heard.len();
        self.heard.extend(bytes.take(room));
        match self.heard.len() - before {
            0 => Poll::Pending,
            n => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn closes_gracefully_on_drop(&self) -> bool {
        true
    }
}

fn request(command: u8, cookie: u8, len: u32) -> Vec<u8> {
    let mut request = Vec::from(*b"\x25\x60\x95\x13\0\0\0");
    request.extend([command, 0, 0, 0, 0, 0, 0, 0, cookie]);
    request.extend([0; 8]);
    request.extend(len.to_be_bytes());
    request
}

fn reply(errno: u8, cookie: u8) -> [u8; 16] {
    let mut reply = *b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\0";
    (reply[7], reply[15]) = (errno, cookie);
    reply
}

/// The end of a connection, and its time.
fn end(
    clock: &Clock,
    serving: impl Future<Output = io::Result<CloseReason>>,
) -> (CloseReason, Duration) {
    let mut serving = pin!(serving);
    let (start, cx) = (clock.now(), &mut Context::from_waker(Waker::noop()));
    loop {
        let passed = clock.now() - start;
        if let Poll::Ready(ending) = serving.as_mut().poll(cx) {
            return (ending.unwrap(), passed);
        }
        assert!(passed < Duration::from_secs(60), "it did not end");
        clock.advance(Duration::from_millis(100));
    }
}

#[test]
fn a_request_that_finds_no_memory_for_long_fails_and_the_connection_goes_on() {
    // H-052
    let clock = Clock::default();
    let disk = Arc::new(Memory::new(2 * u64::from(LEN)));
    // A hole would need no memory.
    disk.write(0, &[1; LEN as usize], false).unwrap();
    let asynchronous = Unblock::new(clock.clone(), disk.clone());
    for exports in [
        NamedExports::single(disk),
        NamedExports::single_async(asynchronous),
    ] {
        a_request_that_finds_no_memory_fails(&clock, exports);
    }
}

fn a_request_that_finds_no_memory_fails(clock: &Clock, exports: NamedExports) {
    let server = Server::on_runtime(clock.clone(), Arc::new(exports)).memory(LEN.into());
    // It has asked for much, and reads only the beginning of the reply.
    let says = [GO, &request(0, 1, LEN)].concat();
    let hog = Client {
        says: &says,
        takes: 1000,
        heard: &mut Vec::new(),
        closes: false,
    };
    let mut hog = pin!(server.serve_one(hog, Peer::Other));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(hog.as_mut().poll(cx).is_pending());

    let payload = vec![1; LEN as usize];
    for first in [
        request(0, 2, LEN),
        [request(1, 2, LEN), payload.clone()].concat(),
    ] {
        let says = [GO, &first, &request(0, 3, 512), DISC].concat();
        let mut heard = Vec::new();
        let client = Client {
            says: &says,
            takes: usize::MAX,
            heard: &mut heard,
            closes: false,
        };
        let (ending, after) = end(clock, server.serve_one(client, Peer::Other));
        assert!(matches!(ending, CloseReason::Disconnected), "{ending}");
        assert_eq!(after.as_secs(), 10, "{after:?}");
        // ENOMEM, and the replies to later requests.
        let expected = [&reply(12, 2)[..], &reply(0, 3), &[1; 512]].concat();
        assert!(heard.ends_with(&expected));
        assert!(hog.as_mut().poll(cx).is_pending());
    }
}

#[test]
fn a_client_that_disconnects_without_reading_its_replies_is_not_waited_for_long() {
    // S-234
    let clock = Clock::default();
    let disk = Arc::new(Memory::new(LEN.into()));
    let exports = Arc::new(NamedExports::single(disk));
    let server = Server::on_runtime(clock.clone(), exports);
    // Too little for backpressure: the server reads on.
    let says = [GO, &request(0, 1, 252 << 10), DISC].concat();
    let client = Client {
        says: &says,
        takes: 1000,
        heard: &mut Vec::new(),
        closes: false,
    };
    let (ending, after) = end(&clock, server.serve_one(client, Peer::Other));
    assert!(matches!(ending, CloseReason::Disconnected), "{ending}");
    assert_eq!(after.as_secs(), 5, "{after:?}");
}

/// Zeroes that are known at once, and a future that never ends for anything else.
struct Hanging;

impl AsyncExport for Hanging {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn flags(&self) -> TransmissionFlags {
        TransmissionFlags::SEND_FLUSH
    }

    async fn read(&self, _: u64, _: usize) -> Result<ReadData, Failure> {
        pending().await
    }

    fn read_now(&self, _: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        (len > 512).then(|| Ok(ReadData::zeroes(len)))
    }
}

#[test]
fn futures_of_a_client_that_closes_its_side_are_waited_for_as_long_as_it_may_still_read() {
    let clock = Clock::default();
    let exports = NamedExports::single_async(Hanging);
    let server = Server::on_runtime(clock.clone(), Arc::new(exports));
    let says = [GO, &request(0, 1, 512)].concat();
    let client = Client {
        says: &says,
        takes: usize::MAX,
        heard: &mut Vec::new(),
        closes: true,
    };
    let (ending, after) = end(&clock, server.serve_one(client, Peer::Other));
    assert!(matches!(ending, CloseReason::Left), "{ending}");
    assert_eq!(after.as_secs(), 5, "{after:?}");

    // One that has disconnected is waited for until the server stops.
    let says = [GO, &request(0, 1, 512), DISC].concat();
    let client = Client {
        says: &says,
        takes: usize::MAX,
        heard: &mut Vec::new(),
        closes: false,
    };
    let mut serving = pin!(server.serve_one(client, Peer::Other));
    let cx = &mut Context::from_waker(Waker::noop());
    for _ in 0..600 {
        assert!(serving.as_mut().poll(cx).is_pending());
        clock.advance(Duration::from_millis(100));
    }
    server.stopper().stop();
    let (ending, after) = end(&clock, serving);
    assert!(
        matches!(ending, CloseReason::Disconnected | CloseReason::Stopped),
        "{ending}"
    );
    assert!((5..7).contains(&after.as_secs()), "{after:?}");
}

#[test]
fn zeroes_of_an_asynchronous_export_that_are_at_hand_need_no_memory() {
    let clock = Clock::default();
    let exports = NamedExports::single_async(Hanging);
    let server = Server::on_runtime(clock.clone(), Arc::new(exports)).memory(0);
    let says = [GO, &request(0, 1, LEN), &request(0, 2, 1024), DISC].concat();
    let mut heard = Vec::new();
    let client = Client {
        says: &says,
        takes: usize::MAX,
        heard: &mut heard,
        closes: false,
    };
    let (ending, after) = end(&clock, server.serve_one(client, Peer::Other));
    assert!(matches!(ending, CloseReason::Disconnected), "{ending}");
    assert_eq!(after, Duration::ZERO);
    let expected = [
        &reply(0, 1)[..],
        &vec![0; LEN as usize],
        &reply(0, 2),
        &[0; 1024],
    ]
    .concat();
    assert!(heard.ends_with(&expected));
}
