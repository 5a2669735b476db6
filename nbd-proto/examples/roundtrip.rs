//! The cost of the machines: instructions for one request and its reply, both sides together.
//!
//! ```text
//! cargo run --release -p nbd-proto --example roundtrip
//! ```
//!
//! prints a table, for which this program runs itself below valgrind. Instructions are counted for
//! two numbers of requests, and the difference is the cost of a request; unlike time, it is the
//! same again and again. A round trip is the client's request, the server's decoding it, its
//! reply, and the client's taking that in. The 4 KiB of payload are described and never copied,
//! by neither side, so they cost nothing. Given a mode, an operation and a number, as in
//! `roundtrip extended read 1000`, the program just makes so many round trips.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "it measures the core from outside"
)]

use bytes::{Buf, BytesMut};
use nbd_proto::{
    ExportInfo, ExportName, HeaderStyle, Phase, Step, TransmissionFlags,
    client::{self, Go, GoOutcome, Greeted},
    server::{self, Receipt, Request, Requested},
};
use std::{
    hint::black_box,
    io::{self, Write},
    process::{Command, Output},
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const BLOCK: usize = 4096;

const HEADER_STYLES: [(&str, HeaderStyle); 3] = [
    ("simple", HeaderStyle::Simple),
    ("structured", HeaderStyle::Structured),
    ("extended", HeaderStyle::Extended),
];

const OPERATIONS: [(&str, Operation); 2] = [("read", Pair::read), ("write", Pair::write)];

type Operation = fn(&mut Pair) -> Result<()>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => table(),
        [mode, operation, count] => round_trips(mode, operation, count.parse()?),
        _ => Err("usage: roundtrip [simple|structured|extended read|write COUNT]".into()),
    }
}

fn round_trips(mode: &str, operation: &str, count: u32) -> Result<()> {
    let mode = HEADER_STYLES.iter().find(|(name, _)| *name == mode);
    let operation = OPERATIONS.iter().find(|(name, _)| *name == operation);
    let (Some((_, mode)), Some((_, operation))) = (mode, operation) else {
        return Err("there is no such mode or operation".into());
    };
    let mut pair = Pair::new(*mode)?;
    for _ in 0..count {
        operation(&mut pair)?;
    }
    Ok(())
}

fn table() -> Result<()> {
    let this = std::env::current_exe()?;
    let mut out = io::stdout().lock();
    writeln!(out, "{:10}  {:5}  {:>12}", "mode", "", "instructions")?;
    for (mode, _) in HEADER_STYLES {
        for (operation, _) in OPERATIONS {
            let count = |n: u64| -> Result<u64> {
                let mut valgrind = Command::new("valgrind");
                valgrind
                    .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
                    .arg(&this)
                    .args([mode, operation, &n.to_string()]);
                let said = run(valgrind)?.ok_or("valgrind is missing")?;
                number_after(&said, "Collected :")
            };
            let each = (count(2000)? - count(1000)?) / 1000;
            writeln!(out, "{mode:10}  {operation:5}  {each:12}")?;
        }
    }
    Ok(())
}

/// Both ends of a connection, with 4 KiB to be read or written.
struct Pair {
    client: client::Transmission,
    server: server::Transmission,
    block: Vec<u8>,
}

impl Pair {
    fn new(mode: HeaderStyle) -> Result<Self> {
        let (to_server, to_client) = (&mut BytesMut::new(), &mut BytesMut::new());
        let config = server::Config::default();
        let server = server::Handshake::new(config, to_client);
        let client = client::Handshake::new(Default::default());
        let Greeted::FixedNewstyle(mut client) = finish(client, to_client, to_server)? else {
            return Err("the server is not that old".into());
        };
        let mut server = finish(server, to_server, to_client)?;
        if mode != HeaderStyle::Simple {
            let pending = match mode {
                HeaderStyle::Extended => client.extended_headers(to_server).map(Switch::Extended),
                _ => client.structured_reply(to_server).map(Switch::Structured),
            };
            let pending = pending.map_err(|no| no.misuse)?;
            server = match server.feed(&to_server.split(), to_client)? {
                (_, Step::More(server)) => server,
                (_, Step::Done(other)) => return Err(format!("{other:?}").into()),
            };
            client = match pending {
                Switch::Extended(pending) => finish(pending, to_client, to_server)?.options,
                Switch::Structured(pending) => finish(pending, to_client, to_server)?.options,
            };
        }
        let pending = client.go(Go::new(ExportName::default()), to_server);
        let Requested::Go(go) = finish(server, to_server, to_client)? else {
            return Err("the client asked for something else".into());
        };
        let export = ExportInfo::new(1 << 30, TransmissionFlags::NONE);
        let server = go.accept(&export, to_client);
        let GoOutcome::Accepted(client) = finish(pending, to_client, to_server)? else {
            return Err("the server refused".into());
        };
        assert_eq!(client.mode(), mode);
        Ok(Self {
            client,
            server,
            block: vec![7; BLOCK],
        })
    }

