//! Asynchronous exports, whose requests are futures that the connection's task polls.

use super::{
    Server,
    support::{ENTERED, GO, Running, expect, small, soon},
};
use nbd_io::{AsyncExport, ReadData};
use nbd_proto::Failure;
use std::{
    collections::HashSet,
    future::poll_fn,
    io::{Read, Write},
    sync::{Arc, Mutex},
    task::{Poll, Waker},
};

/// No read is done before so many have begun.
struct Together {
    wanted: usize,
    begun: Mutex<(usize, Vec<Waker>)>,
}

impl Together {
    fn new(wanted: usize) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            begun: Mutex::default(),
        })
    }
}

impl AsyncExport for Together {
    fn size(&self) -> u64 {
        1 << 20
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        let wakers = {
            let mut begun = self.begun.lock().unwrap();
            begun.0 += 1;
            if begun.0 == self.wanted {
                std::mem::take(&mut begun.1)
            } else {
                Vec::new()
            }
        };
        wakers.into_iter().for_each(Waker::wake);
        poll_fn(|cx| {
            let mut begun = self.begun.lock().unwrap();
            if begun.0 >= self.wanted {
                return Poll::Ready(());
            }
            begun.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        Ok(vec![u8::try_from(offset >> 9).unwrap(); len].into())
    }
}

#[test]
fn as_many_requests_are_carried_out_at_once_as_may_be_in_flight() {
    soon(|| {
        let together = Together::new(64);
        // One thread would be enough.
        let running = Running::new(Server::single_async(together.clone()).concurrency(1));
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.read_exact(&mut [0; ENTERED]).unwrap();
        let requests: Vec<u8> = (0..64).flat_map(|cookie| small(0, cookie)).collect();
        raw.write_all(&requests).unwrap();
        let mut answered = HashSet::new();
        for _ in 0..64 {
            let mut reply = [0; 16 + 512];
            raw.read_exact(&mut reply).unwrap();
            assert_eq!(reply[..8], *b"\x67\x44\x66\x98\0\0\0\0");
            assert!(answered.insert(reply[15]));
        }
        // Those that come later find the others done.
        raw.write_all(&small(0, 64)).unwrap();
        let mut reply = vec![0; 16];
        reply.copy_from_slice(b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x40");
        expect(&mut raw, &reply);
        expect(&mut raw, &[0; 512]);
        drop(raw);
        running.stop();
    });
}
