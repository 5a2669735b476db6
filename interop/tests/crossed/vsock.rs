//! The sockets between virtual machines and their host, over which a machine can also connect to
//! itself. That needs a module of Linux that is hardly ever loaded, and therefore the emulated
//! machine: its kernel has it.

use crate::{
    clients::{Blocking, Disk, Kind, On, Wanted},
    runtimes::{OnAsyncStd, tokio_current_thread, tokio_multi_thread},
    servers::{Host, Plain, SIZE, Serving, Transport},
    suite::{self, transfers},
};
use interop::{Endpoint, Listen, Nbdkit, Peer, assert_same, pattern, require};
use nbd_io::client::Error;
use nbd_proto::{CommandFlags, HeaderStyle};
use nbd_socket::Listener;
use std::{
    env, fs,
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

#[path = "../../adapters/example.rs"]
mod example;

/// The variable that names the example `serve` of `nbd-blocking` to the tests in the machine.
const SERVE: &str = "nbd_serve";

/// Longer than a program takes to listen.
const TIMEOUT: Duration = Duration::from_secs(60);

const VSOCK: Transport = Transport::Vsock;
const WANTED: Wanted = Wanted {
    mode: HeaderStyle::Structured,
    connections: 3,
};

#[test]
fn everything_works_over_vsock_in_an_emulated_machine() {
    interop::deadline(Duration::from_secs(640), || {
        if require(Peer::Linux).is_none() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let serve = example::program("nbd-blocking", &directory);
        interop::ignored_tests_in_linux(&[(SERVE, serve.to_str().unwrap())]);
    });
}

macro_rules! in_the_machine {
    ($($name:ident: $test:expr;)*) => {
        $(
            #[test]
            #[ignore = "runs in the emulated machine, which has a loopback of vsock"]
            fn $name() {
                $test;
            }
        )*
    };
}

in_the_machine! {
    blocking_with_tokio: suite::run(|| Blocking, tokio_multi_thread, VSOCK);
    tokio_with_async_std:
        suite::run(|| On(tokio_current_thread()), OnAsyncStd::default, VSOCK);
    async_std_with_blocking:
        suite::run(|| On(OnAsyncStd::default()), Plain::default, VSOCK);
    blocking_with_tokio_over_tls: encrypts(|| Blocking, tokio_multi_thread);
    async_std_with_blocking_over_tls: encrypts(|| On(OnAsyncStd::default()), Plain::default);

    blocking_with_nbdkit: uses_nbdkit(|| Blocking);
    tokio_with_nbdkit: uses_nbdkit(|| On(tokio_multi_thread()));
    async_std_with_nbdkit: uses_nbdkit(|| On(OnAsyncStd::default()));

    blocking_with_libnbd: used_by_libnbd(Plain::default);
    tokio_with_libnbd: used_by_libnbd(tokio_multi_thread);
    async_std_with_libnbd: used_by_libnbd(OnAsyncStd::default);

    blocking_without_a_server: finds_no_server(|| Blocking);
    tokio_without_a_server: finds_no_server(|| On(tokio_multi_thread()));
    async_std_without_a_server: finds_no_server(|| On(OnAsyncStd::default()));

    a_port_has_one_listener: has_one_listener();
    the_program_listens_on_a_port: listens_on_a_port();
    the_program_takes_a_socket_that_it_was_started_with: takes_an_inherited_socket();
}

/// The URI names the server's certificate, since a number is no name.
fn encrypts<K: Kind, H: Host>(client: fn() -> K, host: fn() -> H) {
    interop::run(move || {
        let (client, serving) = (client(), Serving::new(host(), Transport::VsockTls));
        let disk = client.connect(&serving.uri("quick"), WANTED).unwrap();
        assert!(disk.is_encrypted());
        // Without the processor's help, TLS takes long.
        let data = pattern(2, 100_003);
        disk.write(4097, &data, CommandFlags::FUA).unwrap();
        assert_same(&disk.read(4097, data.len()).unwrap(), &data, 4097);
        disk.disconnect().unwrap();
        drop(disk);
        client.end();
        serving.end();
    });
}

/// A client of ours with a foreign server.
fn uses_nbdkit<K: Kind>(client: fn() -> K) {
    interop::run(move || {
        let nbdkit = Nbdkit::new("memory").param(SIZE.to_string());
        let Some(server) = nbdkit.listen(Listen::Vsock).start() else {
            return;
        };
        let client = client();
        let disk = client.connect(&server.uri(""), WANTED).unwrap();
        transfers::are_verified(&disk, 16);
        disk.disconnect().unwrap();
        drop(disk);
        client.end();
    });
}

/// A server of ours with foreign clients.
fn used_by_libnbd<H: Host>(host: fn() -> H) {
    interop::run(move || {
        let (Some(nbdinfo), Some(nbdcopy)) = (require(Peer::NbdInfo), require(Peer::NbdCopy))
        else {
            return;
        };
        let serving = Serving::new(host(), VSOCK);
        let uri = serving.uri("quick");
        let size = nbdinfo.run(["--size", &uri]).expect_success();
        assert_eq!(size.trim(), SIZE.to_string());

        let directory = tempfile::tempdir().unwrap();
        let [there, back] = ["there", "back"].map(|name| directory.path().join(name));
        let expected = pattern(1, SIZE);
        fs::write(&there, &expected).unwrap();
        for (from, to) in [
            (there.to_str().unwrap(), &*uri),
            (&uri, back.to_str().unwrap()),
        ] {
            let _said = nbdcopy
                .run(["--connections=4", "--threads=4", from, to])
                .expect_success();
        }
        assert_same(&fs::read(back).unwrap(), &expected, 0);
        // One connection of the first, and several of each of the others.
        assert!(serving.end().len() > 8);
    });
}

/// No server listens on a port, and there is no such machine.
fn finds_no_server<K: Kind>(client: fn() -> K) {
    interop::run(move || {
        let client = client();
        let unused = Endpoint::unused_vsock().uri("");
        // ECONNRESET, as vsock has it, and ENODEV.
        for (uri, code) in [(&*unused, 104), ("nbd+vsock://77:20000", 19)] {
            let error = client.connect(uri, WANTED).err().unwrap();
            let Error::Connect { to, source } = error else {
                panic!("{error:?}");
            };
            let place = uri.trim_start_matches("nbd+vsock://").trim_end_matches('/');
            assert!(to.contains("vsock") && to.contains(place), "{to}");
            assert_eq!(source.raw_os_error(), Some(code), "{source}");
        }
        client.end();
    });
}

fn has_one_listener() {
    let port = unused_port();
    let listener = Listener::bind_vsock(None, port).unwrap();
    let error = Listener::bind_vsock(None, port).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    drop(listener);
    let local = Listener::bind_vsock(Some(1), port).unwrap();
    drop(local);
    let error = Listener::bind_vsock(Some(77), port).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrNotAvailable);
}

