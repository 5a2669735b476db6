//! The example `serve` as a program: started, used by other programs, and stopped.

use super::{
    example::program,
    support::{ENTERED, GO, eventually, pattern, small, soon},
};
use interop::{Peer, require};
use nbd_blocking::{Client, ConnectOptions, Errno, Error, Lost};
use socket2::{Domain, Socket, Type};
use std::{
    cell::Cell,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    os::fd::OwnedFd,
    os::unix::{
        fs::{FileExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use tempfile::TempDir;

/// A program that runs.
pub(super) struct Program {
    child: Child,
    pub(super) socket: PathBuf,
}

impl Program {
    pub(super) fn start(program: &Path, directory: &TempDir, args: &[&str]) -> Self {
        let socket = directory.path().join("socket");
        let mut command = Command::new(program);
        command.arg("--unix").arg(&socket).args(args);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let started = Self { child, socket };
        eventually(|| UnixStream::connect(&started.socket).is_ok());
        started
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        ConnectOptions::new().connect_over(stream, None).unwrap()
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn terminate(&self) {
        let mut kill = Command::new("kill");
        let killed = kill.arg("-TERM").arg(self.id().to_string()).status();
        assert!(killed.unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const SIZE: u64 = 16 << 20;

/// The verified client's own part: the end of the file.
const OWN: u64 = 8 << 20;
const BLOCK: usize = 4096;
const THREADS: usize = 4;

/// Writes blocks until the server refuses to, and returns the number of acknowledged ones.
fn write_until_refused(client: &Client, thread: usize, written: &AtomicUsize) -> usize {
    let blocks = (SIZE - OWN) as usize / BLOCK / THREADS;
    for round in 0.. {
        let at = OWN + ((thread * blocks + round % blocks) * BLOCK) as u64;
        match client.write_all_at(&block(thread, round), at) {
            Ok(()) => written.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                assert!(is_refusal(&error), "{error}");
                return round;
            }
        };
    }
    unreachable!("the rounds do not end")
}

/// Whether a request was refused, or not even sent because others were: on the first refusal, the
/// client waits for the replies that are owed, and disconnects.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Lost(lost) => matches!(**lost, Lost::ShutsDown | Lost::Disconnected),
        error => error.errno() == Some(Errno::Shutdown),
    }
}

fn block(thread: usize, round: usize) -> Vec<u8> {
    pattern(BLOCK, (round * THREADS + thread) as u32)
}

/// Whether the last acknowledged writes to each block are in the file.
fn check(file: &File, thread: usize, acknowledged: usize) {
    let blocks = (SIZE - OWN) as usize / BLOCK / THREADS;
    for round in acknowledged.saturating_sub(blocks)..acknowledged {
        let at = OWN + ((thread * blocks + round % blocks) * BLOCK) as u64;
        let mut stored = vec![0; BLOCK];
        file.read_exact_at(&mut stored, at).unwrap();
        assert!(stored == block(thread, round), "{thread} {round}");
    }
}

/// Has foreign programs read the whole export and write outside of the verified client's part.
fn others_use(uri: &str, directory: &Path, data: &[u8]) {
    let uses: [(Peer, Vec<String>); 4] = [
        (Peer::NbdInfo, vec!["--size".into(), uri.into()]),
        (
            Peer::NbdCopy,
            vec![uri.into(), path(directory, "nbdcopy.img")],
        ),
        (
            Peer::QemuImg,
            ["convert", "-f", "raw", "-O", "raw", uri]
                .map(String::from)
                .into_iter()
                .chain([path(directory, "qemu.img")])
                .collect(),
        ),
        (
            Peer::QemuIo,
            [
                "-f",
                "raw",
                "-c",
                "write -P 7 1M 1M",
                "-c",
                "read -P 7 1M 1M",
            ]
            .map(String::from)
            .into_iter()
            .chain([uri.into()])
            .collect(),
        ),
    ];
    let running = uses.map(|(peer, args)| {
        let program = require(peer)?;
        Some(thread::spawn(move || program.run(args).expect_success()))
    });
    let said = running.map(|running| running.map(|running| running.join().unwrap()));
    if let Some(size) = &said[0] {
        assert_eq!(size.trim(), SIZE.to_string());
    }
    if let Some(read) = &said[3] {
        assert!(!read.contains("failed"), "{read}");
    }
    for (said, copy) in [(&said[1], "nbdcopy.img"), (&said[2], "qemu.img")] {
        if said.is_some() {
            let copy = fs::read(directory.join(copy)).unwrap();
            assert!(copy[..data.len()] == *data);
        }
    }
}

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).display().to_string()
}

#[test]
fn a_signal_in_the_middle_of_everything_loses_no_reply_and_no_write() {
    // S-231
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let image = directory.path().join("disk.img");
        let data = pattern(1 << 20, 1);
        let file = File::create_new(&image).unwrap();
        file.write_all_at(&data, 0).unwrap();
        file.set_len(SIZE).unwrap();
        let args = ["--quiet", "--file", image.to_str().unwrap()];
        let mut serving = Program::start(&program, &directory, &args);

        let written = Arc::new(AtomicUsize::new(0));
        let client = serving.connect();
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (client, written) = (client.clone(), Arc::clone(&written));
                thread::spawn(move || write_until_refused(&client, thread, &written))
            })
            .collect();
        others_use(&serving.uri(), directory.path(), &data);
        let before = written.load(Ordering::Relaxed);
        eventually(|| written.load(Ordering::Relaxed) > before + 100);
        serving.terminate();
        let acknowledged: Vec<_> = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect();
        drop(client);
        assert!(serving.child.wait().unwrap().success());
        assert!(!serving.socket.exists());
        let file = File::open(&image).unwrap();
        for (thread, acknowledged) in acknowledged.into_iter().enumerate() {
            check(&file, thread, acknowledged);
        }
    });
}

