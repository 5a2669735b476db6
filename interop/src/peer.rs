//! The foreign programs, and how to run those that end by themselves.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::process::POLL;

/// The timeout of a program that ends by itself.
const RUN_LIMIT: Duration = Duration::from_secs(60);

/// The timeout of an emulated machine, which is slow on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// A program written by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// A server with the protocol of Azure's object store.
    Azurite,
    /// A shell that the tool has completions for.
    Bash,
    /// GnuTLS's tool for X.509 certificates.
    Certtool,
    /// The flexible I/O tester, which is a client by libnbd.
    Fio,
    /// Another such shell.
    Fish,
    /// An emulated machine with the kernel's client and vsock, which takes the kernel's arguments;
    /// made by `interop/linux/prepare.sh`.
    Linux,
    /// A server with the protocol of Amazon's object store, S3.
    Moto,
    /// The kernel client's control program.
    NbdClient,
    /// libnbd's copying program.
    NbdCopy,
    /// libnbd's program that prints the bytes of an export.
    NbdDump,
    /// libnbd's program that prints the description of an export.
    NbdInfo,
    /// The reference server.
    NbdServer,
    /// libnbd's Python shell.
    NbdSh,
    /// The server with plugins and filters.
    Nbdkit,
    /// GnuTLS's tool for pre-shared keys.
    Psktool,
    /// QEMU's image tool, also a client.
    QemuImg,
    /// QEMU's tool for single requests, also a client.
    QemuIo,
    /// QEMU's server for one image.
    QemuNbd,
    /// QEMU's server for many images.
    QemuStorageDaemon,
    /// Another shell that the tool has completions for.
    Zsh,
}

impl Peer {
    /// The name of the program in a shell.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Azurite => "azurite-blob",
            Self::Bash => "bash",
            Self::Certtool => "certtool",
            Self::Fio => "fio",
            Self::Fish => "fish",
            Self::Linux => "linux-with-nbd",
            Self::Moto => "moto_server",
            Self::NbdClient => "nbd-client",
            Self::NbdCopy => "nbdcopy",
            Self::NbdDump => "nbddump",
            Self::NbdInfo => "nbdinfo",
            Self::NbdServer => "nbd-server",
            Self::NbdSh => "nbdsh",
            Self::Nbdkit => "nbdkit",
            Self::Psktool => "psktool",
            Self::QemuImg => "qemu-img",
            Self::QemuIo => "qemu-io",
            Self::QemuNbd => "qemu-nbd",
            Self::QemuStorageDaemon => "qemu-storage-daemon",
            Self::Zsh => "zsh",
        }
    }

    const fn limit(self) -> Duration {
        match self {
            Self::Linux => BOOT_LIMIT,
            _ => RUN_LIMIT,
        }
    }

    const fn version_option(self) -> &'static str {
        match self {
            Self::NbdClient | Self::NbdServer => "-V",
            _ => "--version",
        }
    }
}

/// Finds an installed program, or says on standard error that the test does without it.
///
/// # Panics
///
/// When it is missing and `CI` is `true`.
pub fn require(peer: Peer) -> Option<Program> {
    // Not every PATH has the directories of the administrator's programs.
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(peer.command()))
        .find(|file| file.is_file());
    if let Some(path) = found {
        return Some(Program { peer, path });
    }

    let name = peer.command();
    assert!(
        !in_ci(),
        "{name} is not installed, and CI must not skip the tests which need it"
    );
    let thread = thread::current();
    let test = thread.name().unwrap_or("a test");
    // Not `eprintln!`: the test runner would swallow it, and a skip must be seen.
    drop(writeln!(
        io::stderr(),
        "SKIPPED {test}: {name} is not installed"
    ));
    None
}

pub(crate) fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|ci| ci == "true" || ci == "1")
}

/// An installed program.
#[derive(Clone, Debug)]
pub struct Program {
    peer: Peer,
    path: PathBuf,
}

impl Program {
    /// The kind of program.
    pub const fn peer(&self) -> Peer {
        self.peer
    }

    /// The first line of its version text.
    ///
    /// # Panics
    ///
    /// When it does not print it, because it is broken.
    pub fn version(&self) -> String {
        let finished = self.run([self.peer.version_option()]);
        let Finished {
            command,
            status,
            stdout,
            stderr,
        } = &finished;
        assert!(
            status.success(),
            "{command} ended with {status}\n{stdout}{stderr}"
        );
        let said = if stdout.is_empty() { stderr } else { stdout };
        said.lines().next().unwrap_or_default().to_owned()
    }

    /// The numbers in its version text.
    ///
    /// # Panics
    ///
    /// When there are none.
    pub fn version_number(&self) -> String {
        let said = self.version();
        let mut words = said.split([' ', '-']);
        let number = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        number.expect("a version has digits").to_owned()
    }

    /// Whether it is of this version or a later one.
    ///
    /// # Panics
    ///
    /// Like [`version_number`](Self::version_number).
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let number = self.version_number();
        let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        (next(), next()) >= (major, minor)
    }

    /// Runs it to its end, in a temporary directory, where it may leave files of its own.
    ///
    /// # Panics
    ///
    /// When it cannot be started, or has not ended after a minute, an emulated machine after ten.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        // Files rather than pipes: no thread has to read while it runs.
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| dir.path().join(name));
        let create = |path| File::create(path).expect("a file in our own directory can be made");

        let mut command = self.command();
        command
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(create(&stdout))
            .stderr(create(&stderr));
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} could not be started: {error}"));

        let (start, limit) = (Instant::now(), self.peer.limit());
        let status = loop {
            if let Some(status) = child.try_wait().expect("our own child can be waited for") {
                break Some(status);
            }
            if start.elapsed() > limit {
                drop(child.kill());
                drop(child.wait());
                break None;
            }
            thread::sleep(POLL);
        };

        let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into();
        let (stdout, stderr): (String, String) = (read(&stdout), read(&stderr));
        let command = format!("{command:?}");
        let Some(status) = status else {
            panic!("{command} did not end within {limit:?}\n{stdout}{stderr}");
        };
        Finished {
            command,
            status,
            stdout,
            stderr,
        }
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        // Messages are compared in tests, so they must not be translated.
        command.env("LC_ALL", "C");
        // Scripts among them need the interpreter they were packaged with, which may not be the
        // first on a developer's PATH.
        let own = self.path.parent().map(Path::to_owned);
        let others = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(own.into_iter().chain(env::split_paths(&others)));
        command.env("PATH", path.expect("these came from a PATH"));
        command
    }
}

/// The result of a program that has ended.
#[derive(Clone, Debug)]
#[must_use]
pub struct Finished {
    /// Its command line.
    pub command: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// Its standard output.
    ///
    /// # Panics
    ///
    /// When it failed.
    pub fn expect_success(self) -> String {
        let Self {
            command,
            status,
            stdout,
            stderr,
        } = self;
        assert!(
            status.success(),
            "{command} ended with {status}\n{stdout}{stderr}"
        );
        stdout
    }

    /// Its standard error.
    ///
    /// # Panics
    ///
    /// When it succeeded.
    pub fn expect_failure(self) -> String {
        let Self {
            command,
            status,
            stdout,
            stderr,
        } = self;
        assert!(
            !status.success(),
            "{command} should have failed\n{stdout}{stderr}"
        );
        stderr
    }
}
