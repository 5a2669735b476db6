//! Requests that are longer than one may be.

use super::{
    pipe::Pipe,
    server::{Log, Manner, serve},
    sim::{Sim, join},
};
use crate::{
    Memory, NamedExports,
    client::shared::{Client, ConnectOptions},
};
use nbd_proto::{BlockSizes, Errno, Limits};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

const SIZE: u64 = 8 << 20;
/// The longest that a piece may be, in bytes.
const PIECE: u64 = 64 << 10;
const LATE: Duration = Duration::from_millis(200);

/// Serves a disk, each of whose replies is as `late` as this says of the request.
fn host(sim: &Sim, export: Memory, late: impl Fn(&str) -> Duration + Send + Sync + 'static) -> Log {
    let log = Log::default();
    let manner = Manner {
        late: Some(Arc::new(late)),
        log: log.clone(),
        ..Manner::default()
    };
    let exports = Arc::new(NamedExports::single(Arc::new(export)));
    let server = sim.clone();
    sim.on_connect(move |pipe: Pipe| {
        let pipe = pipe.capacity(1 << 20);
        serve(&server, pipe, exports.clone(), manner.clone());
        Ok(())
    });
    log
}

async fn connect(sim: &Sim, connections: usize) -> Client<Sim> {
    let limits = Limits {
        payload: u32::try_from(PIECE).unwrap(),
        ..Limits::default()
    };
    let options = ConnectOptions::with_runtime(sim.clone());
    let options = options.connections(connections).limits(limits);
    options.connect("nbd://localhost").await.unwrap()
}

fn data() -> Vec<u8> {
    let byte = |at: u64| u8::try_from((at ^ (at >> 8) ^ (at >> 16)) & 0xff).unwrap();
    (0..SIZE).map(byte).collect()
}

#[test]
fn pieces_that_are_late_hold_up_no_others() {
    for connections in [1, 3] {
        let sim = Sim::new(1);
        let count = AtomicU32::new(0);
        host(&sim, Memory::new(SIZE), move |_| {
            let count = count.fetch_add(1, Ordering::Relaxed);
            LATE * u32::from(count.is_multiple_of(8))
        });
        sim.run(async {
            let client = connect(&sim, connections).await;
            let pieces = u32::try_from(SIZE / PIECE).unwrap();
            // An eighth of them is late, and eight can be at once.
            let most = LATE * (pieces / 8 / 8 + 1);
            let before = sim.now();
            client.write(0, data()).await.unwrap();
            let wrote = sim.now();
            let back = client.read(0, data().len()).await.unwrap();
            let read = sim.now();
            assert!(back == data());
            for took in [wrote - before, read - wrote] {
                assert!(took <= most, "{took:?} over {connections} connections");
            }
        });
    }
}

#[test]
fn a_piece_that_waits_for_another_change_goes_on_when_that_is_over() {
    let sim = Sim::new(1);
    let sizes = BlockSizes::new(512, 4096, 64 << 10).unwrap();
    let disk = Memory::new(SIZE).with_block_sizes(sizes);
    host(&sim, disk, |request| {
        let at = |offset| request.contains(&format!("offset: {offset},"));
        LATE * (2 * u32::from(at(0)) + u32::from(at(PIECE)))
    });
    sim.run(async {
        let client = connect(&sim, 1).await;
        let before = sim.now();
        let change = client.write(PIECE, vec![1; 512]);
        let (change, long) = join(change, client.write(0, data())).await;
        change.unwrap();
        long.unwrap();
        // The second piece waits for the change only, and not for the first piece as well.
        let took = sim.now() - before;
        assert!(took <= 2 * LATE, "{took:?}");
        assert!(client.read(0, data().len()).await.unwrap() == data());
    });
}

#[test]
fn after_a_piece_that_fails_none_is_begun() {
    let sim = Sim::new(1);
    let disk = Memory::new(SIZE).with_limit(4096);
    let log = host(&sim, disk, |request| {
        LATE * u32::from(request.contains("offset: 0,"))
    });
    sim.run(async {
        let client = connect(&sim, 1).await;
        let before = sim.now();
        let error = client.write(0, data()).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NoSpc), "{error:?}");
        // What is in flight is waited for.
        assert_eq!(sim.now() - before, LATE);
        assert_eq!(log.lock().unwrap().len(), 8);
    });
}