#[test]
fn a_socket_that_the_program_was_started_with_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let mut command = Command::new(&program);
        command.args(["--quiet", "--size", "1M"]);
        use_all(&ConnectOptions::new().connect_activated(&command).unwrap());
    });
}

/// Starts a program with a socket as its third descriptor, as systemd does.
fn activated(program: &Path, socket: impl Into<OwnedFd>) -> Child {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(r#"export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" --size 1M 3<&0 </dev/null"#)
        .arg(program);
    let shell = shell.stdin(socket.into()).stderr(Stdio::piped());
    shell.spawn().unwrap()
}

/// A connection over TCP: the client's end and the server's.
fn accepted() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn use_all(client: &Client) {
    assert_eq!(client.size(), 1 << 20);
    client.write_all_at(b"hello", 4096).unwrap();
    let mut read = [0; 5];
    client.read_exact_at(&mut read, 4096).unwrap();
    assert_eq!(&read, b"hello");
    client.disconnect().unwrap();
}

#[test]
fn a_connected_socket_that_the_program_was_started_with_is_served_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = activated(&program, theirs);
        use_all(&ConnectOptions::new().connect_over(ours, None).unwrap());
        let ended = serving.wait_with_output().unwrap();
        assert!(ended.status.success(), "{ended:?}");

        let (ours, theirs) = accepted();
        let address = ours.local_addr().unwrap().to_string();
        let serving = activated(&program, theirs);
        use_all(&ConnectOptions::new().connect_over(ours, None).unwrap());
        let ended = serving.wait_with_output().unwrap();
        let words = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.success(), "{words}");
        assert!(words.contains(&address), "{words}");
    });
}

#[test]
fn a_client_that_the_program_was_started_with_is_left_by_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let (ours, theirs) = accepted();
        let mut serving = Program {
            child: activated(&program, theirs),
            socket: PathBuf::new(),
        };
        let client = ConnectOptions::new().connect_over(ours, None).unwrap();
        client.write_all_at(b"hello", 4096).unwrap();
        serving.terminate();
        assert!(serving.child.wait().unwrap().success());
        client.write_all_at(b"hello", 4096).unwrap_err();
    });
}

#[test]
fn a_socket_that_neither_listens_nor_is_connected_is_refused_with_words() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let unused = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let ended = activated(&program, unused).wait_with_output().unwrap();
        let words = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success(), "{words}");
        assert!(
            words.starts_with("serve: ") && words.contains("does not listen"),
            "{words}"
        );
    });
}

#[test]
fn a_program_that_cannot_serve_says_why_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let missing = path(directory.path(), "missing.img");
        let nowhere = path(directory.path(), "no/such/socket");
        for (args, word) in [
            (vec!["--tcp", "0", "--file", &missing], "missing.img"),
            (vec!["--unix", &nowhere], "no/such/socket"),
            (vec![], "nothing to listen on"),
        ] {
            let ended = Command::new(&program).args(args).output().unwrap();
            let words = String::from_utf8(ended.stderr).unwrap();
            assert!(!ended.status.success());
            let last = words.lines().last().unwrap();
            assert!(
                last.starts_with("serve: ") && last.contains(word),
                "{words}"
            );
            // As Debug would print it.
            assert!(!last.contains(['{', '"']), "{words}");
        }
    });
}

