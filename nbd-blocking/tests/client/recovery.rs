//! Connections that are lost and made again.

mod events;
mod members;
mod policy;
mod unflushed;

use crate::support::{
    bytes,
    host::{Disk, Host, disk},
    pause,
    script::{Negotiation, Peer},
    spawn, within,
};
use nbd_blocking::{
    Client, CommandFlags, ConnectOptions, ConnectionState, Errno, Error, Reconnect,
};
use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

const SIZE: usize = 1 << 20;

/// Writes and reads of each of several threads.
const ROUNDS: u8 = 100;

fn negotiation() -> Negotiation {
    Negotiation {
        size: SIZE as u64,
        ..Negotiation::simple()
    }
}

fn policy() -> Reconnect {
    Reconnect::new().delay(Duration::from_millis(2), Duration::from_millis(20))
}

fn options(policy: Reconnect) -> ConnectOptions {
    ConnectOptions::new().reconnect(Some(policy))
}

/// A server that can be killed.
struct Machine {
    host: Host,
    disk: Disk,
    connections: Arc<Mutex<Vec<UnixStream>>>,
    /// Every client is refused.
    down: Arc<AtomicBool>,
}

impl Machine {
    fn start() -> Self {
        Self::start_with(|_, _| true)
    }

    /// A server that ends when `lives` returns `false` for a connection and the number of a request
    /// on it.
    fn start_with(lives: impl Fn(usize, usize) -> bool + Send + Sync + 'static) -> Self {
        let disk = disk(SIZE);
        let connections = Arc::<Mutex<Vec<UnixStream>>>::default();
        let down = Arc::<AtomicBool>::default();
        let (served, open, closed) = (disk.clone(), connections.clone(), down.clone());
        let host = Host::start(move |number, peer| {
            if closed.load(Ordering::SeqCst) {
                return Ok(());
            }
            let stream = peer.stream.try_clone()?;
            open.lock().expect("no panics").push(stream);
            peer.try_negotiate(&negotiation())?;
            let mut count = 0;
            while lives(number, count) && peer.serve_one(number, &served)? {
                count += 1;
            }
            if !lives(number, count) {
                peer.try_request()?;
                kill(&open, &served);
            }
            // There is another file descriptor.
            peer.stream.shutdown(Shutdown::Both)
        });
        Self {
            host,
            disk,
            connections,
            down,
        }
    }

    /// Ends every connection, and loses everything unflushed.
    fn kill(&self) {
        kill(&self.connections, &self.disk);
    }

    fn connect(&self, options: &ConnectOptions) -> Client {
        options.connect(&self.host.uri()).expect("entered")
    }
}

fn kill(connections: &Mutex<Vec<UnixStream>>, disk: &Disk) {
    // No request is in the middle.
    let mut disk = disk.lock().expect("no panics");
    for stream in connections.lock().expect("no panics").drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
    disk.crash();
}

fn read(client: &Client, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0xa5; len];
    client.read_exact_at(&mut data, offset).expect("read");
    data
}

#[test]
fn unanswered_requests_are_retried() {
    within(10, || {
        // It ends at the first request of the first connection, and at the third of the second.
        let machine = Machine::start_with(|number, count| match number {
            0 => false,
            1 => count < 2,
            _ => true,
        });
        let client = machine.connect(&options(policy()));
        client.write_all_at(&[7; 512], 0).expect("written");
        assert_eq!(read(&client, 0, 512), [7; 512]);
        client.flush().expect_err("it is over, and there again");
        assert!(matches!(client.state(), ConnectionState::Connected));
        assert_eq!(machine.host.count(), 3);
        client.disconnect().expect("the session ends well");
        assert!(client.is_lost());
    });
}

