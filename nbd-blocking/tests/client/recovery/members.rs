//! The choice of connections while some of them are lost, silent or about to end.

use super::{negotiation, options, policy, read};
use crate::support::{
    bytes,
    host::{Host, disk},
    script::Peer,
    spawn, within,
};
use nbd_blocking::{
    Client, CommandFlags, ConnectOptions, ConnectionState, Errno, Error, Lost, Reconnect,
};
use std::{
    io,
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

const SIZE: usize = 1 << 20;

/// `NBD_FLAG_READ_ONLY`.
const READ_ONLY: u16 = 2;

/// Serves connections by their number, except those that are silent from the start, which end only
/// with the test.
fn host(flags: u16, silent: fn(usize) -> bool) -> (Host, Arc<Mutex<Vec<UnixStream>>>) {
    let open = Arc::<Mutex<Vec<UnixStream>>>::default();
    let (streams, disk) = (open.clone(), disk(SIZE));
    let host = Host::start(move |number, peer| {
        let stream = peer.stream.try_clone()?;
        streams.lock().expect("no panics").push(stream);
        if silent(number) {
            return Ok(()); // there is another file descriptor
        }
        let mut negotiation = negotiation();
        negotiation.flags |= flags;
        peer.try_negotiate(&negotiation)?;
        peer.serve(number, &disk)
    });
    (host, open)
}

fn cut(open: &Mutex<Vec<UnixStream>>, number: usize) {
    let open = open.lock().expect("no panics");
    open[number].shutdown(Shutdown::Both).expect("it is open");
}

/// Without timeouts, only a reply or a disconnect ends an attempt.
fn without_timeouts(policy: Reconnect) -> ConnectOptions {
    options(policy)
        .connect_timeout(None)
        .negotiation_timeout(None)
}

#[test]
fn a_healthy_connection_serves_while_a_silent_one_is_dialed() {
    within(20, || {
        // Of a writable export all connections are given up, and one comes back.
        for (flags, first_silent) in [(READ_ONLY, 3), (0, 4)] {
            let silent = if flags == 0 {
                |number| number >= 4
            } else {
                |number| number >= 3
            };
            let (host, open) = host(flags, silent);
            let options = without_timeouts(policy()).connections(3);
            let client = options.connect(&host.uri()).expect("entered");
            cut(&open, 0);
            while host.count() <= first_silent {
                read(&client, 0, 512);
            }
            for _ in 0..100 {
                read(&client, 0, 512);
            }
            assert!(matches!(client.state(), ConnectionState::Connected));
            client.disconnect().expect("the session ends well");
        }
    });
}

#[test]
fn a_dead_connection_that_no_call_uses_is_noticed_and_replaced() {
    within(20, || {
        let (host, open) = host(READ_ONLY, |_| false);
        let options = options(policy()).connections(3);
        let client = options.connect(&host.uri()).expect("entered");
        // A lone caller uses the first.
        cut(&open, 2);
        while host.count() < 4 || client.connections() < 3 {
            read(&client, 0, 512);
        }
        cut(&open, 3);
        while client.connections() == 3 {
            thread::yield_now(); // the query alone notices the loss
        }
        assert!(matches!(client.state(), ConnectionState::Connected));
    });
}

/// Holds back the reply to a request at 4096 until it may go on, and refuses the next request.
fn shut_down(
    peer: &mut Peer,
    begun: &mpsc::Sender<()>,
    go_on: &mpsc::Receiver<()>,
) -> io::Result<u16> {
    let (held, _) = peer.try_request()?;
    assert_eq!(held.offset, 4096);
    let _ = begun.send(());
    let (refused, _) = peer.try_request()?;
    peer.try_says(bytes::sr(108, refused.cookie, []))?;
    let _ = go_on.recv();
    peer.try_says(bytes::sr(0, held.cookie, [7; 512]))?;
    Ok(peer.try_request()?.0.command)
}

/// A server that shuts down while it holds a request, and the last command that it received.
fn shutting_down() -> (
    Host,
    mpsc::Receiver<()>,
    mpsc::Sender<()>,
    mpsc::Receiver<u16>,
) {
    let (begun, has_begun) = mpsc::channel();
    let (go, go_on) = mpsc::channel();
    let (sender, receiver) = mpsc::channel();
    let (ends, disk) = (Mutex::new((begun, go_on, sender)), disk(SIZE));
    let host = Host::start(move |number, peer| {
        peer.try_negotiate(&negotiation())?;
        if number > 0 {
            return peer.serve(number, &disk);
        }
        let (begun, go_on, sender) = &*ends.lock().expect("no panics");
        let last = shut_down(peer, begun, go_on)?;
        let _ = sender.send(last);
        Ok(())
    });
    (host, has_begun, go, receiver)
}

fn held(client: &Client) -> thread::JoinHandle<Vec<u8>> {
    let client = client.clone();
    spawn(move || read(&client, 4096, 512))
}

#[test]
fn a_server_that_shuts_down_is_left_at_once_and_answers_held_requests() {
    // C-188
    within(20, || {
        for comes_back in [true, false] {
            let (host, has_begun, go, receiver) = shutting_down();
            let options = ConnectOptions::new().reconnect(comes_back.then(policy));
            let client = options.connect(&host.uri()).expect("entered");
            let held = held(&client);
            has_begun.recv().expect("it is there");
            let read = client.read_exact_at(&mut [0; 512], 0);
            if comes_back {
                read.expect("there is another connection");
                assert!(matches!(client.state(), ConnectionState::Connected));
                assert_eq!(client.connections(), 1);
            } else {
                let error = read.expect_err("it is refused");
                assert_eq!(error.errno(), Some(Errno::Shutdown));
                assert!(client.is_lost(), "{:?}", client.state());
            }
            // The held request still gets its reply.
            go.send(()).expect("it waits");
            assert_eq!(held.join().expect("no panics"), [7; 512]);
            assert_eq!(
                receiver.recv().expect("the server reports it"),
                2,
                "NBD_CMD_DISC"
            );
        }
    });
}

#[test]
fn a_queue_that_does_not_wait_notices_that_the_server_shuts_down() {
    // C-188
    within(20, || {
        for comes_back in [true, false] {
            let (host, has_begun, go, receiver) = shutting_down();
            let options = ConnectOptions::new().reconnect(comes_back.then(policy));
            let client = options.connect(&host.uri()).expect("entered");
            let held = held(&client);
            has_begun.recv().expect("it is there");
            let mut queue = client.queue();
            queue.read(vec![0; 512], 0).expect("submitted");
            let completion = loop {
                if let Some(completion) = queue.try_complete().expect("it is there") {
                    break completion;
                }
                thread::yield_now();
            };
            let error = completion.result.expect_err("it is refused");
            assert_eq!(error.errno(), Some(Errno::Shutdown));
            match client.state() {
                ConnectionState::Reconnecting { .. } => assert!(comes_back),
                ConnectionState::Over(_) => assert!(!comes_back),
                other => panic!("{other:?}"),
            }
            assert!(queue.flush().expect_err("nothing more is sent").is_lost());
            go.send(()).expect("it waits");
            assert_eq!(held.join().expect("no panics"), [7; 512]);
            drop(queue);
            assert_eq!(
                receiver.recv().expect("the server reports it"),
                2,
                "NBD_CMD_DISC"
            );
        }
    });
}

#[test]
fn the_last_attempt_is_made_when_the_time_is_over_and_not_a_pause_earlier() {
    within(10, || {
        let (host, open) = host(0, |number| number > 0);
        let (minute, limit) = (Duration::from_secs(60), Duration::from_millis(300));
        let policy = Reconnect::new()
            .delay(minute, minute)
            .total_time(Some(limit));
        let client = options(policy).connect(&host.uri()).expect("entered");
        cut(&open, 0);
        let cutter = {
            let open = open.clone();
            spawn(move || {
                // Further connections are refused at once.
                for number in 1..3 {
                    while open.lock().expect("no panics").len() <= number {
                        thread::yield_now();
                    }
                    cut(&open, number);
                }
            })
        };
        let start = Instant::now();
        let Err(Error::Lost(lost)) = client.read_exact_at(&mut [0; 512], 0) else {
            panic!("there is no other connection");
        };
        let Lost::NotRestored { attempts, .. } = *lost else {
            panic!("{lost:?}");
        };
        assert_eq!((attempts, host.count()), (2, 3));
        assert!(start.elapsed() >= limit);
        cutter.join().expect("no panics");
        client
            .write_all_at_with(&[0; 512], 0, CommandFlags::NONE)
            .expect_err("it is over");
    });
}

#[test]
fn connections_are_restored_on_request() {
    within(20, || {
        // The first connection reads requests and answers none.
        let (sender, receiver) = mpsc::channel();
        let (sender, disk) = (Mutex::new(sender), disk(SIZE));
        let host = Host::start(move |number, peer| {
            peer.try_negotiate(&negotiation())?;
            if number > 0 {
                return peer.serve(number, &disk);
            }
            loop {
                peer.try_request()?;
                let _ = sender.lock().expect("no panics").send(());
            }
        });
        let options = options(policy()).request_timeout(None);
        let client = options.connect(&host.uri()).expect("entered");
        let waits = {
            let client = client.clone();
            spawn(move || read(&client, 0, 512))
        };
        receiver.recv().expect("it is there");
        client.reconnect_now().expect("there is a policy");
        assert_eq!(waits.join().expect("no panics"), [0; 512]);
        assert_eq!((host.count(), client.connections()), (2, 1));
        client.disconnect().expect("the session ends well");
        assert!(client.reconnect_now().expect_err("it is over").is_lost());

        let client = ConnectOptions::new().connect(&host.uri());
        let error = client.expect("entered").reconnect_now();
        let error = error.expect_err("there is no policy");
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    });
}

#[test]
fn no_pause_is_waited_for_when_a_new_connection_is_asked_for() {
    within(20, || {
        let (host, open) = host(0, |number| number == 1);
        let hour = Duration::from_secs(3600);
        let policy = Reconnect::new().delay(hour, hour).total_time(None);
        let client = options(policy).connect(&host.uri()).expect("entered");
        cut(&open, 0);
        let waits = {
            let client = client.clone();
            spawn(move || read(&client, 0, 512))
        };
        while open.lock().expect("no panics").len() < 2 {
            thread::yield_now();
        }
        cut(&open, 1);
        // The attempt has failed by now, or is given up.
        client.reconnect_now().expect("there is a policy");
        assert_eq!(waits.join().expect("no panics"), [0; 512]);
        assert_eq!(host.count(), 3);
    });
}

#[test]
fn a_server_that_is_silent_without_closing_is_given_up() {
    within(20, || {
        for (comes_back, lose, given_up) in [
            (true, None, true),
            (true, Some(false), false),
            (false, None, false),
            (false, Some(true), true),
        ] {
            let disk = disk(SIZE);
            let host = Host::start(move |number, peer| {
                peer.try_negotiate(&negotiation())?;
                if number > 0 {
                    return peer.serve(number, &disk);
                }
                loop {
                    peer.try_request()?;
                }
            });
            let mut options = ConnectOptions::new()
                .request_timeout(Some(Duration::from_secs(1)))
                .reconnect(comes_back.then(policy));
            if let Some(lose) = lose {
                options = options.lose_when_silent(lose);
            }
            let client = options.connect(&host.uri()).expect("entered");
            let error = client.read_exact_at(&mut [0; 512], 0).expect_err("late");
            assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            match client.state() {
                ConnectionState::Connected => assert!(!given_up),
                ConnectionState::Reconnecting { cause, .. } => {
                    assert!(given_up && comes_back);
                    assert!(matches!(*cause, Lost::Silent { .. }), "{cause:?}");
                    assert_eq!(read(&client, 0, 512), [0; 512]);
                }
                ConnectionState::Over(lost) => {
                    assert!(given_up && !comes_back);
                    assert!(matches!(*lost, Lost::Silent { .. }), "{lost:?}");
                }
                other => panic!("{other:?}"),
            }
        }
    });
}
