//! A client whose server is killed again and again while tasks verify their writes. A test that
//! includes this file says in `recovering` how the client is used: its `Storage`, and a function
//! `hold` for a session.

use super::{example::program, recovering::hold};
use interop::{Endpoint, Image, Listen, Nbdkit, Port, QemuNbd, Server as Foreign, deadline};
use nbd_io::client::{Error, Reconnect};
use nbd_proto::CommandFlags;
use std::{
    env, fs,
    net::{Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const SIZE: u64 = 1 << 20;

/// The number of kills of each server by each client; the environment's `KILLS` asks for more.
fn kills() -> usize {
    env::var("KILLS").map_or(20, |text| text.parse().expect("a number of kills"))
}

const TASKS: u64 = 4;

/// The part of the export that a task has to itself, in bytes.
const SHARE: usize = 256 << 10;

/// The longest time without a reply for a task. The server is killed and restarted, and the client
/// reconnects meanwhile.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The example `serve` of this crate, which serves a file.
struct Own {
    child: Child,
    program: PathBuf,
    image: Image,
    endpoint: Endpoint,
    _dir: TempDir,
    /// Kept for the server also while it is not running.
    _port: Option<Port>,
}

impl Own {
    fn start(image: Image, listen: Listen) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = (listen != Listen::Unix).then(|| Port::new(Ipv4Addr::LOCALHOST));
        let endpoint = match &port {
            None => Endpoint::Unix(dir.path().join("socket")),
            Some(port) => Endpoint::Tcp(port.address()),
        };
        let program = program(env!("CARGO_PKG_NAME"), &dir);
        let child = Self::launch(&program, &image, &endpoint);
        Self {
            child,
            program,
            image,
            endpoint,
            _dir: dir,
            _port: port,
        }
    }

    fn launch(program: &Path, image: &Image, endpoint: &Endpoint) -> Child {
        let mut command = Command::new(program);
        command.arg("--quiet").arg("--file").arg(image.path());
        match endpoint {
            Endpoint::Tcp(address) => command.arg("--tcp").arg(address.port().to_string()),
            other => {
                drop(fs::remove_file(other.socket()));
                command.arg("--unix").arg(other.socket())
            }
        };
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        let reached = || match endpoint {
            Endpoint::Tcp(address) => TcpStream::connect(("localhost", address.port())).is_ok(),
            other => UnixStream::connect(other.socket()).is_ok(),
        };
        while !reached() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            assert!(start.elapsed() < TIMEOUT, "{command:?} does not serve");
            thread::sleep(Duration::from_millis(5));
        }
        child
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A server that is killed and started again at the same place.
enum Victim {
    Foreign(Foreign),
    Own(Own),
}

impl Victim {
    fn uri(&self) -> String {
        match self {
            Self::Foreign(server) => server.uri(""),
            Self::Own(server) => match &server.endpoint {
                // The program listens on one of the addresses of this name.
                Endpoint::Tcp(address) => format!("nbd://localhost:{}", address.port()),
                other => other.uri(""),
            },
        }
    }

    fn kill(&mut self) {
        match self {
            Self::Foreign(server) => server.kill(),
            Self::Own(server) => {
                server.child.kill().unwrap();
                server.child.wait().unwrap();
            }
        }
    }

    fn start_again(&mut self) {
        match self {
            Self::Foreign(server) => server.restart(),
            Self::Own(server) => {
                server.child = Own::launch(&server.program, &server.image, &server.endpoint);
            }
        }
    }
}

/// Requests of either client, with or without waiting.
pub(crate) trait Storage: Clone + Send + Sync + 'static {
    fn read(&self, at: u64, len: usize) -> impl Future<Output = Result<Vec<u8>, Error>> + Send;

    fn write(
        &self,
        at: u64,
        data: Vec<u8>,
        flags: CommandFlags,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    fn write_zeroes(&self, at: u64, len: u64) -> impl Future<Output = Result<(), Error>> + Send;

    fn flush(&self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A message of a task.
enum Report {
    /// A request was answered.
    Progress,
    /// The task has ended, with these contents of its share.
    Done(u64, Vec<u8>),
}

/// A task that writes and reads its share.
struct Worker<S> {
    client: S,
    number: u64,
    model: Vec<u8>,
    chance: u64,
    /// Whether unflushed writes are kept.
    keeps: bool,
}

impl<S: Storage> Worker<S> {
    fn below(&mut self, end: usize) -> usize {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        usize::try_from((self.chance >> 16) % end as u64).unwrap()
    }

    /// A range of the share.
    fn range(&mut self) -> std::ops::Range<usize> {
        let at = self.below(SHARE);
        let len = 1 + self.below((SHARE - at).min(40_000));
        at..at + len
    }

    fn place(&self, at: usize) -> u64 {
        self.number * SHARE as u64 + at as u64
    }

    async fn verify(&self, range: std::ops::Range<usize>) {
        let at = self.place(range.start);
        let found = self.client.read(at, range.len()).await.unwrap();
        assert!(found == self.model[range], "task {}: at {at}", self.number);
    }

    async fn flush(&self) {
        match self.client.flush().await {
            Ok(()) => {}
            // Written data survives the program's crash, but the client cannot know that.
            Err(Error::Unflushed) if !self.keeps => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn step(&mut self) {
        let range = self.range();
        let at = self.place(range.start);
        let value = u8::try_from(self.below(256)).unwrap();
        let data = vec![value; range.len()];
        match self.below(8) {
            0 => self.flush().await,
            1 => {
                let len = range.len() as u64;
                self.client.write_zeroes(at, len).await.unwrap();
                self.model[range].fill(0);
            }
            2 => {
                let fua = CommandFlags::FUA;
                self.client.write(at, data, fua).await.unwrap();
                self.model[range].fill(value);
            }
            3..6 => {
                let none = CommandFlags::NONE;
                self.client.write(at, data, none).await.unwrap();
                self.model[range].fill(value);
            }
            _ => {}
        }
        let range = self.range();
        self.verify(range).await;
    }

    async fn run(mut self, sender: mpsc::Sender<Report>, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            self.step().await;
            sender.send(Report::Progress).unwrap();
        }
        self.verify(0..SHARE).await;
        self.flush().await;
        sender.send(Report::Done(self.number, self.model)).unwrap();
    }
}

/// Kills a server several times, then stops the tasks. Returns the contents of the export by the
/// acknowledged writes.
fn kill_again_and_again(
    victim: &mut Victim,
    receiver: &mpsc::Receiver<Report>,
    stop: &AtomicBool,
) -> Vec<u8> {
    let next = || {
        receiver
            .recv_timeout(TIMEOUT)
            .expect("a task has panicked, or nothing is answered")
    };
    for kill in 0..kills() {
        // Messages from before the last kill say nothing about the time after it.
        while receiver.try_recv().is_ok() {}
        for _ in 0..10 + 30 * (kill % 5) {
            next();
        }
        victim.kill();
        victim.start_again();
    }
    stop.store(true, Ordering::Relaxed);
    let mut expected = vec![Vec::new(); usize::try_from(TASKS).unwrap()];
    while expected.iter().any(Vec::is_empty) {
        if let Report::Done(number, model) = next() {
            expected[usize::try_from(number).unwrap()] = model;
        }
    }
    expected.concat()
}

/// The use of a server that crashes and restarts.
pub(crate) struct Session {
    pub(crate) uri: String,
    pub(crate) policy: Reconnect,
    pub(crate) connections: usize,
    keeps: bool,
    /// The contents of the export at first.
    earlier: Vec<u8>,
    sender: mpsc::Sender<Report>,
    stop: Arc<AtomicBool>,
    /// The contents of the export at the end, sent when the kills are over.
    pub(crate) held: mpsc::Receiver<Vec<u8>>,
}

impl Session {
    /// The tasks that use the server, each with a clone of the client.
    pub(crate) fn workers<S: Storage>(
        &self,
        client: &S,
    ) -> Vec<impl Future<Output = ()> + Send + use<S>> {
        let shares = (0..TASKS).zip(self.earlier.chunks(SHARE));
        let workers = shares.map(|(number, share)| {
            let seed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let worker = Worker {
                client: client.clone(),
                number,
                model: share.to_vec(),
                chance: seed ^ self.connections as u64,
                keeps: self.keeps,
            };
            worker.run(self.sender.clone(), self.stop.clone())
        });
        workers.collect()
    }
}

/// Kills a server under load, and checks the contents that it leaves.
fn torment(victim: &mut Victim, image: &Image, connections: usize, keeps: bool) {
    // C-191, C-192
    let policy = Reconnect::new()
        .delay(Duration::from_millis(10), Duration::from_millis(100))
        .keep_unflushed(if keeps { 4 << 20 } else { 0 });
    let (sender, receiver) = mpsc::channel();
    let (enough, held) = mpsc::channel();
    let stop = Arc::<AtomicBool>::default();
    let session = Session {
        uri: victim.uri(),
        policy,
        connections,
        keeps,
        earlier: fs::read(image.path()).unwrap(),
        sender,
        stop: stop.clone(),
        held,
    };
    let expected = thread::scope(|scope| {
        let enough = enough; // dropped after a panic, so that no thread waits for it
        scope.spawn(move || hold(session));
        // In this thread, because some servers end with the thread that has started them.
        let expected = kill_again_and_again(victim, &receiver, &stop);
        enough.send(expected.clone()).unwrap();
        expected
    });
    victim.kill();
    assert!(fs::read(image.path()).unwrap() == expected, "it was lost");
    victim.start_again();
}

/// Runs that with one connection and with several, with and without keeping unflushed writes.
fn torment_all(listen: Listen, start: impl FnOnce(Image) -> Option<Victim> + Send + 'static) {
    let time = Duration::from_secs(250 * kills().div_ceil(20) as u64);
    deadline(time, move || {
        let image = Image::raw(SIZE);
        let Some(mut victim) = start(image.clone()) else {
            return;
        };
        let keeps = listen == Listen::Unix;
        torment(&mut victim, &image, 1, keeps);
        torment(&mut victim, &image, 3, !keeps);
    });
}

fn qemu_nbd(listen: Listen) {
    torment_all(listen, move |image| {
        let server = QemuNbd::new(image).listen(listen).start();
        server.map(Victim::Foreign)
    });
}

fn nbdkit(listen: Listen) {
    torment_all(listen, move |image| {
        let server = Nbdkit::file(image).listen(listen).start();
        server.map(Victim::Foreign)
    });
}

fn own(listen: Listen) {
    torment_all(listen, move |image| {
        Some(Victim::Own(Own::start(image, listen)))
    });
}

#[test]
fn nothing_is_lost_when_qemu_nbd_is_killed_over_tcp() {
    qemu_nbd(Listen::Tcp4);
}

#[test]
fn nothing_is_lost_when_qemu_nbd_is_killed_over_unix_sockets() {
    qemu_nbd(Listen::Unix);
}

#[test]
fn nothing_is_lost_when_nbdkit_is_killed_over_tcp() {
    nbdkit(Listen::Tcp4);
}

#[test]
fn nothing_is_lost_when_nbdkit_is_killed_over_unix_sockets() {
    nbdkit(Listen::Unix);
}

#[test]
fn nothing_is_lost_when_our_server_is_killed_over_tcp() {
    own(Listen::Tcp4);
}

#[test]
fn nothing_is_lost_when_our_server_is_killed_over_unix_sockets() {
    own(Listen::Unix);
}
