//! Finding exports may take time.

use super::{
    Server,
    support::{Running, eventually, soon},
};
use nbd_blocking::{ConnectOptions, ExportName};
use nbd_io::{Exports, Listing, Memory, Offer};
use std::{
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// A lookup of any but the default export waits until the gate is open.
#[derive(Default)]
struct Archive {
    /// The number of waiting lookups, and whether the gate is open.
    gate: Mutex<(u32, bool)>,
    moved: Condvar,
}

impl Archive {
    fn wait(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.0 += 1;
        while !gate.1 {
            gate = self.moved.wait(gate).unwrap();
        }
    }

    fn open(&self) {
        self.gate.lock().unwrap().1 = true;
        self.moved.notify_all();
    }
}

struct Shelf(Arc<Archive>, Arc<Memory>);

impl Exports for Shelf {
    fn lookup(&self, name: &ExportName) -> Option<Offer> {
        if name.as_str() == "panic" {
            panic!("as it is meant to");
        }
        if !name.is_default() {
            self.0.wait();
        }
        Some(Offer::new(self.1.clone()))
    }

    fn list(&self) -> Vec<Listing> {
        self.0.wait();
        vec![Listing::new(ExportName::new("old").unwrap())]
    }
}

fn shelf() -> (Arc<Archive>, Server) {
    let archive = Arc::new(Archive::default());
    let disk = Arc::new(Memory::new(1 << 20));
    let server = Server::new(Shelf(archive.clone(), disk));
    (archive, server)
}

#[test]
fn a_lookup_that_waits_holds_up_no_other_client() {
    soon(|| {
        let (archive, server) = shelf();
        // The lookup takes as long as the test wants it to.
        let running = Running::new(server.handshake_timeout(None));
        let present = running.connect(&ConnectOptions::new());
        let old = ConnectOptions::new().export(ExportName::new("old").unwrap());
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let (raw, old) = (running.raw(), old.clone().negotiation_timeout(None));
                thread::spawn(move || old.connect_over(raw, None).unwrap().disconnect().unwrap())
            })
            .collect();
        eventually(|| archive.gate.lock().unwrap().0 == 8);
        for _ in 0..100 {
            present.write_all_at(&[1; 512], 0).unwrap();
            present.read_exact_at(&mut [0; 512], 0).unwrap();
        }
        running
            .connect(&ConnectOptions::new())
            .disconnect()
            .unwrap();
        assert!(waiting.iter().all(|thread| !thread.is_finished()));
        archive.open();
        for thread in waiting {
            thread.join().unwrap();
        }
        present.disconnect().unwrap();
        let endings = running.stop();
        assert_eq!(endings, ["the client disconnected"; 10]);
    });
}

#[test]
fn a_lookup_that_panics_ends_its_own_connection_only() {
    soon(|| {
        let (_, server) = shelf();
        let running = Running::new(server);
        let present = running.connect(&ConnectOptions::new());
        let broken = ConnectOptions::new().export(ExportName::new("panic").unwrap());
        assert!(broken.connect_over(running.raw(), None).is_err());
        present.write_all_at(&[1; 512], 0).unwrap();
        present.disconnect().unwrap();
        let mut endings = running.stop();
        // Each ending is reported by its own task.
        endings.sort_unstable();
        assert_eq!(endings, ["the client disconnected", "the export panicked"]);
    });
}
