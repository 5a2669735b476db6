//! The example `serve` as a program: how it is started, used by other people's programs, and
//! stopped.

use super::{
    example::program,
    support::{eventually, pattern, soon},
};
use interop::{Peer, require};
use nbd_blocking::{Client, ConnectOptions, Errno, Error, Lost};
use std::{
    fs::{self, File},
    os::unix::{fs::FileExt, net::UnixStream},
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
struct Program {
    child: Child,
    socket: PathBuf,
}

impl Program {
    fn start(program: &Path, directory: &TempDir, args: &[&str]) -> Self {
        let socket = directory.path().join("socket");
        let mut command = Command::new(program);
        command.arg("--unix").arg(&socket).args(args);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let started = Self { child, socket };
        eventually(|| UnixStream::connect(&started.socket).is_ok());
        started
    }

    fn connect(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        ConnectOptions::new().connect_unix(stream).unwrap()
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn terminate(&self) {
        let mut kill = Command::new("kill");
        let killed = kill.arg("-TERM").arg(self.child.id().to_string()).status();
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

/// What the verified client has to itself: the end of the file.
const OWN: u64 = 8 << 20;
const BLOCK: usize = 4096;
const THREADS: usize = 4;

/// Writes blocks until the server refuses to, and returns how many it has acknowledged.
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

/// Whether a request was refused, or not even sent because others were: when the first one is, the
/// client waits for all replies that are to come, and says goodbye.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Lost(lost) => matches!(**lost, Lost::Disconnected),
        error => error.errno() == Some(Errno::Shutdown),
    }
}

fn block(thread: usize, round: usize) -> Vec<u8> {
    pattern(BLOCK, (round * THREADS + thread) as u32)
}

/// Whether the last writes to each block that were acknowledged are in the file.
fn check(file: &File, thread: usize, acknowledged: usize) {
    let blocks = (SIZE - OWN) as usize / BLOCK / THREADS;
    for round in acknowledged.saturating_sub(blocks)..acknowledged {
        let at = OWN + ((thread * blocks + round % blocks) * BLOCK) as u64;
        let mut stored = vec![0; BLOCK];
        file.read_exact_at(&mut stored, at).unwrap();
        assert!(stored == block(thread, round), "{thread} {round}");
    }
}

/// Has the programs of others read all and write what is not the verified client's.
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
        let client = ConnectOptions::new().connect_activated(&command).unwrap();
        assert_eq!(client.size(), 1 << 20);
        client.write_all_at(b"hello", 4096).unwrap();
        let mut read = [0; 5];
        client.read_exact_at(&mut read, 4096).unwrap();
        assert_eq!(&read, b"hello");
        client.disconnect().unwrap();
    });
}
