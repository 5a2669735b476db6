//! Processes below callgrind and strace.

use crate::{BLOCK, Contender, Operation, Result, Role, SPAN};
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::{fd::AsFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// The costs of one request or connection.
pub(crate) struct Costs {
    instructions: f64,
    /// System calls by name; `None` without strace.
    calls: Option<BTreeMap<String, f64>>,
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} | ", self.instructions)?;
        let Some(calls) = &self.calls else {
            return f.write_str("? | strace is missing");
        };
        write!(f, "{:.2} | ", calls.values().sum::<f64>())?;
        let mut calls: Vec<_> = calls.iter().filter(|(_, often)| **often >= 0.005).collect();
        calls.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        for (at, (name, often)) in calls.into_iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name} {often:.2}")?;
        }
        Ok(())
    }
}

/// The programs that measure, and those that are measured.
pub(crate) struct Bench {
    directory: TempDir,
    this: PathBuf,
    libnbd: Option<PathBuf>,
    /// The command `nbd`.
    nbd: Option<PathBuf>,
    strace: bool,
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        if !is_installed("valgrind") {
            return Err("valgrind is missing".into());
        }
        Ok(Self {
            this: std::env::current_exe()?,
            libnbd: libnbd(directory.path())?,
            nbd: std::env::var_os("NBD").map(PathBuf::from),
            strace: is_installed("strace"),
            directory,
        })
    }

    /// The costs of a contender, unless it cannot be had here.
    pub(crate) fn measure(
        &self,
        contender: &Contender,
        operation: Operation,
        depth: usize,
    ) -> Result<Option<Costs>> {
        let (few, many) = match operation {
            Operation::Connect => (100, 600),
            _ => (2000, 12_000),
        };
        let Some(program) = self.program(contender) else {
            return Ok(None);
        };
        let measured = |tool, count: usize| {
            let mut command = self.below(tool);
            command.arg(program);
            let path = self.socket();
            match contender.role {
                Role::Bench(runtime) => {
                    command.args(["bench", "--json", "--destroy-data", "--runtime", runtime]);
                    command.args(["--op", operation.name(), "--pattern", "sequential"]);
                    command.args([format!("--bs={BLOCK}"), format!("--span={SPAN}")]);
                    command.args([format!("--depth={depth}"), format!("--ops={count}")]);
                    command.arg(format!("nbd+unix:///?socket={}", path.display()));
                }
                Role::Foreign => arguments(&mut command, operation, depth, count, &path),
                Role::Client(_) | Role::Server(_) => {
                    command.args(["run", contender.name]);
                    arguments(&mut command, operation, depth, count, &path);
                }
            }
            self.run(command, contender, operation, depth, count)
        };
        let each = |few_cost: f64, many_cost: f64| (many_cost - few_cost) / f64::from(many - few);
        let instructions = |count: u32| -> Result<f64> {
            number_after(&measured(Tool::Callgrind, count as usize)?, "Collected :")
        };
        let calls = |count: u32| -> Result<BTreeMap<String, f64>> {
            measured(Tool::Strace, count as usize)?;
            calls(&fs::read_to_string(self.summary())?)
        };
        Ok(Some(Costs {
            instructions: each(instructions(few)?, instructions(many)?),
            calls: if self.strace {
                let before = calls(few)?;
                let mut calls = calls(many)?;
                for (name, often) in &mut calls {
                    *often = each(before.get(name).copied().unwrap_or_default(), *often);
                }
                Some(calls)
            } else {
                None
            },
        }))
    }

    fn program(&self, contender: &Contender) -> Option<&Path> {
        match contender.role {
            Role::Foreign => self.libnbd.as_deref(),
            Role::Bench(_) => self.nbd.as_deref(),
            _ => Some(&self.this),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn summary(&self) -> PathBuf {
        self.directory.path().join("calls")
    }

    /// A command to which the measured program has to be added.
    fn below(&self, tool: Tool) -> Command {
        match tool {
            Tool::Callgrind => {
                let mut valgrind = Command::new("valgrind");
                valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
                valgrind
            }
            Tool::Strace => {
                let mut strace = Command::new("strace");
                strace.args(["-f", "-c", "-o"]).arg(self.summary());
                strace
            }
        }
    }

    /// Has the measured process and its peer do their work. Returns the standard error of the
    /// former.
    fn run(
        &self,
        mut measured: Command,
        contender: &Contender,
        operation: Operation,
        depth: usize,
        count: usize,
    ) -> Result<String> {
        let path = self.socket();
        let listener = UnixListener::bind(&path)?;
        let mut peer = Command::new(&self.this);
        peer.args(["run", contender.peer()]);
        arguments(&mut peer, operation, depth, count, &path);
        for command in [&mut measured, &mut peer] {
            // Of async-std, whose threads would share the work in another way each time.
            command.env("ASYNC_STD_THREAD_COUNT", "1");
        }
        let server = match contender.role {
            Role::Server(_) => &mut measured,
            _ => &mut peer,
        };
        server.stdin(listener.as_fd().try_clone_to_owned()?);
        let mut peer = peer.spawn()?;
        measured.stdout(Stdio::null()).stderr(Stdio::piped());
        let measured = measured.spawn()?;
        // If a server fails, its client has to notice.
        drop(listener);
        let output = measured.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            peer.kill()?;
        }
        let peer = peer.wait()?;
        fs::remove_file(path)?;
        if output.status.success() && peer.success() {
            Ok(said)
        } else {
            Err(format!("{} has failed: {said}", contender.name).into())
        }
    }
}

/// Adds the work of a process to its command.
fn arguments(command: &mut Command, operation: Operation, depth: usize, count: usize, path: &Path) {
    command.args([operation.name(), &depth.to_string(), &count.to_string()]);
    command.arg(path);
}

#[derive(Clone, Copy)]
enum Tool {
    Callgrind,
    Strace,
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// The listening socket in place of standard input.
pub(crate) fn inherited_listener() -> Result<UnixListener> {
    Ok(UnixListener::from(
        io::stdin().as_fd().try_clone_to_owned()?,
    ))
}

/// Builds the client by libnbd, where its headers and a compiler are installed.
fn libnbd(directory: &Path) -> Result<Option<PathBuf>> {
    let source = directory.join("libnbd.c");
    let program = directory.join("libnbd");
    fs::write(&source, include_str!("libnbd.c"))?;
    let mut cc = Command::new("cc");
    cc.arg("-O2")
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .arg("-lnbd");
    let built = cc.stderr(Stdio::null()).status();
    Ok(built.is_ok_and(|built| built.success()).then_some(program))
}

/// The table that `strace -c` prints: the fourth column is the count, the last one is the call.
fn calls(table: &str) -> Result<BTreeMap<String, f64>> {
    let mut calls = BTreeMap::new();
    for line in table.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        if let [share, _, _, often, .., name] = fields[..]
            && share.parse::<f64>().is_ok()
            && name != "total"
        {
            calls.insert(name.to_owned(), often.parse()?);
        }
    }
    Ok(calls)
}

fn number_after(text: &str, label: &str) -> Result<f64> {
    let (_, after) = text.split_once(label).ok_or("valgrind says nothing")?;
    let number = after.split_whitespace().next().unwrap_or_default();
    Ok(number.replace(',', "").parse()?)
}