#[test]
fn a_port_that_the_system_has_chosen_is_printed_and_served_at_every_local_address() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let mut command = Command::new(&program);
        command.args(["--quiet", "--tcp", "0"]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut serving = Program {
            child,
            socket: PathBuf::new(),
        };
        let mut said = BufReader::new(serving.child.stderr.take().unwrap()).lines();
        let first = said.next().unwrap().unwrap();
        let address: SocketAddr = first.strip_prefix("listens at ").unwrap().parse().unwrap();
        let port = address.port();
        let mut answered = 0;
        for address in ("localhost", port).to_socket_addrs().unwrap() {
            // The machine need not have every address that the name stands for.
            if TcpListener::bind((address.ip(), 0)).is_ok() {
                let stream = TcpStream::connect(address).unwrap();
                let client = ConnectOptions::new().connect_over(stream, None).unwrap();
                client.disconnect().unwrap();
                answered += 1;
            }
        }
        assert!(answered > 0);
    });
}

#[test]
fn clients_are_served_though_nothing_can_be_printed() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let socket = directory.path().join("socket");
        let mut command = Command::new(&program);
        command.arg("--unix").arg(&socket).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A pipe whose reader has ended.
        drop(child.stderr.take());
        let serving = Program { child, socket };
        eventually(|| UnixStream::connect(&serving.socket).is_ok());
        for _ in 0..3 {
            let client = serving.connect();
            client.write_all_at(b"hello", 4096).unwrap();
            client.disconnect().unwrap();
        }
    });
}

/// A program that starts another one with a limit.
fn limited(program: &Path, directory: &TempDir, limit: &str) -> PathBuf {
    let limited = directory.path().join("limited");
    let script = format!(
        "#!/bin/sh\nulimit {limit}\nexec {} \"$@\"\n",
        program.display()
    );
    fs::write(&limited, script).unwrap();
    fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).unwrap();
    limited
}

/// Reads, or the beginning of a write, of 32 MiB each.
fn greedy(command: u8) -> Vec<u8> {
    let mut request = small(command, 1);
    request.splice(24.., *b"\x02\0\0\0");
    if command == 1 {
        request.extend([1; 64 << 10]);
        return request;
    }
    request.repeat(16)
}

#[test]
fn greedy_clients_neither_end_a_server_nor_keep_out_the_modest() {
    // H-052
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        // In KiB of address space, where reserved memory counts as well. glibc takes more of it for
        // arenas on a busy machine: with all 16 there may be no room for a thread, and clients are
        // turned away. Operators can bound that, and so does this test.
        let limit = "-v 1048576; export MALLOC_ARENA_MAX=2";
        let limited = limited(&program, &directory, limit);
        let mut serving = Program::start(&limited, &directory, &["--quiet"]);
        let early = serving.connect();
        let greedy: Vec<_> = (0..48)
            .map(|n| {
                let mut raw = UnixStream::connect(&serving.socket).unwrap();
                raw.write_all(GO).unwrap();
                raw.read_exact(&mut [0; ENTERED]).unwrap();
                raw.write_all(&greedy(n % 2)).unwrap();
                raw
            })
            .collect();
        let late = serving.connect();
        for round in 0..200 {
            let data = pattern(BLOCK, round);
            for client in [&early, &late] {
                client.write_all_at(&data, 0).unwrap();
                let mut read = vec![0; BLOCK];
                client.read_exact_at(&mut read, 0).unwrap();
                assert!(read == data);
            }
        }
        assert_eq!(serving.child.try_wait().unwrap(), None);
        drop(greedy);
        // Their memory is there for others.
        let mut read = vec![1; 32 << 20];
        late.read_exact_at(&mut read, 1 << 20).unwrap();
        assert!(read.iter().all(|byte| *byte == 0));
        late.write_all_at(&read, 1 << 20).unwrap();
    });
}

/// The length of the greeting.
const GREETING: usize = 18;

#[test]
fn a_shortage_of_descriptors_leaves_one_connection_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let limited = directory.path().join("limited");
        let script = format!(
            "#!/bin/sh\nulimit -n 64\nexec {} \"$@\"\n",
            program.display()
        );
        fs::write(&limited, script).unwrap();
        fs::set_permissions(&limited, fs::Permissions::from_mode(0o755)).unwrap();
        let serving = Program::start(&limited, &directory, &["--quiet"]);
        let clients: Vec<_> = (0..80)
            .map(|_| {
                let client = UnixStream::connect(&serving.socket).unwrap();
                client.set_nonblocking(true).unwrap();
                (client, Cell::new(false))
            })
            .collect();
        let is_greeted = |(client, greeted): &&(UnixStream, Cell<bool>)| {
            let read = || { client }.read(&mut [0; GREETING]);
            if !greeted.get() && read().is_ok_and(|n| n == GREETING) {
                greeted.set(true);
            }
            greeted.get()
        };
        // A few file descriptors are for the program itself.
        eventually(|| clients.iter().filter(is_greeted).count() >= 48);
        // The others wait until there is room.
        let (early, late) = clients.split_at(40);
        for (client, _) in early {
            client.shutdown(Shutdown::Both).unwrap();
        }
        eventually(|| late.iter().all(|client| is_greeted(&client)));
    });
}
