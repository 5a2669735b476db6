//! Futures of the client that are dropped before they are done, over sockets.

use super::{
    disks::{Disk, Way, options, qemu},
    *,
};
use bytes::BytesMut;
use nbd_io::client::Error;
use nbd_proto::{CommandFlags, ContextName, client::Limits};
use std::pin::Pin;

/// One half whose requests are dropped; every byte of the other half is known.
const OWN: u64 = 128 << 10;
const HALF: u64 = 64 << 10;

/// Tasks that drop requests, and tasks that do not.
const TASKS: [u64; 2] = [5, 3];

type Operation<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// One operation of every kind. It need not have read or written anything when it is dropped.
fn operations<R: Network>(client: &Client<R>, offset: u64, len: u64) -> Vec<Operation<'_>> {
    let none = CommandFlags::NONE;
    let buffer = BytesMut::zeroed(usize::try_from(len).unwrap());
    let data = pattern(offset, len);
    let (to_write, to_secure, count) = (data.clone(), data, buffer.len());
    vec![
        Box::pin(async move { client.read(offset, count).await.map(drop) }),
        Box::pin(async move {
            client.read_into(buffer, offset).await?;
            Ok(())
        }),
        Box::pin(client.write(to_write, offset)),
        Box::pin(client.write_with(to_secure, offset, CommandFlags::FUA)),
        Box::pin(client.flush()),
        Box::pin(client.trim(offset, len, none)),
        Box::pin(client.cache(offset, len)),
        Box::pin(client.write_zeroes(offset, len, none)),
        Box::pin(async move { client.block_status(offset, len, none).await.map(drop) }),
    ]
}

/// Begins every operation and drops it after so many polls, until one is done before. Each of them
/// is in flight when it is dropped, at least once.
async fn give_up<R: Network>(client: Client<R>, own: u64) {
    for len in [512, 40_000] {
        for kind in 0..operations(&client, own, len).len() {
            let mut dropped = false;
            while !dropped {
                for polls in 0.. {
                    let operation = operations(&client, own, len).swap_remove(kind);
                    let done = some_polls(operation, polls).await;
                    verify(&client, own + HALF, polls as u64).await;
                    if let Some(done) = done {
                        done.unwrap();
                        break;
                    }
                    dropped |= polls > 0;
                }
            }
        }
    }
    // A walk goes on where it was left.
    for polls in [1, 2, 3] {
        let mut extents = client.extents(own..own + OWN);
        let mut at = own;
        while at < own + OWN {
            if let Some(run) = some_polls(extents.next(), polls).await {
                let run = run.unwrap().unwrap();
                assert_eq!(run.offset, at);
                at += run.len;
            } else {
                yielded().await;
            }
        }
        assert!(extents.next().await.is_none());
    }
}

/// Several tasks at once drop all operations, while others rely on their reads.
async fn all_at_once<R: Network>(network: &R, options: &ConnectOptions<R>, uri: &str) {
    // Small limits, so that leaks are noticed.
    let limits = Limits {
        payload: 16 << 10,
        in_flight: 6,
        ..Limits::default()
    };
    let options = options
        .clone()
        .context(ContextName::base_allocation())
        .bytes_in_flight(64 << 10)
        .limits(limits);
    let client = options.connect(uri).await.unwrap();
    assert_eq!(client.size(), SIZE);
    let busy = Arc::new(());
    let tasks: Vec<_> = (0..TASKS[0] + TASKS[1])
        .map(|n| {
            let client = client.clone();
            let task: Pin<Box<dyn Future<Output = ()> + Send>> = if n < TASKS[0] {
                let busy = busy.clone();
                Box::pin(async move {
                    give_up(client, n * OWN).await;
                    drop(busy);
                })
            } else {
                let busy = Arc::downgrade(&busy);
                Box::pin(async move {
                    let mut round = 0;
                    while busy.strong_count() > 0 || round == 0 {
                        verify(&client, n * OWN + round % 2 * HALF, round).await;
                        round += 1;
                    }
                })
            };
            task
        })
        .collect();
    drop(busy);
    together(network, tasks).await;

    eventually(network, || in_flight(&client) == 0).await;
    let all = pattern(7, SIZE);
    client.write(all.clone(), 0).await.unwrap();
    client.flush().await.unwrap();
    assert!(client.read(0, all.len()).await.unwrap() == all);
    assert_eq!(in_flight(&client), 0);
    let begin = Instant::now();
    client.disconnect().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "nothing is owed");
}

