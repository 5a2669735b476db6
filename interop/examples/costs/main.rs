//! The costs of clients and servers: instructions and system calls for one request, or one
//! connection.
//!
//! ```text
//! cargo run --release -p nbd-interop --example costs
//! ```
//!
//! prints a table for all of them, and with words behind `--`, such as `-- tokio read`, the rows
//! with all these words. It needs valgrind; the column of system calls also needs strace, and the
//! rows of libnbd a C compiler with libnbd's headers. `docs/performance.md` says how to read the
//! table. A number among the words is another depth than 1 and 64. With `NBD` in the environment, the path
//! of the command `nbd`, there are rows of `nbd bench`, too.
//!
//! Each row is measured in a process of its own, with nothing but one client or one server in it,
//! below valgrind's callgrind or below strace. Its peer is another process that is not measured. It
//! is the same for all clients, and the same for all servers: as little of the protocol as will do,
//! written by hand. Both have a Unix socket between them. Each process runs twice, with some
//! requests and with more of them, and the difference is the result, so that work done once does
//! not count.

#![expect(clippy::print_stdout, reason = "its purpose is to print a table")]

mod asynchronous;
mod blocking;
mod by_hand;
mod lent;
mod measuring;
mod peer;

use std::{fmt, os::unix::net::UnixListener, path::PathBuf, str::FromStr};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T, E = Failure> = std::result::Result<T, E>;

/// Bytes of a request.
const BLOCK: usize = 4096;

/// Bytes of the export that are used, again and again; 64 requests of a batch are all elsewhere.
const SPAN: usize = 1 << 20;

/// The operation that is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    /// A read of a hole.
    Hole,
    Write,
    /// A connection that enters the export and disconnects.
    Connect,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Read, Self::Hole, Self::Write, Self::Connect];

    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Hole => "hole",
            Self::Write => "write",
            Self::Connect => "connect",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Operation {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|known| known.name() == name);
        found.ok_or_else(|| format!("there is no operation {name}").into())
    }
}

/// The work of a process.
#[derive(Clone, Debug)]
struct Work {
    operation: Operation,
    /// Requests in flight.
    depth: usize,
    /// Requests, or connections.
    count: usize,
    /// The server's socket.
    path: PathBuf,
}

impl Work {
    fn connections(&self) -> usize {
        match self.operation {
            Operation::Connect => self.count,
            _ => 1,
        }
    }

    /// The offsets of one connection's requests.
    fn offsets(&self) -> impl Iterator<Item = u64> + Send + use<> {
        let count = match self.operation {
            Operation::Connect => 0,
            _ => self.count,
        };
        (0..count).map(|at| ((at * BLOCK) % SPAN) as u64)
    }
}

/// One of the two ends that are measured.
#[derive(Clone, Copy)]
enum Role {
    Client(fn(&Work) -> Result<()>),
    Server(fn(&Work, UnixListener) -> Result<()>),
    /// A client that is a program of its own.
    Foreign,
    /// `nbd bench` with this runtime.
    Bench(&'static str),
}

struct Contender {
    name: &'static str,
    role: Role,
}

const MINIMAL_CLIENT: &str = "minimal client";
const MINIMAL_SERVER: &str = "minimal server";

const BARE_TOKIO: &str = "bare tokio client";
const TIMED_TOKIO: &str = "bare tokio client with timers and a task";

const CONTENDERS: [Contender; 15] = [
    Contender {
        name: MINIMAL_CLIENT,
        role: Role::Client(peer::client),
    },
    Contender {
        name: "libnbd client",
        role: Role::Foreign,
    },
    Contender {
        name: BARE_TOKIO,
        role: Role::Client(by_hand::bare),
    },
    Contender {
        name: TIMED_TOKIO,
        role: Role::Client(by_hand::in_time),
    },
    Contender {
        name: "blocking client",
        role: Role::Client(blocking::client),
    },
    Contender {
        name: "tokio client",
        role: Role::Client(asynchronous::tokio_client),
    },
    Contender {
        name: "async-std client",
        role: Role::Client(asynchronous::async_std_client),
    },
    Contender {
        name: "nbd bench, blocking client",
        role: Role::Bench("blocking"),
    },
    Contender {
        name: "nbd bench, tokio client",
        role: Role::Bench("tokio"),
    },
    Contender {
        name: MINIMAL_SERVER,
        role: Role::Server(peer::server),
    },
    Contender {
        name: "blocking server",
        role: Role::Server(blocking::server),
    },
    Contender {
        name: "tokio server",
        role: Role::Server(asynchronous::tokio_server),
    },
    Contender {
        name: "async-std server",
        role: Role::Server(asynchronous::async_std_server),
    },
    Contender {
        name: "tokio server, futures",
        role: Role::Server(lent::futures),
    },
    Contender {
        name: "tokio server, cache",
        role: Role::Server(lent::cache),
    },
];

impl Contender {
    /// The process at the other end.
    const fn peer(&self) -> &'static str {
        match self.role {
            Role::Server(_) => MINIMAL_CLIENT,
            Role::Client(_) | Role::Foreign | Role::Bench(_) => MINIMAL_SERVER,
        }
    }

