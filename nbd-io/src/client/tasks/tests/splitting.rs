//! Requests that are longer than the limit of one request.

use super::{
    pipe::Pipe,
    server::{Behaviour, Log, serve},
    sim::{Sim, join},
};
use crate::{
    Export, Memory, NamedExports,
    client::{ConnectOptions, StatusRun, StatusRuns, tasks::Client},
};
use nbd_proto::{BlockSizes, ContextName, Errno, Failure, client::Limits, meta::Extent};
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// An export with extents of a single status; the function says how long an extent one request
/// finds.
struct Uniform {
    size: u64,
    extents: fn(u64) -> u64,
}

impl Export for Uniform {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, _: u64, buf: &mut [u8]) -> Result<(), Failure> {
        buf.fill(0);
        Ok(())
    }

    fn block_status(
        &self,
        _: &ContextName,
        offset: u64,
        _: u64,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), Failure> {
        let len = (self.extents)(offset);
        let _ = each(Extent { len, status: 3 });
        Ok(())
    }
}

const SIZE: u64 = 8 << 20;
/// The longest piece, in bytes.
const PIECE: u64 = 64 << 10;
const LATE: Duration = Duration::from_millis(200);

/// Serves a disk, and delays each reply by `late` of its request.
fn host(
    sim: &Sim,
    export: impl Export + 'static,
    late: impl Fn(&str) -> Duration + Send + Sync + 'static,
) -> Log {
    let log = Log::default();
    let behaviour = Behaviour {
        late: Some(Arc::new(late)),
        log: log.clone(),
        ..Behaviour::default()
    };
    let exports = Arc::new(NamedExports::single(Arc::new(export)));
    let server = sim.clone();
    sim.on_connect(move |pipe: Pipe| {
        let pipe = pipe.capacity(1 << 20);
        serve(&server, pipe, exports.clone(), behaviour.clone());
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
    let options = options.context(ContextName::base_allocation());
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
            // One reply in eight is late, and eight requests can be in flight.
            let most = LATE * (pieces / 8 / 8 + 1);
            let before = sim.now();
            client.write(data(), 0).await.unwrap();
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
        let change = client.write(vec![1; 512], PIECE);
        let (change, long) = join(change, client.write(data(), 0)).await;
        change.unwrap();
        long.unwrap();
        // The second piece waits for the write only, and not for the first piece as well.
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
        let error = client.write(data(), 0).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NoSpc), "{error:?}");
        // The requests in flight are waited for.
        assert_eq!(sim.now() - before, LATE);
        assert_eq!(log.lock().unwrap().len(), 8);
    });
}

#[test]
fn between_two_extents_the_server_is_asked_a_bounded_number_of_times() {
    let sim = Sim::new(1);
    let tiny = Uniform {
        size: 1 << 50,
        extents: |_| 1,
    };
    let log = host(&sim, tiny, |_| Duration::ZERO);
    sim.run(async {
        let client = connect(&sim, 1).await;
        let mut extents = client.extents(0..client.size());
        let mut at = 0;
        for round in 1..=3 {
            let StatusRun { offset, len, .. } = extents.next().await.unwrap().unwrap();
            assert_eq!((offset, len), (at, StatusRuns::MERGED_ANSWERS.into()));
            at += len;
            let asked = log.lock().unwrap().len() as u64;
            assert_eq!(asked, round * u64::from(StatusRuns::MERGED_ANSWERS));
        }
    });
}

#[test]
fn a_known_extent_does_not_wait_long_for_the_next_one() {
    let sim = Sim::new(1);
    let halves = Uniform {
        size: 2 << 20,
        extents: |_| 1 << 20,
    };
    let late = 2 * StatusRuns::MERGE_TIME;
    host(&sim, halves, move |request| {
        late * u32::from(request.contains("offset: 1048576,"))
    });
    sim.run(async {
        let client = connect(&sim, 1).await;
        let mut extents = client.extents(0..client.size());
        let before = sim.now();
        for (offset, time) in [(0, StatusRuns::MERGE_TIME), (1 << 20, late)] {
            let run = extents.next().await.unwrap().unwrap();
            assert_eq!((run.offset, run.len), (offset, 1 << 20));
            assert_eq!(sim.now() - before, time);
        }
        assert!(extents.next().await.is_none());
    });
}
