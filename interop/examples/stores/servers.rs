//! The servers that are measured.

use super::{Result, store::Store, workloads::Workload};
use interop::{Nbdkit, ObjectStoreServer};
use std::{
    env, fmt, fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The time in which a server has to be ready, or gone.
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Nbd,
    Nbdkit,
    /// With its filter that keeps blocks in a local file.
    NbdkitCache,
    S3backer,
}

impl Contender {
    pub(super) const ALL: [Self; 4] = [Self::Nbd, Self::Nbdkit, Self::NbdkitCache, Self::S3backer];

    /// Whether a workload shows anything of it. nbdkit's cache takes one request after the other, and is
    /// measured where it may help.
    pub(super) fn does(self, workload: Workload) -> bool {
        self != Self::NbdkitCache
            || matches!(
                workload,
                Workload::Write
                    | Workload::Read
                    | Workload::RandomRead(_, 64)
                    | Workload::ReadAgain(..)
            )
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nbd => "nbd",
            Self::Nbdkit => "nbdkit",
            Self::NbdkitCache => "nbdkit-cache",
            Self::S3backer => "s3backer",
        })
    }
}

/// A server that runs.
pub(super) struct Server {
    uri: String,
    /// The server, or the file system below it.
    child: Option<Child>,
    nbdkit: Option<interop::Server>,
    mounted: Option<PathBuf>,
}

impl Server {
    pub(super) fn start(
        contender: Contender,
        store: &Store,
        size: &str,
        dir: &Path,
    ) -> Result<Self> {
        let line = store.address();
        match contender {
            Contender::Nbd => Self::nbd(store, size, dir),
            Contender::Nbdkit | Contender::NbdkitCache => {
                let threads = env::var("THREADS").unwrap_or_else(|_| "16".into());
                let plugin = Nbdkit::new("S3")
                    .param(format!("endpoint-url=http://{line}"))
                    .param(format!("bucket={}", ObjectStoreServer::BUCKET))
                    .param("key=disk")
                    .param("access-key=test")
                    .param("secret-key=test")
                    .param(format!("size={size}"))
                    .param("object-size=64K")
                    .arg(format!("--threads={threads}"));
                let plugin = match contender {
                    Contender::NbdkitCache => plugin.filter("cache").param("cache-on-read=true"),
                    _ => plugin,
                };
                // It insists on whole objects, although it can do without.
                let policy = plugin
                    .filter("blocksize-policy")
                    .param("blocksize-minimum=1")
                    .param("blocksize-maximum=32M");
                Self::over(policy, None, None)
            }
            Contender::S3backer => Self::s3backer(store, size, dir),
        }
    }

    fn over(nbdkit: Nbdkit, child: Option<Child>, mounted: Option<PathBuf>) -> Result<Self> {
        let nbdkit = nbdkit.start().ok_or("nbdkit is not installed")?;
        Ok(Self {
            uri: nbdkit.uri(""),
            child,
            nbdkit: Some(nbdkit),
            mounted,
        })
    }

    /// The tool, which is built beside this program.
    fn nbd(store: &Store, size: &str, dir: &Path) -> Result<Self> {
        let beside = env::current_exe()?;
        let beside = beside
            .ancestors()
            .nth(2)
            .ok_or("a program without a directory")?;
        let socket = dir.join("socket");
        let child = Command::new(beside.join("nbd"))
            .args(["serve", &store.uri("disk"), "--create", size, "--unix"])
            .arg(&socket)
            .envs(store.variables())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        // The file is there a little before it is listened at.
        wait_for("nbd serve", || UnixStream::connect(&socket).is_ok())?;
        Ok(Self {
            uri: format!("nbd+unix:///disk?socket={}", socket.display()),
            child: Some(child),
            nbdkit: None,
            mounted: None,
        })
    }

    /// A file in a file system, which nbdkit serves.
    fn s3backer(store: &Store, size: &str, dir: &Path) -> Result<Self> {
        let mounted = dir.join("mounted");
        fs::create_dir_all(&mounted)?;
        let child = Command::new("s3backer")
            .args([
                "-f",
                "--blockSize=64k",
                "--accessId=test",
                "--accessKey=test",
            ])
            .arg(format!("--size={size}"))
            .arg(format!("--baseURL=http://{}/", store.address()))
            .arg(ObjectStoreServer::BUCKET)
            .arg(&mounted)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let file = mounted.join("file");
        wait_for("s3backer", || file.exists())?;
        let mut path = std::ffi::OsString::from("file=");
        path.push(&file);
        Self::over(Nbdkit::new("file").param(path), Some(child), Some(mounted))
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// The peak of its resident memory in KiB, if it is a process of its own.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        interop::peak_memory(self.child.as_ref()?.id()).ok()
    }

    /// Ends it, after all that it has to write.
    pub(super) fn stop(self) -> Result<()> {
        drop(self.nbdkit);
        let Some(mut child) = self.child else {
            return Ok(());
        };
        if let Some(mounted) = self.mounted {
            Command::new("fusermount3")
                .arg("-u")
                .arg(mounted)
                .status()?;
        } else {
            let id = child.id().to_string();
            Command::new("kill").arg(id).status()?;
        }
        child.wait()?;
        Ok(())
    }
}

/// Waits for something that is no event.
pub(super) fn wait_for(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let start = Instant::now();
    while !holds() {
        if start.elapsed() > LIMIT {
            return Err(format!("{what} has not come in {LIMIT:?}").into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