    fn does(&self, operation: Operation) -> bool {
        match operation {
            // Only a server can have a hole.
            Operation::Hole => matches!(self.role, Role::Server(_)) && self.name != MINIMAL_SERVER,
            Operation::Read | Operation::Write => !matches!(self.name, BARE_TOKIO | TIMED_TOKIO),
            Operation::Connect => true,
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["run", name, operation, depth, count, path] => {
            let contender = CONTENDERS.iter().find(|known| known.name == name);
            let work = Work {
                operation: operation.parse()?,
                depth: depth.parse()?,
                count: count.parse()?,
                path: path.into(),
            };
            match contender.ok_or("there is no such client or server")?.role {
                Role::Client(run) => run(&work),
                Role::Server(run) => run(&work, measuring::inherited_listener()?),
                Role::Foreign | Role::Bench(_) => Err("this one is a program of its own".into()),
            }
        }
        _ => table(&words),
    }
}

fn table(words: &[&str]) -> Result<()> {
    let bench = measuring::Bench::new()?;
    println!("| what | does | depth | instructions | system calls | which |");
    println!("|---|---|---|---|---|---|");
    let depth = words.iter().find_map(|word| word.parse().ok());
    for operation in Operation::ALL {
        for contender in CONTENDERS.iter().filter(|known| known.does(operation)) {
            let depths = match (operation, depth) {
                (Operation::Connect, _) => vec![1],
                (_, Some(depth)) => vec![depth],
                (_, None) => vec![1, 64],
            };
            for depth in depths {
                let title = format!("{} | {operation} | {depth}", contender.name);
                if !words.iter().all(|word| title.contains(word)) {
                    continue;
                }
                if let Some(costs) = bench.measure(contender, operation, depth)? {
                    println!("| {title} | {costs} |");
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use interop::run;
    use std::thread;

    /// Has a client and a server talk in one process.
    fn meet(client: fn(&Work) -> Result<()>, server: fn(&Work, UnixListener) -> Result<()>) {
        run(move || {
            for operation in Operation::ALL {
                for depth in [1, 3] {
                    let directory = tempfile::tempdir().unwrap();
                    let work = Work {
                        operation,
                        depth,
                        count: 7,
                        path: directory.path().join("socket"),
                    };
                    let listener = UnixListener::bind(&work.path).unwrap();
                    let for_server = work.clone();
                    let serving = thread::spawn(move || server(&for_server, listener));
                    client(&work).unwrap();
                    serving.join().unwrap().unwrap();
                }
            }
        });
    }

    #[test]
    fn every_client_does_all_work() {
        for contender in &CONTENDERS {
            if let Role::Client(client) = contender.role {
                meet(client, peer::server);
            }
        }
    }

    #[test]
    fn every_server_does_all_work() {
        for contender in &CONTENDERS {
            if let Role::Server(server) = contender.role {
                meet(peer::client, server);
            }
        }
    }
}
