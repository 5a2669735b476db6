//! A server that accepts many connections, one after the other.

use super::{
    bytes,
    script::{Peer, Seen},
    spawn,
};
use std::{
    io,
    os::unix::net::UnixListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tempfile::TempDir;

/// The address of a server, which listens as long as this lives, and the number of connections.
#[derive(Debug)]
pub(crate) struct Host {
    dir: TempDir,
    count: Arc<AtomicUsize>,
}

impl Host {
    /// Plays a script on each connection, in a thread of its own. It is given the connection's
    /// number, from 0. The end of a script does not matter, because connections are cut.
    pub(crate) fn start(
        script: impl Fn(usize, &mut Peer) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().expect("there is room");
        let listener = UnixListener::bind(dir.path().join("socket")).expect("it is free");
        let (count, script) = (Arc::new(AtomicUsize::new(0)), Arc::new(script));
        let counted = count.clone();
        spawn(move || {
            for stream in listener.incoming() {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let script = script.clone();
                spawn(move || {
                    let mut peer = Peer {
                        stream: stream.expect("a client connects"),
                        one_byte: false,
                    };
                    let _ = script(number, &mut peer);
                });
            }
        });
        Self { dir, count }
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}/socket", self.dir.path().display())
    }

    /// The number of connections so far.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

/// A disk that loses unflushed writes in a crash.
#[derive(Debug, Default)]
pub(crate) struct Platter {
    pub(crate) contents: Vec<u8>,
    pub(crate) stable: Vec<u8>,
    /// The requests in order: the number of the connection and the command.
    pub(crate) log: Vec<(usize, u16)>,
}

pub(crate) type Disk = Arc<Mutex<Platter>>;

pub(crate) fn disk(size: usize) -> Disk {
    Arc::new(Mutex::new(Platter {
        contents: vec![0; size],
        stable: vec![0; size],
        log: Vec::new(),
    }))
}

impl Platter {
    pub(crate) fn crash(&mut self) {
        self.contents.clone_from(&self.stable);
    }

    /// The commands of all requests, over any connection.
    pub(crate) fn commands(&self) -> Vec<u16> {
        self.log.iter().map(|(_, command)| *command).collect()
    }

    /// Carries out a request and returns the data of a read.
    pub(crate) fn carry_out(&mut self, number: usize, request: Seen, payload: &[u8]) -> Vec<u8> {
        self.log.push((number, request.command));
        let at = usize::try_from(request.offset).expect("the disk is small");
        let range = at..at + usize::try_from(request.len).expect("the disk is small");
        match request.command {
            0 => return self.contents[range].to_vec(),
            1 => self.contents[range.clone()].copy_from_slice(payload),
            3 => self.stable.clone_from(&self.contents),
            6 => self.contents[range.clone()].fill(0),
            _ => {}
        }
        if request.flags & 1 != 0 {
            let forced = self.contents[range.clone()].to_vec();
            self.stable[range].copy_from_slice(&forced);
        }
        Vec::new()
    }
}

impl Peer {
    /// A request and its payload.
    pub(crate) fn try_request(&mut self) -> io::Result<(Seen, Vec<u8>)> {
        let header = self.try_hears(28)?;
        let request = Seen::parse(&header);
        let len = if request.command == 1 { request.len } else { 0 };
        let payload = self.try_hears(usize::try_from(len).expect("tests are short"))?;
        Ok((request, payload))
    }

    /// Carries out the next request and answers it; `false` after `NBD_CMD_DISC`.
    pub(crate) fn serve_one(&mut self, number: usize, disk: &Disk) -> io::Result<bool> {
        let (request, payload) = self.try_request()?;
        let mut platter = disk.lock().expect("no panics");
        let data = platter.carry_out(number, request, &payload);
        drop(platter);
        if request.command == 2 {
            return Ok(false);
        }
        self.try_says(bytes::sr(0, request.cookie, data))?;
        Ok(true)
    }

    /// Serves until the client leaves.
    pub(crate) fn serve(&mut self, number: usize, disk: &Disk) -> io::Result<()> {
        while self.serve_one(number, disk)? {}
        Ok(())
    }
}