#[test]
fn threads_in_the_middle_of_many_requests_do_not_notice() {
    within(30, || {
        for connections in [1, 3] {
            let machine = Arc::new(Machine::start());
            let options = options(policy().keep_unflushed(1 << 20)).connections(connections);
            let client = machine.connect(&options);
            let done = Arc::new(AtomicUsize::new(0));
            let workers: Vec<_> = (0..4_u64)
                .map(|number| {
                    let (client, done) = (client.clone(), done.clone());
                    spawn(move || {
                        for round in 0..ROUNDS {
                            let at = number * 65536 + u64::from(round % 5) * 10_000;
                            let data = vec![round; 5000];
                            client.write_all_at(&data, at).expect("written");
                            assert_eq!(read(&client, at, 5000), data, "{number}");
                            if round % 10 == 0 {
                                client.flush().expect("flushed");
                            }
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            let all = 4 * usize::from(ROUNDS);
            for kill in 1..=20 {
                while done.load(Ordering::SeqCst) < kill * all / 21 {
                    assert!(!workers.iter().all(thread::JoinHandle::is_finished));
                    thread::sleep(Duration::from_micros(100));
                }
                machine.kill();
            }
            for worker in workers {
                worker.join().expect("no worker fails");
            }
            client.flush().expect("flushed");
            let disk = machine.disk.lock().expect("no panics");
            assert_eq!(disk.stable[3 * 65536 + 40_000], ROUNDS - 1);
        }
    });
}

#[test]
fn flushed_writes_stay_and_after_a_loss_flushes_fail_until_a_new_epoch() {
    // C-192, S-220
    within(10, || {
        let machine = Machine::start();
        let first = machine.connect(&options(policy()));
        let second = first.clone();
        first.write_all_at(&[1; 10], 0).expect("written");
        first.flush().expect("flushed");
        first.write_all_at(&[2; 10], 512).expect("written");
        machine.kill();
        assert_eq!(read(&second, 0, 10), [1; 10]);
        assert_eq!(read(&second, 512, 10), [0; 10], "it is gone");
        let next = first.new_epoch();
        for client in [&first, &second, &first.clone(), &first] {
            let error = client.flush().expect_err("it may be lost");
            assert!(matches!(error, Error::Unflushed), "{error:?}");
            next.flush().expect("nothing was lost since");
        }
        let first = next;
        // No loss counts for data that was not written, or was flushed, or was forced (FUA).
        first.write_all_at(&[1; 10], 0).expect("written");
        first.flush().expect("flushed");
        let fua = CommandFlags::FUA;
        first.write_all_at_with(&[3; 10], 0, fua).expect("written");
        machine.kill();
        assert_eq!(read(&first, 0, 10), [3; 10]);
        first.flush().expect("nothing was lost");
    });
}

#[test]
fn kept_writes_are_replayed_before_anything_else() {
    within(10, || {
        let machine = Machine::start();
        let client = machine.connect(&options(policy().keep_unflushed(1 << 20)));
        client.write_all_at(&[1; 600], 0).expect("written");
        client.write_all_at(&[2; 10], 5).expect("written");
        client
            .write_zeroes(100, 50, CommandFlags::NONE)
            .expect("written");
        // Older ones would overwrite it.
        let fua = CommandFlags::FUA;
        client
            .write_all_at_with(&[3; 10], 10, fua)
            .expect("written");
        machine.kill();
        machine.disk.lock().expect("no panics").log.clear();
        let found = read(&client, 0, 600);
        let mut expected = vec![1; 600];
        expected[5..15].fill(2);
        expected[100..150].fill(0);
        expected[10..20].fill(3);
        assert_eq!(found, expected);
        let commands = machine.disk.lock().expect("no panics").commands();
        // The first is left in three parts between later ones.
        assert_eq!(commands, [1, 1, 1, 1, 6, 1, 0]);
        client.flush().expect("nothing was lost");
        // A flushed write is not kept any more.
        machine.kill();
        machine.disk.lock().expect("no panics").log.clear();
        assert_eq!(read(&client, 0, 600), expected);
        assert_eq!(machine.disk.lock().expect("no panics").commands(), [0]);
    });
}

#[test]
fn all_connections_are_restored_when_one_is_lost() {
    within(10, || {
        let machine = Machine::start();
        let client = machine.connect(&options(policy()).connections(3));
        client.write_all_at(&[1; 512], 0).expect("written");
        let one = machine.connections.lock().expect("no panics").remove(0);
        one.shutdown(Shutdown::Both).expect("it is open");
        while machine.host.count() < 6 || client.connections() < 3 {
            read(&client, 0, 512);
        }
        assert_eq!(machine.host.count(), 6);
        let error = client.flush().expect_err("that is not known");
        assert!(matches!(error, Error::Unflushed), "{error:?}");
        client.disconnect().expect("the session ends well");
    });
}

#[test]
fn a_connection_that_joins_others_has_one_of_them_answer_first() {
    // C-192
    within(10, || {
        let machine = Machine::start();
        let client = machine.connect(&options(policy().keep_unflushed(1 << 20)).connections(2));
        client.write_all_at(&[1; 512], 0).expect("written");
        machine.kill();
        machine.disk.lock().expect("no panics").log.clear();
        assert_eq!(read(&client, 0, 512), [1; 512]);
        while client.connections() < 2 {
            assert_eq!(read(&client, 0, 512), [1; 512]);
        }
        let log = machine.disk.lock().expect("no panics").log.clone();
        // The replay goes over the first connection, and so does a flush before the other one is
        // used.
        let (first, _) = log[0];
        let by_first: Vec<_> = log.iter().filter(|(_, command)| *command != 0).collect();
        assert_eq!(by_first, [&(first, 1), &(first, 3)], "{log:?}");
    });
}

#[test]
fn a_queue_ends_with_its_connection_and_a_new_one_works() {
    within(10, || {
        for keeps in [false, true] {
            let machine = Machine::start();
            let limit = if keeps { 1 << 20 } else { 0 };
            let client = machine.connect(&options(policy().keep_unflushed(limit)));
            let mut queue = client.queue();
            let none = CommandFlags::NONE;
            queue.write(vec![1; 512], 0, none).expect("submitted");
            let done = queue.complete().expect("answered").expect("one");
            done.result.expect("written");
            machine.kill();
            queue.read(vec![0; 512], 0).expect("submitted");
            let error = queue.complete().expect_err("the connection is lost");
            assert!(error.is_lost(), "{error:?}");
            assert!(queue.flush().expect_err("it is over").is_lost());
            let mut queue = client.queue();
            queue.read(vec![0; 512], 0).expect("submitted");
            let done = queue.complete().expect("answered").expect("one");
            let found = done.into_buffer().expect("read");
            assert_eq!(found, vec![u8::from(keeps); 512]);
            // Lost writes are not on stable storage, for a new queue neither.
            for (mut queue, promises) in [(queue, keeps), (client.new_epoch().queue(), true)] {
                queue.flush().expect("submitted");
                let done = queue.complete().expect("answered").expect("one");
                match done.result {
                    Ok(()) => assert!(promises),
                    Err(Error::Unflushed) => assert!(!promises),
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
    });
}

#[test]
fn a_reply_counts_when_it_arrives_whichever_caller_reads_it() {
    // C-192
    within(10, || {
        let machine = Machine::start();
        let client = machine.connect(&options(policy()));
        let mut queue = client.queue();
        let none = CommandFlags::NONE;
        queue.write(vec![7; 512], 0, none).expect("submitted");
        queue.send().expect("sent");
        // This also reads replies that have come for the queue.
        assert_eq!(read(&client, 0, 512), [7; 512]);
        machine.kill();
        assert_eq!(read(&client, 0, 512), [0; 512], "it is gone");
        let done = queue.complete().expect("it has come").expect("one");
        done.result.expect("it was answered before the crash");
        let error = client.flush().expect_err("the loss is reported");
        assert!(matches!(error, Error::Unflushed), "{error:?}");
    });
}

/// Holds back the reply to the first write of the first connection, which is cut then.
fn cut_after(peer: &mut Peer, number: usize, disk: &Disk) -> io::Result<()> {
    loop {
        let (request, payload) = peer.try_request()?;
        let data = disk.lock().expect("no panics");
        let data = { data }.carry_out(number, request, &payload);
        if number == 0 && request.command == 1 {
            return Ok(());
        }
        peer.try_says(bytes::sr(0, request.cookie, data))?;
    }
}

#[test]
fn changes_of_the_same_bytes_stay_in_the_order_in_which_they_were_begun() {
    within(15, || {
        for seed in 0..20_u8 {
            let disk = disk(SIZE);
            let served = disk.clone();
            let host = Host::start(move |number, peer| {
                peer.try_negotiate(&negotiation())?;
                cut_after(peer, number, &served)
            });
            let client = options(policy()).connect(&host.uri()).expect("entered");
            let first = {
                let client = client.clone();
                spawn(move || client.write_all_at(&[1; 1000], 0).expect("written"))
            };
            // The first write is there, and will be made again.
            while disk.lock().expect("no panics").log.is_empty() {
                thread::yield_now();
            }
            if seed % 2 == 0 {
                thread::sleep(Duration::from_micros(u64::from(seed) * 20));
            }
            client.write_all_at(&[2; 1000], 500).expect("written");
            first.join().expect("no panics");
            let disk = disk.lock().expect("no panics");
            assert_eq!(disk.contents[500..1500], [2; 1000]);
            assert_eq!(disk.contents[..500], [1; 500]);
        }
    });
}

#[test]
fn a_server_that_shuts_down_is_left_whichever_caller_got_eshutdown() {
    // C-188
    within(10, || {
        for comes_back in [true, false] {
            let (sender, receiver) = mpsc::channel();
            let sender = Mutex::new(sender);
            let disk = disk(SIZE);
            let host = Host::start(move |number, peer| {
                peer.try_negotiate(&negotiation())?;
                if number > 0 {
                    return peer.serve(number, &disk);
                }
                let (request, _) = peer.try_request()?;
                peer.try_says(bytes::sr(108, request.cookie, []))?;
                let (last, _) = peer.try_request()?;
                sender
                    .lock()
                    .expect("no panics")
                    .send(last.command)
                    .expect("it is waited for");
                Ok(())
            });
            let options = ConnectOptions::new().reconnect(comes_back.then(policy));
            let client = options.connect(&host.uri()).expect("entered");
            let mut queue = client.queue();
            queue.read(vec![0; 512], 0).expect("sent");
            // This does not wait, so it cannot send NBD_CMD_DISC either.
            let completion = loop {
                if let Some(completion) = queue.try_complete().expect("it is there") {
                    break completion;
                }
                thread::yield_now();
            };
            let error = completion.result.expect_err("it is refused");
            assert_eq!(error.errno(), Some(Errno::Shutdown));
            let error = queue
                .read(vec![0; 512], 0)
                .expect_err("nothing more is sent");
            assert!(error.is_lost(), "{error:?}");

            let read = client.read_exact_at(&mut [0; 512], 0);
            if comes_back {
                read.expect("there is another connection");
            } else {
                let error = read.expect_err("nothing more is sent");
                assert!(error.is_lost(), "{error:?}");
                assert!(client.is_lost());
            }
            assert_eq!(
                receiver.recv().expect("the server reports it"),
                2,
                "NBD_CMD_DISC"
            );
        }
    });
}

#[test]
fn callers_that_wait_while_a_queue_disconnects_go_on_afterwards() {
    within(10, || {
        let (sender, receiver) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let ends = Mutex::new((sender, left));
        let disk = disk(SIZE);
        let host = Host::start(move |number, peer| {
            peer.try_negotiate(&negotiation())?;
            if number > 0 {
                return peer.serve(number, &disk);
            }
            let (request, _) = peer.try_request()?;
            peer.try_says(bytes::sr(108, request.cookie, []))?;
            peer.try_request()?;
            let (sender, left) = &*ends.lock().expect("no panics");
            sender.send(()).expect("it is waited for");
            left.recv().expect("the test lets it go");
            Ok(())
        });
        let client = options(policy()).connect(&host.uri()).expect("entered");
        let mut queue = client.queue();
        let leaver = spawn(move || {
            queue.read(vec![0; 512], 0).expect("sent");
            let completion = queue.complete().expect("it is there");
            let error = completion.expect("one").result.expect_err("it is refused");
            assert_eq!(error.errno(), Some(Errno::Shutdown));
        });
        receiver.recv().expect("the client disconnects");
        let reader = spawn(move || client.read_exact_at(&mut [0; 512], 0).expect("read"));
        // By now it waits, or it comes later and need not wait.
        pause(100);
        leave.send(()).expect("it is waited for");
        leaver.join().expect("it has left");
        reader.join().expect("there is another connection");
    });
}
