//! Uses of a disk.

use super::{Result, servers::wait_for};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use interop::{Access, mixed_load, pattern};
use nbd_tokio::{Client, ConnectOptions};
use std::{
    env, fmt, fs,
    ops::Range,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// The bytes that are written and read in sequence.
const DATA: u64 = 64 << 20;
/// The bytes that random reads are among, and that are copied: more than any cache has.
const ALL_DATA: u64 = 256 << 20;
/// The block of all disks, in bytes.
const BLOCK: u64 = 64 << 10;
/// The length of sequential requests, and the number of them in flight.
const PIECE: u64 = 256 << 10;
const PIECES: usize = 16;
/// The length of random reads.
const PAGE: u16 = 4096;
/// The bytes that are read again: less than each of the caches has.
const WORKING_SET: u64 = 32 << 20;

/// In the order in which they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    Write,
    Read,
    /// So many, and so many at once.
    RandomRead(u16, u16),
    /// So many in bytes that were read before, and so many at once.
    ReadAgain(u16, u16),
    Copy,
    MakeFileSystem,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Write => "write 64 MiB in sequence, and flush",
            Self::Read => "read 64 MiB in sequence",
            Self::RandomRead(_, 1) => "read 4 KiB at random, one at once",
            Self::RandomRead(_, 16) => "read 4 KiB at random, 16 at once",
            Self::RandomRead(_, 64) => "read 4 KiB at random, 64 at once",
            Self::RandomRead(..) => "read 4 KiB at random, 128 at once",
            Self::ReadAgain(..) => {
                "read 4 KiB at random in 32 MiB that were read before, 64 at once"
            }
            Self::Copy => "copy to a file, 256 MiB and holes (nbdcopy)",
            Self::MakeFileSystem => "make a file system (mke2fs over nbdfuse)",
        })
    }
}

impl Workload {
    pub(super) const ALL: [Self; 9] = [
        Self::Write,
        Self::Read,
        Self::RandomRead(128, 1),
        Self::RandomRead(1024, 16),
        Self::RandomRead(4096, 64),
        Self::RandomRead(4096, 128),
        Self::ReadAgain(16_384, 64),
        Self::Copy,
        Self::MakeFileSystem,
    ];

    /// The first one that needs all of the data.
    pub(super) const FIRST_READ: Self = Self::Read;

    /// The result in a unit of its own.
    pub(super) fn speed(self, took: Duration) -> String {
        let took = took.as_secs_f64();
        match self {
            Self::RandomRead(count, _) | Self::ReadAgain(count, _) => {
                format!("{:.0}/s", f64::from(count) / took)
            }
            _ => format!("{took:.1} s"),
        }
    }

    /// The requests of NBD, if it is this program that sends them.
    pub(super) fn requests(self) -> Option<u64> {
        match self {
            Self::Write => Some(DATA / PIECE + 1),
            Self::Read => Some(DATA / PIECE),
            Self::RandomRead(count, _) | Self::ReadAgain(count, _) => Some(count.into()),
            Self::Copy | Self::MakeFileSystem => None,
        }
    }

    /// The part before the measurement.
    pub(super) async fn prepare(self, uri: &str) -> Result<()> {
        match self {
            Self::ReadAgain(..) => read(uri, WORKING_SET).await,
            _ => Ok(()),
        }
    }

    pub(super) async fn run(self, uri: &str, dir: &Path) -> Result<()> {
        match self {
            Self::Write => write(uri, 0..DATA).await?,
            Self::Read => read(uri, DATA).await?,
            Self::RandomRead(count, depth) => {
                let mut blocks: Vec<u64> = (0..ALL_DATA / BLOCK).collect();
                // In the same order each time, and another one for each depth.
                fastrand::Rng::with_seed(depth.into()).shuffle(&mut blocks);
                let places = blocks.into_iter().take(count.into());
                read_pages(uri, places.map(|block| block * BLOCK + 8 * 4096), depth).await?;
            }
            Self::ReadAgain(count, depth) => {
                let mut random = fastrand::Rng::with_seed(depth.into());
                let mut page = || random.u64(0..WORKING_SET / u64::from(PAGE)) * u64::from(PAGE);
                read_pages(uri, (0..count).map(|_| page()), depth).await?;
            }
            Self::Copy => {
                let copy = dir.join("copy");
                run(Command::new("nbdcopy").arg(uri).arg(&copy))?;
                fs::remove_file(copy)?;
            }
            Self::MakeFileSystem => make_file_system(uri, dir)?,
        }
        Ok(())
    }
}

