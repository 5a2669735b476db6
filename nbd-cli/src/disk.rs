//! A disk that is read or written from one end to the other: an export of a server, or a file.
//!
//! Files are read and written in place, on the thread that asks: the system reads ahead and writes
//! behind, so that there is nothing to gain by waiting elsewhere.

use crate::{
    connect::Connect,
    embedded::Embedded,
    object::Address,
    outcome::{Context, Error, Result},
    range::Unreachable,
    target::Target,
};
use nbd_tokio::{
    Client, CommandFlags, ConnectOptions, ContextName, ExportInfo, Tokio, Uri,
    bytes::{Bytes, BytesMut},
    exports::{Errno, Export, Failure, File, ZeroMode},
    meta::Allocation,
    nbd_io::client::Reconnect,
    nbd_proto::uri::Address as ServerAddress,
};
use std::{
    error::Error as StdError,
    net::IpAddr,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};
use tokio::{
    task::{consume_budget, spawn_blocking},
    time::{Instant, sleep},
};

/// Zeroes for servers that do not make them.
static ZEROES: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; 256 << 10]);

/// The connections to a server on this machine. Each more of them costs it and this process some time of processors
/// that both share.
const NEAR: usize = 2;

/// The connections to another server, which may be far away, and may answer one request of each after the other.
const FAR: usize = 4;

/// The reason for which a step failed.
type Cause = Box<dyn StdError + Send + Sync>;

/// Settings to open a disk.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) connect: Connect,
    /// The number of connections to a server that allows several, of all threads together. Without it, there are a
    /// few, or one where they cannot be had.
    pub(crate) connections: Option<usize>,
    /// The number of threads, of which each has connections of its own.
    pub(crate) threads: usize,
    /// The policy for a lost connection.
    pub(crate) reconnect: Option<Reconnect>,
    /// A context that marks the ranges to be copied.
    pub(crate) only: Option<ContextName>,
}

impl Access {
    /// The number of connections that one thread makes.
    fn connections_to(&self, uri: &Uri) -> usize {
        let few = if is_near(uri.address()) { NEAR } else { FAR };
        self.connections.unwrap_or(few).div_ceil(self.threads)
    }
}

/// Whether a server is on this machine, as far as its address says so.
fn is_near(server: &ServerAddress) -> bool {
    match server {
        ServerAddress::Unix { .. } | ServerAddress::Abstract { .. } => true,
        ServerAddress::Tcp { host, .. } => {
            let host = host.as_str();
            let address = host.parse::<IpAddr>();
            host == "localhost" || address.is_ok_and(|address| address.is_loopback())
        }
        _ => false,
    }
}

/// A disk, as one thread has it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    name: String,
    back: Back,
    known: Arc<KnownData>,
    server: Option<Arc<Server>>,
}

/// The server of a disk.
#[derive(Debug)]
struct Server {
    uri: Uri,
    /// Keeps it, if it is in this process.
    _embedded: Option<Embedded>,
}

/// A range of a server's disk that is marked and holds data, as the server has said of more than it
/// was asked for. To find the end of data, a server may have to look through all of it, so that it is
/// not to be asked again for each part.
#[derive(Debug, Default)]
struct KnownData(Mutex<Range<u64>>);

#[derive(Clone, Debug)]
enum Back {
    Server(Client),
    File(Arc<File>),
}

/// A part of a disk of which all is alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) range: Range<u64>,
    /// Known to read as zeroes.
    pub(crate) zero: bool,
    /// Whether the context that marks the ranges to be copied marks it. True without one.
    pub(crate) marked: bool,
}

impl Disk {
    /// Opens a disk for reading.
    pub(crate) async fn open(target: &Target, access: &Access) -> Result<Self> {
        match target {
            Target::Server(_) => Self::connect(target, access).await,
            Target::Object(address) => Self::object(address, false, None, access).await,
            Target::Path(path) => {
                let file = File::open_read_only(path);
                let file = file.step(|| format!("cannot open {}", path.display()))?;
                Ok(Self::file(path.display().to_string(), file))
            }
            Target::Stdio => Err(Error::new("expected a disk, got \"-\"")),
        }
    }

