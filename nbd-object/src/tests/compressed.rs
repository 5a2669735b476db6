//! Records compressed by zstd.

use super::{memory, read, sim::*};
use crate::{Compression, Layout, Options};

const MIB: u64 = 1 << 20;

fn text(len: usize) -> Vec<u8> {
    b"a disk of text can be compressed. "
        .iter()
        .copied()
        .cycle()
        .take(len)
        .collect()
}

#[test]
fn compressible_blocks_take_less_space_and_others_stay_as_they_are() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(4 * MIB, Layout::default()).await.unwrap();
        let options = Options::new().compression(Compression::Zstd(3));
        let disk = at.open(options.clone()).await.unwrap();
        let mut noise = vec![0; 1 << 20];
        fastrand::Rng::with_seed(1).fill(&mut noise);
        let before = disk.statistics().bytes_put;
        disk.write(0, &text(1 << 20)).await.unwrap();
        disk.flush().await.unwrap();
        let packed = disk.statistics().bytes_put - before;
        assert!(packed < 10_000, "{packed}");
        let before = disk.statistics().bytes_put;
        disk.write(MIB, &noise).await.unwrap();
        disk.flush().await.unwrap();
        let raw = disk.statistics().bytes_put - before;
        assert!((MIB..MIB + 4096).contains(&raw), "{raw}");
        // One who opens it without the option reads it all the same, and writes without.
        let disk = at.open(Options::new()).await.unwrap();
        assert!(read(&disk, 0, MIB).await.unwrap() == text(1 << 20));
        assert!(read(&disk, MIB, MIB).await.unwrap() == noise);
        disk.write(512, &noise[..512]).await.unwrap();
        disk.flush().await.unwrap();
        let disk = at.open(options).await.unwrap();
        let bytes = read(&disk, 0, 65_536).await.unwrap();
        assert!(bytes[512..1024] == noise[..512] && bytes[1024..] == text(65_536)[1024..]);
        let report = at.check(None, &Options::new()).await.unwrap();
        assert_eq!((report.damaged, report.records), (0, 32));
    });
}
