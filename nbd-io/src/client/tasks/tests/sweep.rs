//! Connections that are cut at every byte.

use super::{
    pipe::{Cutter, Pipe},
    recovery::{Disk, Machine, options, policy},
    server::{Behaviour, serve},
    sim::{Sim, join_all},
};
use crate::{
    NamedExports,
    client::{Error, tasks::Client},
};
use nbd_proto::CommandFlags;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

/// The place of a cut, and its kind.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// The connection, from 0.
    connection: usize,
    /// Whether the bytes of the server are cut, or else the client's.
    from_server: bool,
    /// After so many bytes.
    after: usize,
    /// The server loses unflushed writes, and nothing that it has sent arrives any more.
    crash: bool,
    keep: bool,
}

/// Serves a disk, and cuts. A second connection is only made because the first is cut in the middle
/// of the load. Returns how often it was cut in the requested place.
fn host(sim: &Sim, disk: &Arc<Disk>, cut: Cut) -> Arc<AtomicUsize> {
    let cuts = Arc::new(AtomicUsize::new(0));
    let (counted, number) = (cuts.clone(), AtomicUsize::new(0));
    let (server, disk) = (sim.clone(), disk.clone());
    sim.on_connect(move |pipe: Pipe| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let cutter = pipe.cutter();
        let action = |counted: Option<Arc<AtomicUsize>>| {
            let (disk, cutter) = (disk.clone(), cutter.clone());
            move || {
                if cut.crash {
                    cutter.cut();
                    disk.crash();
                } else {
                    Cutter::end(&cutter);
                }
                counted.inspect(|count| _ = count.fetch_add(1, Ordering::Relaxed));
            }
        };
        if number == cut.connection {
            cutter.trigger(cut.from_server, cut.after, action(Some(counted.clone())));
        } else if number < cut.connection {
            cutter.trigger(true, 700, action(None));
        }
        let exports = Arc::new(NamedExports::single(disk.clone()));
        serve(&server, pipe, exports, Behaviour::default());
        Ok(())
    });
    cuts
}

const BLOCK: usize = 16;

/// The replies that a client got, and the contents that it may find because of them.
struct Model<'a> {
    client: &'a Client<Sim>,
    /// The handle of the present epoch.
    epoch: Mutex<Client<Sim>>,
    cut: Cut,
    /// The possible contents of each block; the last one was written last.
    may: Mutex<[Vec<u8>; 3]>,
    /// A loss was found.
    lost: AtomicUsize,
}