    /// Connects to a server.
    pub(crate) async fn connect(target: &Target, access: &Access) -> Result<Self> {
        let Target::Server(uri) = target else {
            return Err(Error::new(format!("expected a URI, got {target}")));
        };
        let server = Server {
            uri: uri.clone(),
            _embedded: None,
        };
        Self::connect_to(target.to_string(), Arc::new(server), access).await
    }

    /// Opens a disk on object storage, or makes it with a size.
    pub(crate) async fn object(
        address: &Address,
        writable: bool,
        size: Option<u64>,
        access: &Access,
    ) -> Result<Self> {
        let name = address.to_string();
        let opened = address.clone();
        // It waits for the store by a runtime of its own.
        let opening = spawn_blocking(move || Embedded::object(&opened, writable, size));
        let embedded = opening.await.step(|| format!("cannot open {name}"))??;
        let server = Server {
            uri: embedded.uri().clone(),
            _embedded: Some(embedded),
        };
        Self::connect_to(name, Arc::new(server), access).await
    }

    async fn connect_to(name: String, server: Arc<Server>, access: &Access) -> Result<Self> {
        let uri = &server.uri;
        let connections = access.connections_to(uri);
        let mut options: ConnectOptions = access.connect.options::<Tokio, _>()?;
        options = options
            .context(ContextName::base_allocation())
            .connections(connections)
            .reconnect(access.reconnect.clone());
        if let Some(only) = &access.only {
            options = options.require_context(only.clone());
        }
        let mut client = options.connect_uri(uri).await;
        if let Err(nbd_tokio::Error::Negotiation { .. }) = &client
            && access.connections.is_none()
            && connections > 1
        {
            // It can be reached, and may be one that serves only so many.
            options = options.connections(1);
            client = options.connect_uri(uri).await;
        }
        if let Some(policy) = &access.reconnect {
            client = insist(client, policy, async || options.connect_uri(uri).await).await;
        }
        let client = client?;
        if let Some(missing) = Unreachable::of(client.export()) {
            return Err(Error::new(format!("{name}: {missing}")));
        }
        Ok(Self {
            name,
            back: Back::Server(client),
            known: Arc::default(),
            server: Some(server),
        })
    }

    /// The same for another thread: over connections of its own, if it is a server's.
    pub(crate) async fn again(&self, access: &Access) -> Result<Self> {
        match &self.server {
            Some(server) => Ok(Self {
                known: self.known.clone(),
                ..Self::connect_to(self.name.clone(), Arc::clone(server), access).await?
            }),
            None => Ok(self.clone()),
        }
    }

    /// Takes note of a file that has grown.
    pub(crate) fn refresh(&self) {
        if let Back::File(file) = &self.back {
            file.refresh();
        }
    }

