//! A foreign server that runs, and its address.

use std::{
    ffi::OsString,
    fmt, fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tempfile::TempDir;

use crate::{
    Certificates, Port, Program,
    process::{Process, Stop, wait_for},
};

/// The number of TCP ports to try if other programs take them in the meantime, where none can be
/// held.
const PORT_TRIES: usize = 5;

/// The number of the machine itself, among virtual machines.
const VMADDR_CID_LOCAL: u32 = 1;

/// The kind of address that a server shall listen on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Listen {
    /// On a Unix socket in a directory of its own.
    #[default]
    Unix,
    /// On a free port of 127.0.0.1.
    Tcp4,
    /// On a free port of ::1.
    Tcp6,
    /// On a port of vsock, which nbdkit alone can.
    Vsock,
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endpoint {
    /// On the Unix socket of this path.
    Unix(PathBuf),
    /// On this address and port.
    Tcp(SocketAddr),
    /// On this port of the sockets between virtual machines and their host, for programs of the
    /// same machine.
    Vsock(u32),
}

impl Endpoint {
    /// A port of vsock without a listener, in a machine where no other program uses them.
    pub fn unused_vsock() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(20_000);
        Self::Vsock(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The path of the Unix socket.
    ///
    /// # Panics
    ///
    /// When it is something else.
    pub fn socket(&self) -> &Path {
        match self {
            Self::Unix(path) => path,
            other => panic!("the server listens on {other:?}"),
        }
    }

    /// The TCP address.
    ///
    /// # Panics
    ///
    /// When it is something else.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Tcp(address) => *address,
            other => panic!("the server listens on {other:?}"),
        }
    }

    /// The address to listen on, and the port that is held for it.
    fn new(listen: Listen, dir: &Path) -> (Self, Option<Port>) {
        let tcp = |port: Port| (Self::Tcp(port.address()), Some(port));
        match listen {
            Listen::Unix => (Self::Unix(dir.join("socket")), None),
            Listen::Tcp4 => tcp(Port::new(Ipv4Addr::LOCALHOST)),
            Listen::Tcp6 => tcp(Port::new(Ipv6Addr::LOCALHOST)),
            Listen::Vsock => (Self::unused_vsock(), None),
        }
    }

    /// Whether a server can listen there: not while a killed one is still dying.
    ///
    /// A Unix socket is made anew at its path, even if an old one is there, and a port of vsock is
    /// free at once.
    fn is_free(&self) -> bool {
        match self {
            Self::Unix(_) | Self::Vsock(_) => true,
            Self::Tcp(address) => TcpListener::bind(address).is_ok(),
        }
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> String {
        self.any_uri("", export, "")
    }

    /// The URI of an export over TLS, which names the directory of certificates to use.
    pub fn tls_uri(&self, export: &str, certificates: &Certificates) -> String {
        let query = format!("tls-certificates={}", certificates.dir().display());
        self.any_uri("s", export, &query)
    }

    fn any_uri(&self, secure: &str, export: &str, query: &str) -> String {
        // The export names in tests need no percent encoding, save this one.
        let export = export.replace(' ', "%20");
        match self {
            Self::Unix(path) => {
                let more = if query.is_empty() { "" } else { "&" };
                format!(
                    "nbd{secure}+unix:///{export}?socket={}{more}{query}",
                    path.display()
                )
            }
            Self::Tcp(address) => {
                let more = if query.is_empty() { "" } else { "?" };
                format!("nbd{secure}://{address}/{export}{more}{query}")
            }
            Self::Vsock(port) => {
                let more = if query.is_empty() { "" } else { "?" };
                format!("nbd{secure}+vsock://{VMADDR_CID_LOCAL}:{port}/{export}{more}{query}")
            }
        }
    }
}

/// The sign that a server listens.
pub(crate) enum Ready {
    /// By writing its process id to [`pid_file`].
    PidFile,
    /// By accepting a connection, some time after it has written the same.
    Connects,
}

/// The file to which a server shall write its process id.
pub(crate) fn pid_file(dir: &Path) -> PathBuf {
    dir.join("pid")
}

/// From the server's own directory and its endpoint to the command that starts it.
type MakeCommand = Box<dyn Fn(&Program, &Path, &Endpoint) -> Command + Send + Sync>;

/// The way to start a server, as often as need be.
pub(crate) struct Recipe {
    pub(crate) program: Program,
    pub(crate) command: MakeCommand,
    pub(crate) ready: Ready,
    pub(crate) stop: Stop,
}

impl Recipe {
    pub(crate) fn start(self, listen: Listen) -> Server {
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir();
        let dir = dir.expect("a temporary directory can be made");
        let mut tries = PORT_TRIES;
        loop {
            let (endpoint, port) = Endpoint::new(listen, dir.path());
            match self.launch(dir.path(), &endpoint) {
                Ok(process) => {
                    return Server {
                        process,
                        endpoint,
                        recipe: self,
                        dir,
                        _port: port,
                    };
                }
                Err(Failure { printed, .. }) if tries > 1 && printed.contains("in use") => {
                    tries -= 1;
                }
                Err(Failure {
                    command,
                    status,
                    printed,
                }) => {
                    panic!("{command} ended with {status} before it served\n{printed}")
                }
            }
        }
    }

    fn launch(&self, dir: &Path, endpoint: &Endpoint) -> Result<Arc<Process>, Failure> {
        let pid_file = pid_file(dir);
        drop(fs::remove_file(&pid_file));
        if let Endpoint::Unix(socket) = endpoint {
            drop(fs::remove_file(socket));
        }

        let command = (self.command)(&self.program, dir, endpoint);
        let process = Process::spawn(command, self.stop, &dir.join("log"));
        let ready = process.wait_until(|| {
            let pid_written = fs::read(&pid_file).is_ok_and(|pid| !pid.is_empty());
            pid_written
                && match (&self.ready, endpoint) {
                    (Ready::PidFile, _) => true,
                    (Ready::Connects, Endpoint::Unix(path)) => UnixStream::connect(path).is_ok(),
                    (Ready::Connects, other) => TcpStream::connect(other.address()).is_ok(),
                }
        });
        ready.map_err(|status| Failure {
            command: process.command().to_owned(),
            status,
            printed: process.printed(),
        })?;
        Ok(process)
    }
}

struct Failure {
    command: String,
    status: ExitStatus,
    printed: String,
}

/// A running server; dropping it stops it.
pub struct Server {
    process: Arc<Process>,
    endpoint: Endpoint,
    recipe: Recipe,
    /// Holds the socket, the log, and other files of the server.
    dir: TempDir,
    /// Kept for it also while it is not running.
    _port: Option<Port>,
}

impl Server {
    /// Its address.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The path of its Unix socket.
    ///
    /// # Panics
    ///
    /// When it listens on something else.
    pub fn socket(&self) -> &Path {
        self.endpoint.socket()
    }

    /// Its TCP address.
    ///
    /// # Panics
    ///
    /// When it listens on something else.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address()
    }

    /// The URI of one of its exports.
    pub fn uri(&self, export: &str) -> String {
        self.endpoint.uri(export)
    }

    /// The URI of one of its exports over TLS, which names the directory of certificates to use.
    pub fn tls_uri(&self, export: &str, certificates: &Certificates) -> String {
        self.endpoint.tls_uri(export, certificates)
    }

    /// The program it runs.
    pub const fn program(&self) -> &Program {
        &self.recipe.program
    }

    /// A directory of its own, gone when the server is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Everything it has printed so far.
    pub fn printed(&self) -> String {
        self.process.printed()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.try_wait()
    }

    /// Kills it at once, in the middle of its requests.
    pub fn kill(&self) {
        self.process.stop();
    }

    /// Stops it, unless it has ended, and starts it anew at the same place.
    ///
    /// # Panics
    ///
    /// When it does not start again.
    pub fn restart(&mut self) {
        self.process.stop();
        // The process that has ended may have been the guard of others.
        wait_for("the port of the server before", || self.endpoint.is_free());
        match self.recipe.launch(self.dir.path(), &self.endpoint) {
            Ok(process) => self.process = process,
            Err(Failure {
                command,
                status,
                printed,
            }) => {
                panic!("{command} ended with {status} when started again\n{printed}")
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("command", &self.process.command())
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// An option and its value as one argument, for values that are paths.
pub(crate) fn joined(option: &str, value: &Path) -> OsString {
    let mut argument = OsString::from(option);
    argument.push(value);
    argument
}