#[test]
fn any_request_can_be_dropped_at_any_time() {
    limited(|| {
        let certificates = Certificates::new();
        on_runtime(async |network| {
            let options = options(&network, &certificates);
            for way in Way::ALL {
                let disk = Disk::new(way, &certificates, SIZE);
                all_at_once(&network, &options, &disk.uri).await;
                eventually(&network, || disk.stopper.connections() == 0).await;
                disk.stop();
            }
        });
    });
}

#[test]
fn any_request_to_the_server_of_qemu_can_be_dropped_at_any_time() {
    limited(|| {
        let certificates = Certificates::new();
        on_runtime(async |network| {
            let options = options(&network, &certificates);
            for way in Way::ALL {
                if let Some((_qemu, uri)) = qemu(way, &certificates, SIZE, 1) {
                    all_at_once(&network, &options, &uri).await;
                }
            }
        });
    });
}

/// Drops connecting and disconnecting futures, while another client of the server goes on.
async fn come_and_go<R: Network>(network: &R, options: &ConnectOptions<R>, uri: &str) {
    let other = options.connect(uri).await.unwrap();
    let several = options.clone().connections(3);
    let busy = Arc::new(());
    let others = Arc::downgrade(&busy);
    let own = uri.to_owned();
    let going: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        for polls in 0.. {
            if let Some(client) = some_polls(several.connect(&own), polls).await {
                verify(&client.unwrap(), 0, polls as u64).await;
                break;
            }
        }
        for polls in 0.. {
            let client = several.connect(&own).await.unwrap();
            verify(&client, 0, polls as u64).await;
            // A request is in flight, and another one is dropped in flight.
            let read = client.read(0, 300_000);
            let mut read = std::pin::pin!(read);
            let early = some_polls(read.as_mut(), 1).await;
            drop(some_polls(client.read(0, 300_000), 1).await);
            let done = some_polls(client.disconnect(), polls).await;
            let read = match early {
                Some(read) => read,
                None => read.await,
            };
            match (polls, client.read(0, 1).await) {
                (0, late) => drop(late.unwrap()),
                (_, late) => assert!(late.unwrap_err().is_lost()),
            }
            assert_eq!(
                read.unwrap().len(),
                300_000,
                "requests in flight are waited for"
            );
            if let Some(done) = done {
                done.unwrap();
                break;
            }
        }
        drop(busy);
    });
    let staying: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        let mut round = 0;
        while others.strong_count() > 0 {
            verify(&other, HALF, round).await;
            round += 1;
        }
        other.disconnect().await.unwrap();
    });
    together(network, [going, staying]).await;
}

#[test]
fn connecting_and_disconnecting_can_be_dropped_at_any_time() {
    limited(|| {
        let certificates = Certificates::new();
        on_runtime(async |network| {
            let options = options(&network, &certificates);
            for way in Way::ALL {
                let disk = Disk::new(way, &certificates, SIZE);
                come_and_go(&network, &options, &disk.uri).await;
                // Also the connections that were only begun.
                eventually(&network, || disk.stopper.connections() == 0).await;
                disk.stop();
                // A leaked connection is missed soon.
                if let Some((_qemu, uri)) = qemu(way, &certificates, SIZE, 4) {
                    come_and_go(&network, &options, &uri).await;
                }
            }
        });
    });
}
