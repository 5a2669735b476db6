//! Uses of a disk.

use super::{Result, servers::wait_for};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use interop::pattern;
use nbd_tokio::{Client, ConnectOptions};
use std::{
    fmt, fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// The bytes that are written, and read.
const DATA: u64 = 64 << 20;
/// The block of all disks, in bytes.
const BLOCK: u64 = 64 << 10;
/// The length of sequential requests, and the number of them in flight.
const PIECE: u64 = 256 << 10;
const PIECES: usize = 16;
/// The length of random reads, and the number of them in flight.
const PAGE: usize = 4096;
const DEPTH: usize = 64;
/// The number of random reads, each of another block.
const READS: u64 = DATA / BLOCK;
const CONNECTIONS: usize = 4;

/// In the order in which they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Workload {
    Write,
    Read,
    RandomRead,
    Copy,
    MakeFileSystem,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Write => "write 64 MiB in sequence, and flush",
            Self::Read => "read 64 MiB in sequence",
            Self::RandomRead => "read 4 KiB at random, 64 at once",
            Self::Copy => "copy to a file, with holes (nbdcopy)",
            Self::MakeFileSystem => "make a file system (mke2fs over nbdfuse)",
        })
    }
}

impl Workload {
    pub(super) const ALL: [Self; 5] = [
        Self::Write,
        Self::Read,
        Self::RandomRead,
        Self::Copy,
        Self::MakeFileSystem,
    ];

    /// The result in a unit of its own.
    pub(super) fn speed(self, took: Duration) -> String {
        let took = took.as_secs_f64();
        match self {
            Self::Write | Self::Read => format!("{:.1} MiB/s", 64.0 / took),
            Self::RandomRead => format!("{:.0} reads/s", f64::from(1024_u16) / took),
            Self::Copy | Self::MakeFileSystem => String::new(),
        }
    }

    pub(super) async fn run(self, uri: &str, dir: &Path) -> Result<()> {
        match self {
            Self::Write => {
                let client = connect(uri).await?;
                let data = Bytes::from(pattern(1, DATA));
                let writes = (0..DATA / PIECE).map(|piece| {
                    let at = piece * PIECE;
                    let data = data.slice(index(at)..index(at + PIECE));
                    client.write(data, at)
                });
                let writes = stream::iter(writes).buffer_unordered(PIECES);
                writes.try_collect::<Vec<_>>().await?;
                client.flush().await?;
                client.disconnect().await?;
            }
            Self::Read => {
                let client = connect(uri).await?;
                let data = pattern(1, DATA);
                let reads = (0..DATA / PIECE).map(|piece| client.read(piece * PIECE, index(PIECE)));
                let mut reads = stream::iter(reads).buffered(PIECES);
                let mut at = 0;
                while let Some(read) = reads.try_next().await? {
                    if read != data[at..at + read.len()] {
                        return Err("other data than was written".into());
                    }
                    at += read.len();
                }
                client.disconnect().await?;
            }
            Self::RandomRead => {
                let client = connect(uri).await?;
                // A multiplier that is odd visits each block once.
                let offsets = (0..READS).map(|read| (read * 389 + 7) % READS * BLOCK + 8 * 4096);
                let reads = offsets.map(|at| client.read(at, PAGE));
                let reads = stream::iter(reads).buffer_unordered(DEPTH);
                reads.try_collect::<Vec<_>>().await?;
                client.disconnect().await?;
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

async fn connect(uri: &str) -> Result<Client> {
    let options = ConnectOptions::new().connections(CONNECTIONS);
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