    /// Whether it says that all of it is zero.
    pub(crate) async fn is_known_to_be_zero(&self) -> Result<bool> {
        let Back::Server(client) = &self.back else {
            return Ok(false);
        };
        if client.contexts().is_empty() {
            return Ok(false);
        }
        let mut extents = client.extents(0..client.size());
        while let Some(run) = extents.next().await {
            let run = run.map_err(|error| self.failed("find the extents of", 0, error.into()))?;
            if !run.allocation().is_some_and(Allocation::is_zero) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A file that is open.
    pub(crate) fn file(name: String, file: File) -> Self {
        Self {
            name,
            back: Back::File(Arc::new(file)),
            known: Arc::default(),
            server: None,
        }
    }

    /// Its URI or path.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn size(&self) -> u64 {
        match &self.back {
            Back::Server(client) => client.size(),
            Back::File(file) => file.size(),
        }
    }

    /// The export, unless it is a file.
    pub(crate) fn export(&self) -> Option<&ExportInfo> {
        match &self.back {
            Back::Server(client) => Some(client.export()),
            Back::File(_) => None,
        }
    }

    /// Whether several threads may use it, each with a connection of its own.
    pub(crate) fn is_shareable(&self) -> bool {
        self.export().is_none_or(ExportInfo::can_multi_conn)
    }

    /// Blocks of which only the whole can be written without being read.
    pub(crate) fn block(&self) -> u64 {
        match &self.back {
            Back::Server(client) => client.block_sizes().minimum().into(),
            Back::File(_) => 1,
        }
    }

    /// Fills a buffer.
    pub(crate) async fn read(&self, mut buffer: BytesMut, offset: u64) -> Result<BytesMut> {
        let read = match &self.back {
            Back::Server(client) => {
                let read = client.read_into(buffer, offset).await;
                read.map_err(|failed| nbd_tokio::Error::from(failed).into())
            }
            Back::File(file) => {
                // The other side and signals want their turn.
                consume_budget().await;
                let read = file.read(offset, &mut buffer);
                read.map(|()| buffer).map_err(Cause::from)
            }
        };
        read.map_err(|cause| self.failed("read", offset, cause))
    }

    /// Writes data.
    pub(crate) async fn write(&self, data: Bytes, offset: u64) -> Result<()> {
        let written = match &self.back {
            Back::Server(client) => client.write(data, offset).await.map_err(Cause::from),
            Back::File(file) => {
                consume_budget().await;
                file.write(offset, &data, false).map_err(Cause::from)
            }
        };
        written.map_err(|cause| {
            let full = if is_full(&cause) { ": it is full" } else { "" };
            Error::Step {
                what: format!("cannot write {} at {offset}{full}", self.name),
                source: cause,
            }
        })
    }

    /// Makes zeroes in the cheapest way: with space for later writes if `allocate`, without if not.
    pub(crate) async fn zero(&self, range: Range<u64>, allocate: bool) -> Result<()> {
        let (offset, len) = (range.start, range.end - range.start);
        let zeroed = match &self.back {
            Back::Server(client) if client.export().can_write_zeroes() => {
                let flags = if allocate {
                    CommandFlags::NO_HOLE
                } else {
                    CommandFlags::NONE
                };
                client
                    .write_zeroes(offset, len, flags)
                    .await
                    .map_err(Cause::from)
            }
            Back::Server(_) => return self.write_zeroes(range).await,
            Back::File(file) => {
                consume_budget().await;
                let mode = ZeroMode {
                    no_hole: allocate,
                    ..ZeroMode::default()
                };
                file.write_zeroes(offset, len, mode).map_err(Cause::from)
            }
        };
        zeroed.map_err(|cause| self.failed("write zeroes to", offset, cause))
    }

    async fn write_zeroes(&self, range: Range<u64>) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let len = (range.end - offset).min(ZEROES.len() as u64);
            let zeroes = Bytes::from_static(&ZEROES[..usize::try_from(len).unwrap_or(0)]);
            self.write(zeroes, offset).await?;
            offset += len;
        }
        Ok(())
    }

    /// Puts everything that was written by this thread on stable storage, as far as the server can.
    pub(crate) async fn flush(&self) -> Result<()> {
        let flushed = match &self.back {
            Back::Server(client) if !client.export().can_flush() => Ok(()),
            Back::Server(client) => client.flush().await.map_err(Cause::from),
            Back::File(file) => file.flush().map_err(Cause::from),
        };
        flushed.map_err(|source| Error::Step {
            what: format!("cannot flush {}", self.name),
            source,
        })
    }

    /// Ends the session with a server, where there is something to be said.
    pub(crate) async fn close(&self) {
        if let Back::Server(client) = &self.back {
            // All of it has been answered.
            let _ = client.disconnect().await;
        }
    }

    /// The runs of a range, to its end and without gaps.
    pub(crate) async fn runs(
        &self,
        range: Range<u64>,
        only: Option<&ContextName>,
    ) -> Result<Vec<Run>> {
        let runs = match &self.back {
            Back::Server(client) => {
                let known = self.known.of(range.clone());
                let rest = known.end..range.end;
                let asked = client_runs(client, rest, only, &self.known).await;
                asked.map(|runs| Run::data(known).into_iter().chain(runs).collect())
            }
            Back::File(file) => file_runs(file, range.clone()),
        };
        runs.map_err(|cause| self.failed("find the extents of", range.start, cause))
    }

    fn failed(&self, what: &str, offset: u64, source: Cause) -> Error {
        Error::Step {
            what: format!("cannot {what} {} at {offset}", self.name),
            source,
        }
    }
}

