//! A server that stops while its clients are at work.

use crate::support::{Running, pattern, soon};
use nbd_blocking::{Client, ConnectOptions, Errno, Error, Server};
use nbd_io::{Export, Memory};
use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

const SLOT: u64 = 1 << 20;

const LEFT: &str = "the server is stopping";

/// Writes until the server stops, and sends a message when some blocks were acknowledged. Returns
/// their number, and the error that ended the writes.
fn write_on(client: &Client, at: u64, begun: &mpsc::Sender<()>) -> (u32, Error) {
    for block in 0.. {
        let data = pattern(4096, block);
        if let Err(error) = client.write_at(&data, at + u64::from(block % 256) * 4096) {
            return (block, error);
        }
        if block == 20 {
            begun.send(()).unwrap();
        }
    }
    unreachable!("there is no end to it")
}

/// The disk, and the result of each of the clients at work when the server stopped.
fn stop_under_load(disk: &Arc<Memory>, grace: Duration) -> (Vec<(u32, Error)>, Vec<String>) {
    let running = Running::new(Server::single(disk.clone()).grace(grace));
    let (begun, receiver) = mpsc::channel();
    let writers: Vec<_> = (0..8)
        .map(|slot| {
            let client = running.connect(&ConnectOptions::new());
            let begun = begun.clone();
            thread::spawn(move || {
                let written = write_on(&client, slot * SLOT, &begun);
                let _ = client.disconnect();
                written
            })
        })
        .collect();
    for _ in &writers {
        receiver.recv().unwrap();
    }
    let endings = running.stop();
    let written = writers.into_iter().map(|writer| writer.join().unwrap());
    (written.collect(), endings)
}

/// Every block has the data of its last acknowledged write.
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
        let (writers, endings) = stop_under_load(&disk, Duration::from_secs(3600));
        let mut late = 0;
        for (slot, (acknowledged, error)) in writers.into_iter().enumerate() {
            // No client was cut off: each got ESHUTDOWN, unless it was idle for so long that the
            // server left.
            match &error {
                Error::Failed { source, .. } if source.errno == Errno::Shutdown => {}
                Error::Lost(_) => late += 1,
                other => panic!("{other:?}"),
            }
            check(&disk, slot as u64, acknowledged);
        }
        assert!(late < 8, "no client got a reply");
        let left = endings.iter().filter(|ending| *ending == LEFT).count();
        assert_eq!(left, late, "{endings:?}");
        let gone = |ending: &&String| *ending == "the client disconnected";
        assert_eq!(endings.iter().filter(gone).count(), 8 - late);
    });
}

#[test]
fn acknowledged_writes_are_there_even_if_the_grace_is_too_short() {
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
