//! The events of a client's connections and requests.

use super::{Machine, SIZE, negotiation, options, policy, read};
use crate::support::{
    host::{Host, disk},
    within,
};
use nbd_blocking::{ClientEvent, ConnectOptions, ConnectionState};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

type Heard = Arc<Mutex<Vec<String>>>;

fn heard(options: ConnectOptions) -> (ConnectOptions, Heard) {
    let heard = Heard::default();
    let log = heard.clone();
    let options = options.on_event(move |event: &ClientEvent| {
        let text = event.to_string();
        log.lock().expect("no panics").push(text);
    });
    (options, heard)
}

fn take(heard: &Heard) -> Vec<String> {
    std::mem::take(&mut *heard.lock().expect("no panics"))
}

/// A lost connection, which has another reason at each point of a request.
fn is_loss(text: &str) -> bool {
    text.starts_with("a connection was lost: ") && text.ends_with(" (connections left: 0)")
}

#[test]
fn a_loss_and_the_next_connection_are_reported_in_order() {
    within(10, || {
        let machine = Machine::start();
        let (options, heard) = heard(options(policy()));
        let client = machine.connect(&options);
        assert_eq!(take(&heard), ["connected (connections: 1)"]);
        machine.kill();
        read(&client, 0, 512);
        let events = take(&heard);
        assert_eq!(events.len(), 2, "{events:?}");
        assert!(is_loss(&events[0]), "{events:?}");
        assert_eq!(events[1], "connected again (attempts: 1, connections: 1)");
        client.disconnect().expect("the session ends well");
        assert!(take(&heard).is_empty(), "to disconnect is no loss");
    });
}

#[test]
fn attempts_that_fail_are_reported_with_the_backoff_until_the_client_gives_up() {
    within(10, || {
        // Another export than before.
        let host = Host::start(|number, peer| {
            let mut negotiation = negotiation();
            if number > 0 {
                negotiation.size = 4096;
            }
            peer.try_negotiate(&negotiation)?;
            peer.try_request()?;
            Ok(())
        });
        let (options, heard) = heard(options(policy()));
        let client = options.connect(&host.uri()).expect("entered");
        client.read_exact_at(&mut [0; 512], 0).expect_err("another");
        let heard = take(&heard);
        assert_eq!(heard.len(), 4, "{heard:?}");
        assert!(is_loss(&heard[1]), "{heard:?}");
        let failed = "attempt 1 to connect again failed, and was the last: ";
        assert!(heard[2].starts_with(failed), "{heard:?}");
        assert!(heard[3].starts_with("there is no connection any more"));
    });
}

#[test]
fn without_a_policy_each_loss_is_reported_once() {
    within(10, || {
        let machine = Machine::start();
        let (options, heard) = heard(ConnectOptions::new());
        let client = machine.connect(&options);
        machine.kill();
        for _ in 0..3 {
            client.flush().expect_err("it is lost");
        }
        let events = take(&heard);
        assert_eq!(events.len(), 3, "{events:?}");
        assert!(is_loss(&events[1]), "{events:?}");
        assert!(events[2].starts_with("there is no connection any more: "));
    });
}

#[test]
fn slow_requests_are_reported_by_calls_and_queues() {
    within(20, || {
        let disk = disk(SIZE);
        let host = Host::start(move |number, peer| {
            peer.try_negotiate(&negotiation())?;
            peer.serve(number, &disk)
        });
        let (options, heard) = heard(ConnectOptions::new());
        // Each one is that slow.
        let client = options
            .slow_request(Some(Duration::ZERO))
            .connect(&host.uri())
            .expect("entered");
        take(&heard);
        read(&client, 512, 1024);
        client.flush().expect("flushed");
        let mut queue = client.queue();
        queue.read(vec![0; 512], 4096).expect("submitted");
        let done = queue.complete().expect("it is not over");
        done.expect("there is one").result.expect("read");
        let heard = take(&heard);
        let requests = [
            "NBD_CMD_READ of 1024 bytes at 512 took ",
            "NBD_CMD_FLUSH of 0 bytes at 0 took ",
            "NBD_CMD_READ of 512 bytes at 4096 took ",
        ];
        assert_eq!(heard.len(), requests.len(), "{heard:?}");
        for (event, request) in heard.iter().zip(requests) {
            assert!(event.starts_with(request), "{event}");
        }
        drop(queue);
        client.disconnect().expect("the session ends well");
    });
}

#[test]
fn a_change_of_the_state_can_be_waited_for_although_no_request_is_made() {
    within(20, || {
        for replaced in [true, false] {
            let machine = Machine::start();
            let options = if replaced {
                options(policy())
            } else {
                ConnectOptions::new()
            };
            let client = machine.connect(&options);
            let connected = client.state();
            let start = Instant::now();
            let time = Duration::from_millis(60);
            let state = client.state_changed(&connected, Some(time));
            assert!(matches!(state, ConnectionState::Connected), "{state:?}");
            assert!(start.elapsed() >= time);
            machine.kill();
            let state = client.state_changed(&connected, None);
            if !replaced {
                assert!(matches!(state, ConnectionState::Over(_)), "{state:?}");
                continue;
            }
            let ConnectionState::Reconnecting { .. } = state else {
                panic!("{state:?}");
            };
            let mut state = state;
            while !matches!(state, ConnectionState::Connected) {
                state = client.state_changed(&state, None);
            }
            assert_eq!(machine.host.count(), 2);
            client.disconnect().expect("the session ends well");
        }
    });
}
