//! The requests and bytes of random writes, which the documentation names.

use super::{memory, sim::*};
use crate::{Layout, Options, Statistics};

const TIB: u64 = 1 << 40;

/// The puts and bytes of each flush of `writes` random writes of 4 KiB, on a disk of 1 TiB.
fn cost(block_size: u32, writes: usize) -> (f64, f64) {
    const FLUSHES: u32 = 5;
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    let (before, after): (Statistics, Statistics) = sim.run(async move {
        at.create(TIB, Layout::default().block_size(block_size))
            .await
            .unwrap();
        let disk = at.open(Options::new().dirty_limit(1 << 30)).await.unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        // 64 MiB are in use, of which each leaf refers to several segments.
        let offset = |random: &mut fastrand::Rng| random.u64(0..1 << 14) * 4096 + TIB / 2;
        for _ in 0..5 {
            for _ in 0..300 {
                disk.write(offset(&mut random), &[1; 4096]).await.unwrap();
            }
            disk.flush().await.unwrap();
        }
        let before = disk.statistics();
        for value in 0..FLUSHES {
            for _ in 0..writes {
                let byte = u8::try_from(value + 2).unwrap();
                disk.write(offset(&mut random), &[byte; 4096])
                    .await
                    .unwrap();
            }
            disk.flush().await.unwrap();
        }
        (before, disk.statistics())
    });
    let flushes = f64::from(FLUSHES);
    #[expect(clippy::cast_precision_loss, reason = "these are small")]
    let per = |count: u64| count as f64 / flushes;
    (
        per(after.puts - before.puts),
        per(after.bytes_put - before.bytes_put),
    )
}

#[test]
fn a_flush_of_random_writes_puts_their_blocks_and_a_few_pages() {
    for (block_size, writes, most_puts, most_kib) in [
        (65_536, 1, 3.0, 80.0),
        (65_536, 64, 4.0, 4300.0),
        (16_384, 1, 3.0, 35.0),
        (4096, 1, 3.0, 25.0),
        (4096, 64, 4.0, 700.0),
    ] {
        let (puts, bytes) = cost(block_size, writes);
        let kib = bytes / 1024.0;
        eprintln!("blocks of {block_size}, {writes} writes: {puts:.1} puts, {kib:.1} KiB");
        assert!(
            puts <= most_puts && kib <= most_kib,
            "{block_size}, {writes}: {puts} puts, {kib} KiB"
        );
    }
}
