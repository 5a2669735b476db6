//! A server whose process may take up no more address space.

use super::serving::example::program;
use crate::support::{ENTERED, GO, eventually, expect, reply, small, soon};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
};

struct Serving(Child);

impl Serving {
    fn start(program: &Path, socket: &Path) -> Self {
        let mut command = Command::new(program);
        command.arg("--quiet").arg("--unix").arg(socket);
        let serving = Self(command.stdin(Stdio::null()).spawn().unwrap());
        eventually(|| UnixStream::connect(socket).is_ok());
        serving
    }

    /// Address space that it takes up, in bytes.
    fn taken(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.0.id())).unwrap();
        let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
        pages * rustix::param::page_size() as u64
    }

    fn limit(&self, bytes: Option<u64>) {
        let limit = Rlimit {
            current: bytes,
            maximum: None,
        };
        prlimit(Some(Pid::from_child(&self.0)), Resource::As, limit).unwrap();
    }

    fn threads(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0.id()));
        tasks.unwrap().count()
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A client that has entered an export; `None` if it was turned away.
fn enter(socket: &Path) -> Option<UnixStream> {
    let mut raw = UnixStream::connect(socket).unwrap();
    // It may be gone by then.
    let _ = raw.write_all(GO);
    raw.read_exact(&mut [0; ENTERED]).is_ok().then_some(raw)
}

#[test]
fn a_client_for_which_there_can_be_no_thread_is_turned_away_and_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(env!("CARGO_PKG_NAME"), &directory);
    soon(move || {
        let socket = directory.path().join("socket");
        let mut serving = Serving::start(&program, &socket);
        let mut early = Vec::new();
        // No thread is to be left that a client had before: there are the one that accepts, and the
        // one that waits for signals.
        eventually(|| {
            early.extend(enter(&socket));
            serving.threads() == early.len() + 2
        });
        // A thread needs its stack, then memory of the standard library. At none of these
        // amounts of free address space may the process end.
        for left in (0..256).map(|pages| (480 << 10) + pages * 4096) {
            serving.limit(Some(serving.taken() + left));
            let turned_away = enter(&socket).is_none();
            assert!(serving.is_running(), "with {left} bytes left");
            assert!(turned_away, "with {left} bytes left");
        }
        early[0].write_all(&small(0, 1)).unwrap();
        expect(&mut early[0], &reply(0, 1, &[0; 512]));
        serving.limit(None);
        enter(&socket).unwrap();
    });
}
