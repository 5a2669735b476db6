//! Large disks: the cost of changes of all of it, and of small changes everywhere.

use super::{memory, read, sim::*};
use crate::{Extent, Layout, Options};

const TIB: u64 = 1 << 40;

#[test]
fn trims_and_zeroes_of_two_tebibytes_take_a_few_requests() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(2 * TIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        for group in 0..64 {
            disk.write(group * (2 * TIB / 64) + 4096, &[1; 4096])
                .await
                .unwrap();
        }
        disk.flush().await.unwrap();
        let before = disk.statistics();
        // Past the first write and up to the last one, at odd places.
        disk.write_zeroes(8192, 2 * TIB - 16_384).await.unwrap();
        assert!(disk.statistics().dirty_bytes < 200_000);
        disk.flush().await.unwrap();
        let after = disk.statistics();
        assert!(after.puts - before.puts <= 3, "{after:?}");
        assert!(after.bytes_put - before.bytes_put < 100_000, "{after:?}");
        assert_eq!(
            disk.extents(0, 2 * TIB, 10).await.unwrap(),
            [
                Extent {
                    len: 65_536,
                    hole: false
                },
                Extent {
                    len: 2 * TIB - 65_536,
                    hole: true
                }
            ]
        );
        assert_eq!(read(&disk, 4096, 4096).await.unwrap(), [1; 4096]);
        disk.trim(0, 2 * TIB).await.unwrap();
        disk.flush().await.unwrap();
        assert!(at.info(None).await.unwrap().is_empty);
    });
}

/// As `mkfs.ext4` does, which puts the tables of eight groups of 128 MiB together.
#[test]
fn a_file_system_on_two_tebibytes_takes_puts_by_the_bytes_and_not_by_the_groups() {
    let sim = Sim::default();
    let (_, at) = memory(&sim);
    sim.run(async move {
        at.create(2 * TIB, Layout::default()).await.unwrap();
        let disk = at.open(Options::new()).await.unwrap();
        let before = disk.statistics();
        disk.trim(0, 2 * TIB).await.unwrap();
        let groups = 2 * TIB / (1 << 30);
        let mut most = 0;
        for group in 0..groups {
            let offset = group * (1 << 30);
            disk.write_zeroes(offset + (2 << 20), 2 << 20)
                .await
                .unwrap();
            disk.write(offset, &[1; 4096]).await.unwrap();
            most = most.max(disk.statistics().dirty_bytes);
        }
        disk.flush().await.unwrap();
        let after = disk.statistics();
        assert!(most <= (64 << 20) + 200_000, "{most} bytes in memory");
        // 2,048 blocks of 64 KiB are 128 MiB: 32 full segments, and pages.
        let (puts, bytes) = (after.puts - before.puts, after.bytes_put - before.bytes_put);
        assert!(puts < 60, "{puts} puts");
        assert!(bytes < 180 << 20, "{bytes} bytes");
    });
}
