//! The events of a client's connections and requests.

use super::{
    policy::{host, kill, memory},
    recovery::{options, policy},
    sim::Sim,
};
use crate::{
    client::{ClientEvent, ConnectOptions, Reconnect},
    runtime::Runtime,
};
use bytes::Bytes;
use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

type Heard = Arc<Mutex<Vec<String>>>;

fn heard(options: ConnectOptions<Sim>) -> (ConnectOptions<Sim>, Heard) {
    let heard = Heard::default();
    let log = heard.clone();
    let options = options.on_event(move |event: &ClientEvent| {
        log.lock().unwrap().push(event.to_string());
    });
    (options, heard)
}

fn take(heard: &Heard) -> Vec<String> {
    std::mem::take(&mut *heard.lock().unwrap())
}

/// A lost connection, which has another reason at each point of a request.
fn is_loss(text: &str) -> bool {
    text.starts_with("a connection was lost: ") && text.ends_with(" (connections left: 0)")
}

#[test]
fn a_loss_failed_attempts_and_the_next_connection_are_reported_in_order() {
    let sim = Sim::new(1);
    let (count, connections) = host(&sim, |number| (number != 1).then(|| memory(4096)));
    let (options, heard) = heard(options(&sim, policy()));
    sim.run(async {
        let client = options.connect("nbd://localhost").await.unwrap();
        assert_eq!(take(&heard), ["connected (connections: 1)"]);
        kill(&connections);
        client.read(0, 1).await.unwrap();
        client.disconnect().await.unwrap();
    });
    assert_eq!(count.load(Ordering::Relaxed), 3);
    let heard = take(&heard);
    assert_eq!(heard.len(), 3, "{heard:?}");
    assert!(is_loss(&heard[0]), "{heard:?}");
    let failed = "attempt 1 to connect again failed, the next is in ";
    assert!(heard[1].starts_with(failed), "{heard:?}");
    assert_eq!(heard[2], "connected again (attempts: 2, connections: 1)");
}

#[test]
fn a_connection_that_is_given_up_at_will_is_reported_as_lost() {
    let sim = Sim::new(1);
    host(&sim, |_| Some(memory(4096)));
    let (options, heard) = heard(options(&sim, policy()));
    sim.run(async {
        let client = options.connect("nbd://localhost").await.unwrap();
        take(&heard);
        client.reconnect_now().unwrap();
        let lost = take(&heard);
        assert!(lost.len() == 1 && is_loss(&lost[0]), "{lost:?}");
        assert!(lost[0].contains("the client has given it up"), "{lost:?}");
        client.read(0, 1).await.unwrap();
        let again = "connected again (attempts: 1, connections: 1)";
        assert_eq!(take(&heard), [again]);
        // Without a connection there is none to lose.
        client.disconnect().await.unwrap();
        client.reconnect_now().unwrap_err();
        assert!(take(&heard).is_empty());
    });
}

#[test]
fn a_client_that_gives_up_reports_that() {
    let sim = Sim::new(1);
    let (_, connections) = host(&sim, |number| (number == 0).then(|| memory(4096)));
    let policy = Reconnect::new().attempts(Some(1));
    let (options, heard) = heard(options(&sim, policy));
    sim.run(async {
        let client = options.connect("nbd://localhost").await.unwrap();
        kill(&connections);
        client.read(0, 1).await.unwrap_err();
    });
    let heard = take(&heard);
    assert_eq!(heard.len(), 4, "{heard:?}");
    let failed = "attempt 1 to connect again failed, and was the last: ";
    assert!(heard[2].starts_with(failed), "{heard:?}");
    assert!(heard[3].starts_with("there is no connection any more"));
}

#[test]
fn a_client_whose_connection_is_not_replaced_reports_its_loss_once() {
    let sim = Sim::new(1);
    let (_, connections) = host(&sim, |_| Some(memory(4096)));
    let (options, heard) = heard(ConnectOptions::with_runtime(sim.clone()));
    sim.run(async {
        let client = options.connect("nbd://localhost").await.unwrap();
        kill(&connections);
        for _ in 0..3 {
            client.read(0, 1).await.unwrap_err();
        }
        sim.sleep(Duration::from_secs(1)).await;
    });
    let heard = take(&heard);
    assert_eq!(heard.len(), 3, "{heard:?}");
    assert!(is_loss(&heard[1]), "{heard:?}");
    assert!(heard[2].starts_with("there is no connection any more: "));
}

#[test]
fn each_piece_of_a_long_request_is_measured_by_itself() {
    let sim = Sim::new(1);
    host(&sim, |_| Some(memory(64 << 20)));
    let (options, heard) = heard(ConnectOptions::with_runtime(sim.clone()));
    let options = options.slow_request(Some(Duration::ZERO));
    sim.run(async {
        let client = options.connect("nbd://localhost").await.unwrap();
        take(&heard);
        let data = Bytes::from_static(&[7; 512]);
        client.write(data, 512).await.unwrap();
        client.read(0, 48 << 20).await.unwrap();
        client.read(0, 512).await.unwrap();
        client.flush().await.unwrap();
        client.disconnect().await.unwrap();
    });
    let heard = take(&heard);
    let write = "NBD_CMD_WRITE of 512 bytes at 512 took ";
    assert!(heard[0].starts_with(write), "{heard:?}");
    let reads = heard.iter().filter(|text| text.starts_with("NBD_CMD_READ"));
    assert_eq!(reads.count(), 3, "{heard:?}");
    let flush = "NBD_CMD_FLUSH of 0 bytes at 0 took ";
    assert!(heard.last().unwrap().starts_with(flush), "{heard:?}");
}