    fn read(&mut self) -> Result<()> {
        let Self {
            client,
            server,
            block,
        } = self;
        let (_, frame) = client.read(black_box(4096), BLOCK as u64, Default::default())?;
        let event = server.feed(frame.header())?.event;
        let Some(server::Event::Request(Request::Read { ticket, .. })) = event else {
            return Err("the server heard something else".into());
        };
        let reply = ticket.data(&block[..]);
        let before = client.feed(reply.frame.header())?;
        assert!(before.event.is_none(), "the payload is to come");
        let client::Fill::Payload(payload) = client.fill()? else {
            return Err("the client wants no payload".into());
        };
        let event = client.filled(black_box(payload).range.len())?;
        finished(server, event, reply.receipt)
    }

    fn write(&mut self) -> Result<()> {
        let Self {
            client,
            server,
            block,
        } = self;
        let (_, frame) = client.write(black_box(4096), &block[..], Default::default())?;
        let before = server.feed(frame.header())?;
        assert!(before.event.is_none(), "the payload is to come");
        let server::Fill::Payload { range, .. } = server.fill() else {
            return Err("the server wants no payload".into());
        };
        let event = server.filled(black_box(range).len())?;
        let Some(server::Event::Request(Request::Write { ticket, .. })) = event else {
            return Err("the server heard something else".into());
        };
        let reply = ticket.done();
        let event = client.feed(reply.frame.header())?.event;
        finished(server, event, reply.receipt)
    }
}

/// An option that switches the mode.
enum Switch {
    Structured(client::Pending<client::outstanding::StructuredReply<client::Plain>>),
    Extended(client::Pending<client::outstanding::ExtendedHeaders<client::Plain>>),
}

fn finished(
    server: &mut server::Transmission,
    event: Option<client::Event>,
    receipt: Receipt,
) -> Result<()> {
    server.retire(receipt);
    match event {
        Some(client::Event::Complete {
            outcome: client::Outcome::Done,
            ..
        }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn finish<P: Phase>(phase: P, from: &mut BytesMut, to: &mut BytesMut) -> Result<P::Next> {
    match phase.feed(from, to)? {
        (used, Step::Done(next)) => {
            from.advance(used);
            Ok(next)
        }
        (_, Step::More(_)) => Err("the other side owes an answer".into()),
    }
}

/// The output of valgrind; nothing where it is not installed.
fn run(mut valgrind: Command) -> Result<Option<String>> {
    match valgrind.output() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
        Ok(Output { status, stderr, .. }) => {
            let said = String::from_utf8_lossy(&stderr).into_owned();
            if status.success() {
                Ok(Some(said))
            } else {
                Err(said.into())
            }
        }
    }
}

fn number_after(text: &str, label: &str) -> Result<u64> {
    let (_, after) = text.split_once(label).ok_or("valgrind says nothing")?;
    let number = after.split_whitespace().next().unwrap_or_default();
    Ok(number.replace(',', "").parse()?)
}

#[test]
fn every_round_trip_works() {
    for (mode, _) in HEADER_STYLES {
        for (operation, _) in OPERATIONS {
            round_trips(mode, operation, 3).unwrap();
        }
    }
}

/// The work of the test below, in a process of its own.
#[test]
#[ignore = "it is work for another test"]
fn so_many_round_trips() {
    let count = std::env::var("ROUND_TRIPS").map_or(1, |count| count.parse().unwrap());
    for (mode, _) in HEADER_STYLES {
        for (operation, _) in OPERATIONS {
            round_trips(mode, operation, count).unwrap();
        }
    }
}

#[test]
fn no_request_takes_memory() {
    let allocations = |count: &str| {
        let mut valgrind = Command::new("valgrind");
        valgrind
            .args(["--leak-check=no", "--undef-value-errors=no"])
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "so_many_round_trips"])
            .env("ROUND_TRIPS", count);
        let said = run(valgrind).unwrap()?;
        Some(number_after(&said, "total heap usage:").unwrap())
    };
    let Some(few) = allocations("10") else {
        eprintln!("skipped: valgrind is missing");
        return;
    };
    let many = allocations("1010").unwrap();
    // The test harness allocates a little more or less each time; 6000 requests do not.
    assert!(many.abs_diff(few) < 100, "{few} and {many} allocations");
}