/// So many reads and writes of 4 to 256 KiB, 64 at once, at 1024 places of a disk of a terabyte.
pub(super) async fn mixed(uri: &str, requests: u32) -> Result<()> {
    let client = connect(uri).await?;
    let data = Bytes::from(pattern(1, 256 << 10));
    let work = mixed_load(requests, 1024).map(async |access| {
        let Access {
            offset,
            len,
            is_write,
        } = access;
        match is_write {
            true => client.write(data.slice(..len), offset).await,
            false => client.read(offset, len).await.map(drop),
        }
    });
    let work = stream::iter(work).buffer_unordered(64);
    work.try_collect::<()>().await?;
    client.flush().await?;
    Ok(client.disconnect().await?)
}

/// Writes the rest of the data.
pub(super) async fn fill(uri: &str) -> Result<()> {
    write(uri, DATA..ALL_DATA).await
}

/// Reads a page at each of these places, so many at once.
async fn read_pages(uri: &str, places: impl Iterator<Item = u64>, depth: u16) -> Result<()> {
    let client = connect(uri).await?;
    let reads = places.map(|at| client.read(at, PAGE.into()));
    let reads = stream::iter(reads).buffer_unordered(depth.into());
    reads.try_for_each(async |_| Ok(())).await?;
    Ok(client.disconnect().await?)
}

/// Reads in sequence, and compares.
async fn read(uri: &str, len: u64) -> Result<()> {
    let client = connect(uri).await?;
    let data = pattern(1, len);
    let reads = (0..len / PIECE).map(|piece| client.read(piece * PIECE, index(PIECE)));
    let mut reads = stream::iter(reads).buffered(PIECES);
    let mut at = 0;
    while let Some(read) = reads.try_next().await? {
        if read != data[at..at + read.len()] {
            return Err("other data than was written".into());
        }
        at += read.len();
    }
    Ok(client.disconnect().await?)
}

async fn write(uri: &str, range: Range<u64>) -> Result<()> {
    let client = connect(uri).await?;
    let data = Bytes::from(pattern(1, range.end));
    let writes = (range.start / PIECE..range.end / PIECE).map(|piece| {
        let at = piece * PIECE;
        client.write(data.slice(index(at)..index(at + PIECE)), at)
    });
    let writes = stream::iter(writes).buffer_unordered(PIECES);
    writes.try_collect::<Vec<_>>().await?;
    client.flush().await?;
    Ok(client.disconnect().await?)
}

async fn connect(uri: &str) -> Result<Client> {
    let connections = env::var("CONNECTIONS").map_or(Ok(4), |text| text.parse())?;
    let options = ConnectOptions::new().connections(connections);
    // nbdkit's plugin needs longer for some of it than a client waits otherwise.
    let options = options.request_timeout(Some(Duration::from_secs(600)));
    Ok(options.local_files(true).connect_uri(&uri.parse()?).await?)
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

fn make_file_system(uri: &str, dir: &Path) -> Result<()> {
    let mounted = dir.join("nbdfuse");
    fs::create_dir_all(&mounted)?;
    let mut fuse = Command::new("nbdfuse")
        .arg(&mounted)
        .arg(uri)
        .stdin(Stdio::null())
        .spawn()?;
    let disk = mounted.join("nbd");
    wait_for("nbdfuse", || disk.exists())?;
    let made = run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .arg(&disk));
    run(Command::new("fusermount3").arg("-u").arg(&mounted))?;
    fuse.wait()?;
    made
}

fn run(command: &mut Command) -> Result<()> {
    let limited = command.stdin(Stdio::null()).output()?;
    if limited.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&limited.stderr);
    Err(format!("{command:?}: {}: {said}", limited.status).into())
}
