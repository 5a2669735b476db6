//! Asynchronous exports, whose requests are futures that the connection's task polls.

use super::{
    Server,
    commands::exercise,
    support::{ENTERED, GO, Running, eventually, expect, modes, pattern, reply, small, soon},
};
use interop::Peer;
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Errno, Error};
use nbd_io::{
    AsyncExport, AsyncExports, Export, Listing, Memory, Offer, ReadData, Unavailable, ZeroMode,
    bytes::Bytes,
};
use nbd_proto::{ExportName, Failure, TransmissionFlags, meta::Extent, server::Limits};
use std::{
    collections::HashSet,
    future::poll_fn,
    io::{Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

/// Tasks that wait for a number to be reached.
#[derive(Default)]
struct Gate(Mutex<(usize, Vec<Waker>)>);

impl Gate {
    fn add(&self, number: usize) {
        let wakers = {
            let mut state = self.0.lock().unwrap();
            state.0 += number;
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn number(&self) -> usize {
        self.0.lock().unwrap().0
    }

    async fn reaches(&self, number: usize) {
        poll_fn(|cx| {
            let mut state = self.0.lock().unwrap();
            if state.0 >= number {
                return Poll::Ready(());
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// No read is done before so many have begun.
struct Together {
    wanted: usize,
    begun: Gate,
    /// Futures that are there, and the largest number that there was.
    present: AtomicUsize,
    most: AtomicUsize,
}

impl Together {
    fn new(wanted: usize) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            begun: Gate::default(),
            present: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }
}

/// A future that is there.
struct Present<'a>(&'a Together);

impl<'a> Present<'a> {
    fn new(together: &'a Together) -> Self {
        let present = together.present.fetch_add(1, Ordering::SeqCst) + 1;
        together.most.fetch_max(present, Ordering::SeqCst);
        Self(together)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.present.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsyncExport for Together {
    fn size(&self) -> u64 {
        64 << 20
    }

    async fn read(&self, _: u64, len: usize) -> Result<ReadData, Failure> {
        let _present = Present::new(self);
        self.begun.add(1);
        self.begun.reaches(self.wanted).await;
        Ok(vec![7; len].into())
    }

    /// The last block is at hand.
    fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData, Failure>> {
        (offset + len as u64 == self.size()).then(|| Ok(vec![8; len].into()))
    }
}

/// A connection that has entered, with the requests that it is to send.
fn enter(running: &Running, requests: &[u8]) -> std::os::unix::net::UnixStream {
    let mut raw = running.raw();
    raw.write_all(GO).unwrap();
    raw.read_exact(&mut [0; ENTERED]).unwrap();
    raw.write_all(requests).unwrap();
    raw
}

fn reads(count: u8) -> Vec<u8> {
    (0..count).flat_map(|cookie| small(0, cookie)).collect()
}

/// Takes the replies to so many reads, in any order.
fn take_replies(raw: &mut impl Read, count: usize) {
    let mut answered = HashSet::new();
    for _ in 0..count {
        let mut said = [0; 16 + 512];
        raw.read_exact(&mut said).unwrap();
        assert_eq!(said, reply(0, said[15], &[7; 512])[..]);
        assert!(answered.insert(said[15]));
    }
}

#[test]
fn as_many_requests_are_carried_out_at_once_as_may_be_in_flight() {
    soon(|| {
        let together = Together::new(64);
        // They need no thread.
        let running = Running::new(Server::single_async(together.clone()).concurrency(1));
        let mut raw = enter(&running, &reads(64));
        take_replies(&mut raw, 64);
        // One that comes later finds the others done.
        raw.write_all(&small(0, 64)).unwrap();
        expect(&mut raw, &reply(0, 64, &[7; 512]));
        assert_eq!(together.begun.number(), 65);
        drop(raw);
        running.stop();
        assert_eq!(together.present.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn no_more_requests_are_begun_than_the_server_accepts_or_has_memory_for() {
    soon(|| {
        let accepted = |server: Server| {
            server.limits(Limits {
                accepted: 4,
                ..Limits::default()
            })
        };
        // One request may always be taken if there is memory left.
        let in_flight = |server: Server| server.in_flight(3 * 512 + 1);
        let limits: [&dyn Fn(Server) -> Server; 2] = [&accepted, &in_flight];
        for limit in limits {
            let together = Together::new(4);
            let running = Running::new(limit(Server::single_async(together.clone())));
            let mut raw = enter(&running, &reads(32));
            take_replies(&mut raw, 32);
            assert_eq!(together.most.load(Ordering::SeqCst), 4);
            drop(raw);
            running.stop();
        }
    });
}

#[test]
fn a_program_of_others_gets_its_requests_carried_out_at_once() {
    soon(|| {
        let Some(nbdcopy) = interop::require(Peer::NbdCopy) else {
            return;
        };
        let together = Together::new(64);
        let running = Running::new(Server::single_async(together.clone()));
        let uri = format!("nbd+unix:///?socket={}", running.unix.display());
        let options = ["--requests=64", "--request-size=262144"];
        nbdcopy
            .run([&options[..], &[&uri, "null:"]].concat())
            .expect_success();
        assert_eq!(together.most.load(Ordering::SeqCst), 64);
        running.stop();
    });
}

#[test]
fn data_at_hand_needs_no_future() {
    soon(|| {
        let together = Together::new(1);
        let running = Running::new(Server::single_async(together.clone()));
        for options in modes() {
            let client = running.connect(&options);
            let mut read = [0; 8192];
            client
                .read_exact_at(&mut read, client.size() - 8192)
                .unwrap();
            assert_eq!(read, [8; 8192]);
            client.disconnect().unwrap();
        }
        assert_eq!(together.begun.number(), 0);
        running.stop();
    });
}

#[test]
fn futures_are_dropped_when_their_connection_breaks_and_when_the_server_stops() {
    soon(|| {
        let together = Together::new(usize::MAX);
        let server = Server::single_async(together.clone()).grace(Duration::from_millis(10));
        let running = Running::new(server);
        let is_present = |count| together.present.load(Ordering::SeqCst) == count;
        // The answer to the first request is never taken, so that closing resets the connection.
        let mut requests = small(0, 9);
        requests[16..24].copy_from_slice(&((64_u64 << 20) - 512).to_be_bytes());
        requests.extend(reads(8));
        let raw = enter(&running, &requests);
        eventually(|| is_present(8));
        drop(raw);
        eventually(|| is_present(0));
        assert_eq!(running.ending(1), "the client closed the connection");

        let raw = enter(&running, &reads(8));
        eventually(|| is_present(8));
        running.stop();
        eventually(|| is_present(0));
        drop(raw);
    });
}

/// Memory that is far away: each request is polled twice.
pub(crate) struct Far(pub(crate) Memory);

async fn travel() {
    let mut polled = false;
    poll_fn(|cx: &mut Context<'_>| {
        if polled {
            return Poll::Ready(());
        }
        polled = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl AsyncExport for Far {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn flags(&self) -> TransmissionFlags {
        self.0.flags()
    }

    async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
        travel().await;
        let mut data = vec![0; len];
        self.0.read(offset, &mut data)?;
        Ok(data.into())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), Failure> {
        travel().await;
        self.0.write(offset, &data, fua)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, mode: ZeroMode) -> Result<(), Failure> {
        travel().await;
        self.0.write_zeroes(offset, len, mode)
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), Failure> {
        travel().await;
        self.0.trim(offset, len, fua)
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), Failure> {
        travel().await;
        self.0.cache(offset, len)
    }

    async fn flush(&self) -> Result<(), Failure> {
        travel().await;
        self.0.flush()
    }

    async fn allocation(&self, offset: u64, len: u64) -> Result<Vec<Extent>, Failure> {
        travel().await;
        Ok(vec![self.0.allocation(offset, len)?])
    }
}

#[test]
fn every_command_works_and_is_reported() {
    soon(|| {
        let reported = Arc::new(AtomicUsize::new(0));
        let count = reported.clone();
        let server = Server::single_async(Far(Memory::new(64 << 20)));
        let running = Running::new(server.on_request(move |outcome| {
            assert_eq!(outcome.failure, None);
            count.fetch_add(1, Ordering::SeqCst);
        }));
        for options in modes() {
            let client = running.connect(&options);
            exercise(&client);
            // A payload that comes in a buffer of its own.
            let data = pattern(2 << 20, 1);
            client.write_all_at(&data, 4096).unwrap();
            let mut read = vec![0; 2 << 20];
            client.read_exact_at(&mut read, 4096).unwrap();
            assert!(read == data);
            client
                .write_zeroes(0, client.size(), CommandFlags::NONE)
                .unwrap();
            client.disconnect().unwrap();
        }
        assert!(reported.load(Ordering::SeqCst) > 90);
        assert_eq!(running.stop(), ["the client disconnected"; 3]);
    });
}

#[test]
fn writes_of_many_lengths_at_once_arrive_as_they_were_sent() {
    soon(|| {
        let running = Running::new(Server::single_async(Far(Memory::new(64 << 20))));
        for options in modes() {
            let client = running.connect(&options);
            let threads: Vec<_> = (0..8_u32)
                .map(|n| {
                    let client = client.clone();
                    thread::spawn(move || writes_are_verified(&client, n))
                })
                .collect();
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
        }
        running.stop();
    });
}

/// Writes to a part of the disk that only this thread uses.
fn writes_are_verified(client: &Client, thread: u32) {
    let start = u64::from(thread) << 20;
    for (seed, len) in [1, 512, 4096, 16_383, 16_384, 65_536, 200_000]
        .into_iter()
        .enumerate()
    {
        let data = pattern(len, seed as u32 ^ thread << 8);
        client.write_all_at(&data, start).unwrap();
        let mut read = vec![0; len];
        client.read_exact_at(&mut read, start).unwrap();
        assert!(read == data, "{len} bytes");
    }
}

/// Fails and panics where it is asked to.
struct Broken;

impl AsyncExport for Broken {
    fn size(&self) -> u64 {
        1 << 20
    }

    async fn read(&self, offset: u64, _: usize) -> Result<ReadData, Failure> {
        travel().await;
        assert_eq!(offset, 0, "as it is meant to");
        Err(Failure {
            message: "a scratch".into(),
            offset: Some(7),
            ..Errno::Io.into()
        })
    }
}

#[test]
fn a_failure_ends_nothing_and_a_panic_ends_its_own_connection_only() {
    soon(|| {
        let running = Running::new(Server::single_async(Broken));
        for options in modes() {
            let client = running.connect(&options);
            for _ in 0..2 {
                let failed = client.read_exact_at(&mut [0; 512], 0);
                assert!(
                    matches!(failed, Err(Error::Failed { source, .. }) if source.errno == Errno::Io)
                );
            }
            let broken = running.connect(&options);
            assert!(broken.read_exact_at(&mut [0; 512], 512).is_err());
            assert!(client.read_exact_at(&mut [0; 512], 0).is_err());
            client.disconnect().unwrap();
        }
        let mut endings = running.stop();
        endings.sort_unstable();
        let mut expected = vec!["the client disconnected"; 3];
        expected.extend(["the export panicked"; 3]);
        assert_eq!(endings, expected);
    });
}

/// A lookup of any but the default export waits until the gate is open.
#[derive(Default)]
struct Catalogue {
    asked: Gate,
    open: Gate,
}

struct Found(Arc<Catalogue>, Arc<Memory>);

impl AsyncExports for Found {
    async fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        match name.as_str() {
            "panic" => panic!("as it is meant to"),
            "none" => return Err(Unavailable::unknown()),
            "" => {}
            _ => {
                self.0.asked.add(1);
                self.0.open.reaches(1).await;
            }
        }
        Ok(Offer::new(self.1.clone()))
    }

    async fn list(&self) -> Vec<Listing> {
        travel().await;
        vec![Listing::new(ExportName::new("old").unwrap())]
    }
}

#[test]
fn an_asynchronous_lookup_that_waits_holds_up_no_other_client() {
    soon(|| {
        let catalogue = Arc::new(Catalogue::default());
        let disk = Arc::new(Memory::new(1 << 20));
        let server = Server::new_async(Found(catalogue.clone(), disk));
        // The lookup takes as long as the test wants it to.
        let running = Running::new(server.handshake_timeout(None));
        let named = |export| ConnectOptions::new().export(ExportName::new(export).unwrap());
        let present = running.connect(&ConnectOptions::new());
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let (raw, old) = (running.raw(), named("old").negotiation_timeout(None));
                thread::spawn(move || old.connect_over(raw, None).unwrap().disconnect().unwrap())
            })
            .collect();
        eventually(|| catalogue.asked.number() == 8);
        for _ in 0..100 {
            present.write_all_at(&[1; 512], 0).unwrap();
            present.read_exact_at(&mut [0; 512], 0).unwrap();
        }
        assert!(named("none").connect_over(running.raw(), None).is_err());
        assert!(named("panic").connect_over(running.raw(), None).is_err());
        assert!(waiting.iter().all(|thread| !thread.is_finished()));
        catalogue.open.add(1);
        for thread in waiting {
            thread.join().unwrap();
        }
        present.disconnect().unwrap();
        let endings = running.stop();
        let panicked = endings
            .iter()
            .filter(|ending| *ending == "the export panicked");
        assert_eq!((endings.len(), panicked.count()), (11, 1));
    });
}
