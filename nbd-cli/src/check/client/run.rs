//! Running the command once for each rule.

use super::{
    Rule,
    disk::{FULL, SIZE},
    host::{Host, Shared, lock},
    judge::{End, Run},
    scene::honest,
};
use crate::{
    check::{
        rule::{Checked, Fault, Outcome},
        talk::{Record, Talk},
    },
    outcome::{Context, Error, Result},
};
use nbd_tokio::Uri;
use rustix::process::{Pid, Signal, kill_process_group};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    ffi::{OsStr, OsString},
    fs,
    net::ToSocketAddrs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Interval at which the end of the command is looked for, and the end of a run by the accepting
/// threads.
const INTERVAL: Duration = Duration::from_millis(5);

/// Stands for the URI in the command.
const PLACE: &[u8] = b"{uri}";

/// Where the server listens that the command is given.
#[derive(Debug)]
pub(in crate::check) struct Listening {
    socket: Socket,
    uri: Uri,
    /// Removed at the end.
    path: Option<OsString>,
    command: Vec<OsString>,
    time: Duration,
}

impl Listening {
    /// Listens at HOST:PORT, at PORT of localhost, or at the path of a Unix socket.
    pub(in crate::check) fn new(place: &str, command: &[OsString], time: Duration) -> Result<Self> {
        let what = || format!("cannot listen at {place}");
        let is_path = place.contains('/');
        let address = if is_path {
            SockAddr::unix(place).step(what)?
        } else {
            let host = if place.contains(':') {
                place.to_owned()
            } else {
                format!("localhost:{place}")
            };
            let mut found = host.to_socket_addrs().step(what)?;
            let found = found.next().ok_or_else(|| Error::new(what()))?;
            SockAddr::from(found)
        };
        let made = Socket::new(
            Domain::from(i32::from(address.family())),
            Type::STREAM,
            None,
        );
        let socket = made.step(what)?;
        if !is_path {
            socket.set_reuse_address(true).step(what)?;
        }
        let bound = socket.bind(&address).and_then(|()| socket.listen(64));
        bound.step(what)?;
        socket.set_nonblocking(true).step(what)?;
        let bound = socket.local_addr().step(what)?;
        let uri = match bound.as_socket() {
            Some(address) => Uri::tcp(&address.ip().to_string(), address.port()),
            None => {
                let absolute = std::path::absolute(place).step(what)?;
                Uri::unix(absolute.as_os_str().as_bytes())
            }
        };
        Ok(Self {
            socket,
            uri: uri.step(what)?,
            path: is_path.then(|| place.into()),
            command: command.to_vec(),
            time,
        })
    }

    /// The command that is checked.
    pub(in crate::check) fn target(&self) -> String {
        let words: Vec<_> = self
            .command
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        words.join(" ")
    }

    /// Looks whether the command works with a server that does everything right.
    pub(in crate::check) fn try_out(&self, rules: &[Rule]) -> Result<()> {
        let Some(first) = rules.first() else {
            return Ok(());
        };
        let plain = Rule {
            disk: FULL,
            spoil: honest,
            ..*first
        };
        let run = self.run(plain, &Record::default())?;
        if run.connections == 0 {
            return Err(Error::new(format!(
                "the command makes no connection ({:?}): {}; it finds a server in {{uri}} or $NBD_URI",
                run.end,
                self.target()
            )));
        }
        match run.end {
            End::Code(0) => Ok(()),
            end => Err(Error::new(format!(
                "the command fails with a server that does everything right ({end:?}): {}",
                self.target()
            ))),
        }
    }

    /// Checks a rule.
    pub(in crate::check) fn check(&self, rule: Rule) -> Outcome {
        let begin = Instant::now();
        let record = Record::default();
        let checked: Checked = match self.run(rule, &record) {
            Ok(run) => (rule.judge)(&run),
            Err(error) => Err(Fault::Impossible(error.to_string())),
        };
        Outcome::new(
            rule.about,
            checked,
            record.take(),
            begin.elapsed().as_secs_f64(),
        )
    }

    /// Runs the command with such a server.
    fn run(&self, rule: Rule, record: &Record) -> Result<Run> {
        let shared = Shared {
            run: Arc::new(Mutex::new(Run::default())),
            bytes: Arc::new(Mutex::new(disk())),
        };
        let is_over = AtomicBool::new(false);
        let mut child = self.start()?;
        let end = thread::scope(|scope| {
            scope.spawn(|| self.accept(rule, &shared, record, &is_over));
            let end = wait(&mut child, self.time);
            is_over.store(true, Ordering::Release);
            end
        });
        let mut run = std::mem::take(&mut *lock(&shared.run));
        run.end = end.step(|| "cannot wait for the command")?;
        Ok(run)
    }

    fn start(&self) -> Result<Child> {
        let uri = self.uri.to_string();
        let mut words = self.command.iter().map(|word| replace(word, &uri));
        let program = words.next().unwrap_or_default();
        let mut command = Command::new(&program);
        command
            .args(words)
            .env("NBD_URI", &uri)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        command
            .spawn()
            .step(|| format!("cannot start {}", Path::new(&program).display()))
    }

    /// Serves clients until the run is over, and those that are there to their end.
    fn accept(&self, rule: Rule, shared: &Shared, record: &Record, is_over: &AtomicBool) {
        thread::scope(|scope| {
            loop {
                // Clients that are there before the end are served.
                let was_over = is_over.load(Ordering::Acquire);
                match self.socket.accept() {
                    Ok((socket, _)) if socket.set_nonblocking(false).is_ok() => {
                        let _ = socket.set_tcp_nodelay(true);
                        lock(&shared.run).connections += 1;
                        let talk = Talk::server(socket, self.time, record);
                        let host = Host::new(talk, rule, shared.clone());
                        scope.spawn(|| host.serve());
                    }
                    _ if was_over => return,
                    _ => thread::sleep(INTERVAL),
                }
            }
        });
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// A disk with something in each block.
fn disk() -> Vec<u8> {
    let len = usize::try_from(SIZE).unwrap_or(0);
    (0..len).map(|at| at.to_le_bytes()[1] | 1).collect()
}

/// A word of the command with the URI in its place.
fn replace(word: &OsStr, uri: &str) -> OsString {
    let bytes = word.as_bytes();
    let Some(at) = bytes.windows(PLACE.len()).position(|part| part == PLACE) else {
        return word.to_owned();
    };
    let (before, rest) = bytes.split_at(at);
    let rest = rest.get(PLACE.len()..).unwrap_or_default();
    OsString::from_vec([before, uri.as_bytes(), rest].concat())
}

/// Waits for the end of the command, and kills it with all that it has started when it is late.
fn wait(child: &mut Child, time: Duration) -> std::io::Result<End> {
    let start = Instant::now();
    while start.elapsed() < time {
        if let Some(status) = child.try_wait()? {
            return Ok(match (status.code(), status.signal()) {
                // As a shell has it.
                (Some(code @ 129..=159), _) => End::Signal(code - 128),
                (Some(code), _) => End::Code(code),
                (None, signal) => End::Signal(signal.unwrap_or(0)),
            });
        }
        thread::sleep(INTERVAL);
    }
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    child.wait()?;
    Ok(End::Late)
}