fn unused_port() -> u32 {
    match Endpoint::unused_vsock() {
        Endpoint::Vsock(port) => port,
        other => unreachable!("{other:?}"),
    }
}

/// The example `serve`, killed in the end.
struct Program(Child);

impl Program {
    fn start(mut command: Command) -> Self {
        command.args(["--quiet", "--size", "8M"]);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn listens_on_a_port() {
    interop::run(|| {
        let port = unused_port();
        let mut command = Command::new(env::var_os(SERVE).unwrap());
        command.args(["--vsock", &port.to_string()]);
        let _program = Program::start(command);
        let start = Instant::now();
        let disk = loop {
            match Blocking.connect(&Endpoint::Vsock(port).uri(""), WANTED) {
                Ok(disk) => break disk,
                Err(error) => assert!(start.elapsed() < TIMEOUT, "{error}"),
            }
            thread::sleep(Duration::from_millis(5));
        };
        transfers::are_verified(&disk, 4);
        disk.disconnect().unwrap();
    });
}

fn takes_an_inherited_socket() {
    interop::run(|| {
        let port = unused_port();
        let listener = Listener::bind_vsock(Some(1), port).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0", "sh"]);
        command.arg(env::var_os(SERVE).unwrap());
        command.stdin(Stdio::from(listener.as_fd().try_clone_to_owned().unwrap()));
        let _program = Program::start(command);
        // The connection waits in the queue of the socket until the program is there.
        let uri = Endpoint::Vsock(port).uri("");
        let disk = Blocking.connect(&uri, WANTED).unwrap();
        transfers::are_verified(&disk, 4);
        disk.disconnect().unwrap();
    });
}