/// Connects again, as often as the policy for lost connections allows, if the server could not be
/// reached.
async fn insist(
    mut connected: Result<Client, nbd_tokio::Error>,
    policy: &Reconnect,
    connect: impl AsyncFn() -> Result<Client, nbd_tokio::Error>,
) -> Result<Client, nbd_tokio::Error> {
    let began = Instant::now();
    let mut attempts = 0;
    while let Err(error) = &connected
        && error.is_temporary()
        && policy.allows(attempts)
        && policy
            .time_limit()
            .is_none_or(|limit| began.elapsed() < limit)
    {
        tracing::info!("{error}; it is tried again");
        sleep(policy.delay_after(attempts)).await;
        attempts += 1;
        connected = connect().await;
    }
    connected
}

/// Whether the server or the file system has run out of space.
fn is_full(cause: &Cause) -> bool {
    let answered = cause.downcast_ref::<nbd_tokio::Error>();
    let answered = answered.and_then(nbd_tokio::Error::errno);
    let failed = cause.downcast_ref::<Failure>();
    let errno = answered.or_else(|| failed.map(|failure| failure.errno));
    errno.is_some_and(|errno| errno.normalized() == Errno::NoSpc)
}

impl Run {
    /// A range that holds data and is marked, unless it is empty.
    fn data(range: Range<u64>) -> Option<Self> {
        (!range.is_empty()).then_some(Self {
            range,
            zero: false,
            marked: true,
        })
    }
}

impl KnownData {
    /// The beginning of a range, as far as it is known.
    fn of(&self, range: Range<u64>) -> Range<u64> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = if known.contains(&range.start) {
            known.end.min(range.end)
        } else {
            range.start
        };
        range.start..end
    }

    fn set(&self, range: Range<u64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = range;
    }
}

async fn client_runs(
    client: &Client,
    range: Range<u64>,
    only: Option<&ContextName>,
    known: &KnownData,
) -> Result<Vec<Run>, Cause> {
    if client.contexts().is_empty() || range.is_empty() {
        return Ok(Run::data(range).into_iter().collect());
    }
    let mut runs = Vec::new();
    let mut extents = client.extents(range);
    while let Some(run) = extents.next().await {
        let run = run?;
        let end = run.offset + run.len;
        let zero = run.allocation().is_some_and(Allocation::is_zero);
        let marked = only.is_none_or(|only| run.status_of(only).is_some_and(|status| status != 0));
        // Zeroes may be gone when they are needed; data is read anyway.
        if run.beyond > 0 && marked && !zero {
            known.set(end..end.saturating_add(run.beyond));
        }
        runs.push(Run {
            range: run.offset..end,
            zero,
            marked,
        });
    }
    Ok(runs)
}

fn file_runs(file: &File, range: Range<u64>) -> Result<Vec<Run>, Cause> {
    let mut runs = Vec::new();
    let mut offset = range.start;
    while offset < range.end {
        let extent = file.allocation(offset, range.end - offset)?;
        let end = offset + extent.len;
        runs.push(Run {
            range: offset..end,
            zero: Allocation::new(extent.status).is_zero(),
            marked: true,
        });
        offset = end;
    }
    Ok(runs)
}

/// Whether two paths are of the same file, so that one cannot be copied to the other.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    identity(a).is_some_and(|identity_of_a| identity(b) == Some(identity_of_a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_which_servers_are_on_this_machine() {
        let is_near = |uri: &str| is_near(uri.parse::<Uri>().unwrap().address());
        for uri in [
            "nbd+unix:///?socket=/tmp/nbd.sock",
            "nbd://localhost/disk",
            "nbds://127.0.0.2:10810",
            "nbd://[::1]",
        ] {
            assert!(is_near(uri), "{uri}");
        }
        for uri in [
            "nbd://example.com",
            "nbd://10.0.0.1",
            "nbd://[fe80::1%25eth0]",
            "nbd+vsock://2",
        ] {
            assert!(!is_near(uri), "{uri}");
        }
    }
}
