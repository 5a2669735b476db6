//! Running the command once for each rule.

use super::{
    Rule,
    disk::{FULL, SIZE},
    host::{Host, Shared, lock},
    judge::{End, Run},
    scene::honest,
    secure::{Authority, Shown},
};
use crate::{
    check::{
        rule::{Checked, Fault, Outcome, not},
        talk::{Record, Talk},
    },
    outcome::{Context, Error, Result},
};
use nbd_tokio::{
    Uri,
    nbd_proto::uri::{Address, Host as HostName, Tls},
};
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

/// Where a server listens.
#[derive(Debug)]
struct Place {
    socket: Socket,
    uri: Uri,
    /// Removed at the end.
    path: Option<OsString>,
}

impl Place {
    /// Listens at HOST:PORT, at PORT of localhost, or at the path of a Unix socket.
    fn new(place: &str) -> Result<Self> {
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
        })
    }

    /// Demands TLS, and names the authority's directory.
    fn secure(&mut self, authority: &Authority) -> Result<()> {
        let dir = authority.dir().as_os_str().as_bytes();
        let tls = Tls::new().with_certificates(dir);
        let mut tls = tls.step(|| "the directory of certificates")?;
        if self.path.is_some() {
            // A path has no name to verify.
            let name = HostName::new("localhost");
            tls = tls.with_hostname(name.step(|| "the name of the host")?);
        }
        self.uri = self.uri.clone().with_tls(tls);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

/// The servers that the command is given: one for each run at the same time.
#[derive(Debug)]
pub(in crate::check) struct Listening {
    places: Vec<Place>,
    /// With TLS.
    authority: Option<Authority>,
    command: Vec<OsString>,
    time: Duration,
}

impl Listening {
    /// Listens for so many runs at the same time.
    pub(in crate::check) fn new(
        place: &str,
        jobs: usize,
        is_secure: bool,
        command: &[OsString],
        time: Duration,
    ) -> Result<Self> {
        let is_any = place == "0" || place.ends_with(":0");
        if jobs > 1 && !is_any {
            return Err(Error::new(format!(
                "--jobs {jobs} needs a port for each: expected --listen 0, got {place}"
            )));
        }
        let places = (0..jobs.max(1)).map(|_| Place::new(place));
        let mut places = places.collect::<Result<Vec<_>>>()?;
        let mut authority = None;
        if is_secure {
            let address = places.first().and_then(|place| match place.uri.address() {
                Address::Tcp { host, .. } => Some(host.as_str().to_owned()),
                _ => None,
            });
            let made = Authority::new(address)?;
            for place in &mut places {
                place.secure(&made)?;
            }
            authority = Some(made);
        }
        Ok(Self {
            places,
            authority,
            command: command.to_vec(),
            time,
        })
    }

    /// Number of runs at the same time.
    pub(in crate::check) const fn jobs(&self) -> usize {
        self.places.len()
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
            shown: Shown::Any,
            spoil: honest,
            ..*first
        };
        let run = self.run(0, plain, &Record::default())?;
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

    /// Checks a rule, by a run of this job.
    pub(in crate::check) fn check(&self, job: usize, rule: Rule) -> Outcome {
        let begin = Instant::now();
        let record = Record::default();
        let checked: Checked = if rule.shown != Shown::Any && self.authority.is_none() {
            not("needs --tls always")
        } else {
            match self.run(job, rule, &record) {
                Ok(run) => (rule.judge)(&run),
                Err(error) => Err(Fault::Impossible(error.to_string())),
            }
        };
        Outcome::new(
            rule.about,
            checked,
            record.take(),
            begin.elapsed().as_secs_f64(),
        )
    }

    /// Runs the command with such a server.
    fn run(&self, job: usize, rule: Rule, record: &Record) -> Result<Run> {
        let place = self.places.get(job);
        let place = place.ok_or_else(|| Error::new("no such job"))?;
        let shared = Shared {
            run: Arc::new(Mutex::new(Run::default())),
            bytes: Arc::new(Mutex::new(disk())),
        };
        let is_over = AtomicBool::new(false);
        let mut child = self.start(place, job)?;
        let end = thread::scope(|scope| {
            scope.spawn(|| self.accept(&place.socket, rule, &shared, record, &is_over));
            let end = wait(&mut child, self.time);
            is_over.store(true, Ordering::Release);
            end
        });
        let mut run = std::mem::take(&mut *lock(&shared.run));
        run.end = end.step(|| "cannot wait for the command")?;
        Ok(run)
    }

    fn start(&self, place: &Place, job: usize) -> Result<Child> {
        let uri = place.uri.to_string();
        let dir = self.authority.as_ref();
        let dir = dir.map(|authority| authority.dir().as_os_str().as_bytes());
        let job = (job + 1).to_string();
        let values = [
            (&b"{uri}"[..], uri.as_bytes()),
            (b"{certs}", dir.unwrap_or_default()),
            (b"{job}", job.as_bytes()),
        ];
        let mut words = self.command.iter().map(|word| replace(word, &values));
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
    fn accept(
        &self,
        socket: &Socket,
        rule: Rule,
        shared: &Shared,
        record: &Record,
        is_over: &AtomicBool,
    ) {
        thread::scope(|scope| {
            loop {
                // Clients that are there before the end are served.
                let was_over = is_over.load(Ordering::Acquire);
                match socket.accept() {
                    Ok((socket, _)) if socket.set_nonblocking(false).is_ok() => {
                        let _ = socket.set_tcp_nodelay(true);
                        lock(&shared.run).connections += 1;
                        let talk = Talk::server(socket, self.time, record);
                        let host = Host::new(talk, rule, shared.clone(), self.authority.as_ref());
                        scope.spawn(|| host.serve());
                    }
                    _ if was_over => return,
                    _ => thread::sleep(INTERVAL),
                }
            }
        });
    }
}

/// A disk with something in each block.
fn disk() -> Vec<u8> {
    let len = usize::try_from(SIZE).unwrap_or(0);
    (0..len).map(|at| at.to_le_bytes()[1] | 1).collect()
}

/// A word of the command with values in the place of names in braces.
fn replace(word: &OsStr, values: &[(&[u8], &[u8])]) -> OsString {
    let mut rest = word.as_bytes();
    let mut made = Vec::with_capacity(rest.len());
    while let Some((first, others)) = rest.split_first() {
        let found = values.iter().find(|(name, _)| rest.starts_with(name));
        match found.and_then(|(name, value)| Some((value, rest.get(name.len()..)?))) {
            Some((value, others)) => {
                made.extend_from_slice(value);
                rest = others;
            }
            None => {
                made.push(*first);
                rest = others;
            }
        }
    }
    OsString::from_vec(made)
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
