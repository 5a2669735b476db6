//! qemu-storage-daemon: QEMU's block layer without a machine, controlled over QMP.

use std::{
    cell::OnceCell,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Peer, Program,
    process::{Process, Stop},
    require,
};

/// The timeout of a reply, or of an event.
const LIMIT: Duration = Duration::from_secs(30);

/// A running daemon; dropping it kills it.
#[derive(Debug)]
pub struct StorageDaemon {
    program: Program,
    qmp: BufReader<UnixStream>,
    /// Events from before a call waited for them.
    events: Vec<Value>,
    process: Arc<Process>,
    /// Holds the socket and the log.
    _dir: TempDir,
}

impl StorageDaemon {
    /// Starts it, if it is installed; see [`require`].
    ///
    /// # Panics
    ///
    /// When it does not start, or speaks no QMP.
    pub fn start() -> Option<Self> {
        let program = require(Peer::QemuStorageDaemon)?;
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir();
        let dir = dir.expect("a temporary directory can be made");
        let socket = dir.path().join("qmp");
        let mut command = program.command();
        command
            .arg("--chardev")
            .arg(format!(
                "socket,id=qmp,server=on,wait=off,path={}",
                socket.display()
            ))
            .args(["--monitor", "chardev=qmp"]);
        let process = Process::spawn(command, Stop::Kill, &dir.path().join("log"));
        // It accepts one connection at a time, so the first connection has to be kept.
        let stream = OnceCell::new();
        let ready = process.wait_until(|| match UnixStream::connect(&socket) {
            Ok(connected) => stream.set(connected).is_ok(),
            Err(_) => false,
        });
        if let Err(status) = ready {
            let printed = process.printed();
            panic!("{} ended with {status}\n{printed}", process.command());
        }

        let stream = stream.into_inner().expect("it was connected to");
        let limited = stream.set_read_timeout(Some(LIMIT));
        limited.expect("a socket takes any timeout but 0");
        let mut daemon = Self {
            program,
            qmp: BufReader::new(stream),
            events: Vec::new(),
            process,
            _dir: dir,
        };
        let greeting = daemon.receive();
        assert!(greeting["QMP"].is_object(), "{greeting}");
        daemon.execute("qmp_capabilities", &json!({}));
        Some(daemon)
    }

    /// The program it runs.
    pub const fn program(&self) -> &Program {
        &self.program
    }

    /// Carries out a command, and returns its result.
    ///
    /// # Panics
    ///
    /// When the command fails.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_execute(command, arguments)
            .unwrap_or_else(|why| panic!("{command} {arguments}: {why}"))
    }

    /// Carries out a command, and returns its result.
    ///
    /// # Errors
    ///
    /// The daemon's error message if the command fails.
    ///
    /// # Panics
    ///
    /// When the daemon ends, or does not answer in time.
    pub fn try_execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        self.send(command, arguments);
        loop {
            let mut message = self.receive();
            if message["event"].is_string() {
                self.events.push(message);
            } else if message["error"].is_object() {
                return Err(message["error"]["desc"].to_string());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits for an event, and returns its data. Earlier events are dropped.
    ///
    /// # Panics
    ///
    /// When it does not come in time.
    #[track_caller]
    pub fn wait_for(&mut self, event: &str) -> Value {
        let mut past = std::mem::take(&mut self.events).into_iter();
        loop {
            let mut message = past.next().unwrap_or_else(|| self.receive());
            if message["event"] == event {
                self.events.extend(past);
                return message["data"].take();
            }
        }
    }

    /// Makes it write everything back, close all nodes, and end.
    ///
    /// # Panics
    ///
    /// When it fails at that, or does not end in time.
    pub fn quit(mut self) {
        // It may be gone before it has answered.
        self.send("quit", &json!({}));
        let ended = self.process.wait_until(|| false);
        let status = ended.expect_err("nothing else is waited for");
        assert!(status.success(), "{status}\n{}", self.process.printed());
    }

    fn send(&mut self, command: &str, arguments: &Value) {
        let request = json!({ "execute": command, "arguments": arguments });
        let sent = self.qmp.get_mut().write_all(request.to_string().as_bytes());
        sent.expect("the daemon listens to us");
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        match self.qmp.read_line(&mut line) {
            Ok(1..) => serde_json::from_str(&line).expect("QMP consists of lines of JSON"),
            other => panic!(
                "the daemon has nothing more to say: {other:?}\n{}",
                self.process.printed()
            ),
        }
    }
}
