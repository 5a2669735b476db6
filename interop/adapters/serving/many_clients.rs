//! Many clients at once.

use super::{
    Server,
    support::{Running, eventually, modes, pattern, soon},
};
use nbd_blocking::{Client, ConnectOptions};
use nbd_io::{Fault, Faults, Faulty, Memory};
use std::{
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

const IDLE: usize = 256;
const BUSY: usize = 64;

/// The size of each busy client's own part.
const OWN: usize = 64 << 10;

fn disk() -> Memory {
    Memory::new((BUSY * OWN) as u64)
}

/// Uses its own part of the disk for a while.
fn work(client: &Client, number: usize, rounds: usize) {
    let start = (number * OWN) as u64;
    let mut model = vec![0; OWN];
    for round in 0..rounds {
        let len = 1 + (round * 7919 + number * 31) % (OWN / 2);
        let at = (round * 4099 + number * 513) % (OWN - len);
        let data = pattern(len, (number * rounds + round) as u32);
        client.write_all_at(&data, start + at as u64).unwrap();
        model[at..at + len].copy_from_slice(&data);
        let mut read = vec![1; OWN];
        client.read_exact_at(&mut read, start).unwrap();
        assert!(read == model, "client {number} in round {round}");
    }
}

fn all_work(running: &Running, rounds: usize) {
    let start = Arc::new(Barrier::new(BUSY));
    let modes = modes();
    let busy: Vec<_> = (0..BUSY)
        .map(|number| {
            let (start, options) = (Arc::clone(&start), &modes[number % modes.len()]);
            let client = if number % 2 == 0 {
                running.connect(options)
            } else {
                options.connect_over(running.raw_tcp(), None).unwrap()
            };
            thread::spawn(move || {
                start.wait();
                work(&client, number, rounds);
                client.disconnect().unwrap();
            })
        })
        .collect();
    for thread in busy {
        thread.join().unwrap();
    }
}

#[test]
fn idle_and_busy_clients_are_served_at_once() {
    soon(|| {
        let server = Server::single(Arc::new(disk())).max_connections(IDLE + BUSY);
        let running = Running::new(server);
        let idle: Vec<_> = (0..IDLE)
            .map(|_| running.connect(&ConnectOptions::new()))
            .collect();
        all_work(&running, 12);
        eventually(|| running.stopper.connections() == IDLE);
        for client in &idle {
            client.read_exact_at(&mut [0; 512], 0).unwrap();
        }
        let endings = running.stop();
        let stopped = |ending: &&String| *ending == "the server is stopping";
        assert_eq!(endings.iter().filter(stopped).count(), IDLE);
    });
}

#[test]
fn busy_clients_share_a_disk_that_waits() {
    soon(|| {
        let faults = Faults::new();
        faults.add(Fault::delay(Duration::from_millis(2)));
        let running = Running::new(Server::single(Arc::new(Faulty::new(
            Arc::new(disk()),
            faults,
        ))));
        all_work(&running, 4);
        running.stop();
    });
}