impl Model<'_> {
    fn wrote(&self, block: usize, value: u8, stable: bool) {
        let may = &mut self.may.lock().unwrap()[block];
        if stable || self.cut.keep || !self.cut.crash {
            may.clear();
        }
        may.push(value);
    }

    async fn write(&self, block: usize, value: u8, flags: CommandFlags) {
        let at = (block * BLOCK) as u64;
        let data = vec![value; BLOCK];
        self.client.write_with(data, at, flags).await.unwrap();
        self.wrote(block, value, flags == CommandFlags::FUA);
    }

    async fn zero(&self, block: usize) {
        let at = (block * BLOCK) as u64;
        let none = CommandFlags::NONE;
        let zeroed = self.client.write_zeroes(at, BLOCK as u64, none);
        zeroed.await.unwrap();
        self.wrote(block, 0, false);
    }

    async fn check(&self, block: usize) -> u8 {
        let at = (block * BLOCK) as u64;
        let data = self.client.read(at, BLOCK).await.unwrap();
        let may = &mut self.may.lock().unwrap()[block];
        let (cut, found) = (self.cut, data[0]);
        assert!(data.iter().all(|byte| *byte == found), "{cut:?}: torn");
        assert!(may.contains(&found), "{cut:?}: {found} is not in {may:?}");
        self.lost
            .fetch_add(usize::from(may.last() != Some(&found)), Ordering::Relaxed);
        found
    }

    /// Flushes. Whether every block is as it was written.
    async fn flush(&self) -> bool {
        let cut = self.cut;
        let client = self.epoch.lock().unwrap().clone();
        match client.flush().await {
            Ok(()) => {
                let lost = self.lost.load(Ordering::Relaxed);
                assert_eq!(lost, 0, "{cut:?}: lost, and not reported");
                for may in &mut *self.may.lock().unwrap() {
                    may.drain(..may.len() - 1);
                }
                true
            }
            Err(Error::Unflushed) => {
                assert!(!cut.keep, "{cut:?}: it was kept");
                *self.epoch.lock().unwrap() = client.new_epoch();
                // The flush was carried out, so that the present contents stay.
                for block in 0..3 {
                    let found = self.check(block).await;
                    self.may.lock().unwrap()[block] = vec![found];
                }
                self.lost.store(0, Ordering::Relaxed);
                false
            }
            Err(other) => panic!("{cut:?}: {other}"),
        }
    }

    async fn check_all(&self) {
        join_all((0..3).map(|block| self.check(block))).await;
    }

    async fn load(&self) {
        let (none, fua) = (CommandFlags::NONE, CommandFlags::FUA);
        self.write(0, 1, none).await;
        self.check(0).await;
        self.write(0, 2, none).await;
        self.write(1, 3, none).await;
        self.flush().await;
        self.check_all().await;
        join_all([self.write(1, 4, none), self.write(2, 5, none)]).await;
        self.check_all().await;
        self.write(1, 6, fua).await;
        self.zero(2).await;
        self.check_all().await;
        // Lost writes are made again until they stay.
        while !self.flush().await {
            join_all((0..3).map(|block| self.write(block, 9, none))).await;
        }
        self.check_all().await;
    }
}

/// Cuts at every byte of a connection. Returns the number of bytes.
fn sweep(cut: Cut) -> usize {
    let mut found = 0;
    for after in 1.. {
        let cut = Cut { after, ..cut };
        let sim = Sim::new(1);
        let disk = Machine::start(&sim, false).disk;
        let cuts = host(&sim, &disk, cut);
        let entered = sim.run(async {
            let kept = if cut.keep { 1 << 20 } else { 0 };
            let options = options(&sim, policy().keep_unflushed(kept));
            let Ok(client) = options.connect("nbd://localhost").await else {
                return false;
            };
            let model = Model {
                client: &client,
                epoch: Mutex::new(client.clone()),
                cut,
                may: Mutex::new([(); 3].map(|()| vec![0])),
                lost: AtomicUsize::new(0),
            };
            model.load().await;
            let written = model.may.lock().unwrap().clone();
            // A flush was the last request, so that a crash loses nothing now.
            disk.crash();
            let contents = disk.contents.lock().unwrap();
            for (block, may) in written.iter().enumerate() {
                let found = &contents.0[block * BLOCK..][..BLOCK];
                let last = *may.last().unwrap();
                assert!(found.iter().all(|byte| *byte == last), "{cut:?}: {block}");
            }
            true
        });
        if cuts.load(Ordering::Relaxed) == 0 {
            assert!(entered, "{cut:?}: nothing was cut");
            return found;
        }
        // The first connection has to be made by the program.
        assert!(entered || cut.connection == 0, "{cut:?}");
        found += usize::from(entered);
    }
    unreachable!("a connection has an end")
}

/// Sweeps both directions in these ways: with a crash, and with unflushed writes being kept.
fn sweep_all(connection: usize, ways: &[(bool, bool)]) {
    for from_server in [false, true] {
        for &(crash, keep) in ways {
            let places = sweep(Cut {
                connection,
                from_server,
                after: 0,
                crash,
                keep,
            });
            assert!(places > 300, "only {places} places");
        }
    }
}

#[test]
fn a_connection_may_be_cut_at_every_byte() {
    // C-191, C-192
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    sweep_all(0, &ways);
}

#[test]
fn a_restored_connection_may_be_cut_at_every_byte() {
    // C-191, C-192
    sweep_all(1, &[(true, false), (true, true)]);
}
