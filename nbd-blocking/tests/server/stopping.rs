//! A server that stops while its clients are at work.

use crate::support::{Running, pattern, soon};
use nbd_blocking::{Client, ConnectOptions, Errno, Error, server::Server};
use nbd_io::{Export, Memory};
use std::{sync::Arc, thread, time::Duration};

const SLOT: u64 = 1 << 20;

/// Writes until it is told to stop. Returns how many blocks were acknowledged, and why that was
/// all.
fn write_on(client: &Client, at: u64) -> (u32, Error) {
    for block in 0.. {
        let data = pattern(4096, block);
        if let Err(error) = client.write_at(&data, at + u64::from(block % 256) * 4096) {
            return (block, error);
        }
    }
    unreachable!("there is no end to it")
}

/// The disk, and what became of each of the clients at work when the server stopped.
fn stop_under_load(disk: &Arc<Memory>, grace: Duration) -> (Vec<(u32, Error)>, Vec<String>) {
    let running = Running::new(Server::single(disk.clone()).grace(grace));
    let writers: Vec<_> = (0..8)
        .map(|slot| {
            let client = running.connect(&ConnectOptions::new());
            thread::spawn(move || {
                let written = write_on(&client, slot * SLOT);
                let _ = client.disconnect();
                written
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let endings = running.stop();
    let written = writers.into_iter().map(|writer| writer.join().unwrap());
    (written.collect(), endings)
}

/// Every block whose last write was acknowledged has what was written.
fn check(disk: &Memory, slot: u64, acknowledged: u32) {
    assert!(acknowledged > 0);
    let mut block = vec![0; 4096];
    for number in acknowledged.saturating_sub(255)..acknowledged {
        let offset = slot * SLOT + u64::from(number % 256) * 4096;
        disk.read(offset, &mut block).unwrap();
        assert!(block == pattern(4096, number), "write {number} is lost");
    }
}

#[test]
fn no_reply_is_lost_when_a_server_stops_under_load() {
    // S-231
    soon(|| {
        let disk = Arc::new(Memory::new(8 * SLOT));
        let (writers, endings) = stop_under_load(&disk, Duration::from_secs(5));
        for (slot, (acknowledged, error)) in writers.into_iter().enumerate() {
            // Nobody was cut off: everybody got the answer that it is over.
            assert!(
                matches!(&error, Error::Failed { source, .. } if source.errno == Errno::Shutdown),
                "{error:?}"
            );
            check(&disk, slot as u64, acknowledged);
        }
        assert_eq!(endings, ["the client disconnected"; 8]);
    });
}

#[test]
fn what_was_acknowledged_is_there_even_if_the_grace_is_too_short() {
    // S-231
    soon(|| {
        let disk = Arc::new(Memory::new(8 * SLOT));
        let (writers, endings) = stop_under_load(&disk, Duration::ZERO);
        for (slot, (acknowledged, _)) in writers.into_iter().enumerate() {
            check(&disk, slot as u64, acknowledged);
        }
        assert_eq!(endings.len(), 8);
    });
}
