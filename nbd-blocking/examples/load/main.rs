//! Loads a server and prints one line of JSON: how many requests of a size, how fast.
//!
//! ```text
//! cargo run --release -p nbd-blocking --example load -- --unix /tmp/nbd.sock --op read --qd 16
//! ```

mod common;

use clap::Parser;
use common::{Failure, Offsets, Op, Options, report};
use nbd_blocking::{Client, ClientTls, CommandFlags, ConnectOptions, Error};
use std::{
    thread,
    time::{Duration, Instant},
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

/// The alignment of buffers, in bytes.
const PAGE: usize = 4096;

fn main() -> Result<(), Failure> {
    let Command { options } = Command::parse();
    let (ops, elapsed, mut latencies) = match options.op {
        Op::Connect => connect_again_and_again(&options)?,
        Op::Read | Op::Write => move_bytes(&options)?,
    };
    report("nbd-blocking", &options, elapsed, ops, &mut latencies);
    Ok(())
}

/// The connect options, the same for all connections, so that they share TLS sessions.
fn connecting(options: &Options) -> Result<ConnectOptions, Failure> {
    let mut connect = ConnectOptions::new();
    if options.simple {
        connect = connect.extended_headers(false).structured_replies(false);
    }
    if let Some(directory) = &options.tls {
        let tls = ClientTls::new()
            .directory(directory)?
            .server_name("localhost");
        connect = connect.tls(tls).tls_policy(nbd_blocking::TlsPolicy::Always);
    }
    Ok(connect)
}

/// How many requests or connections, how long all took, and each if that is asked for.
type Measured = (u64, Duration, Vec<f32>);

fn connect_again_and_again(options: &Options) -> Result<Measured, Failure> {
    let (connect, uri) = (connecting(options)?, options.uri()?);
    let mut latencies = Vec::new();
    let all = Instant::now();
    for _ in 0..options.ops {
        let start = Instant::now();
        connect.connect_uri(&uri)?.disconnect()?;
        if options.lat {
            latencies.push(start.elapsed().as_secs_f32());
        }
    }
    Ok((options.ops, all.elapsed(), latencies))
}

fn move_bytes(options: &Options) -> Result<Measured, Failure> {
    let each = options.bytes / options.bs / u64::from(options.conns.max(1));
    let (connect, uri) = (connecting(options)?, options.uri()?);
    let clients: Vec<Client> = (0..options.conns)
        .map(|_| connect.connect_uri(&uri))
        .collect::<Result<_, _>>()?;
    // The time to connect is another operation's.
    let start = Instant::now();
    thread::scope(|scope| {
        let workers: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(index, client)| scope.spawn(move || work(options, client, index, each)))
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            let latencies = worker.join().map_err(|_| "a worker panicked")??;
            all.extend(latencies);
        }
        Ok((each * u64::from(options.conns), start.elapsed(), all))
    })
}

fn work(
    options: &Options,
    client: &Client,
    index: usize,
    mut left: u64,
) -> Result<Vec<f32>, Error> {
    let mut offsets = Offsets::new(options, client.size(), index);
    if options.qd == 1 {
        return one_at_a_time(options, client, &mut offsets, left);
    }
    let mut latencies = Vec::new();
    let mut started = vec![Instant::now(); options.qd as usize];
    let payload = bytes::Bytes::from(options.payload());
    let mut queue = client.queue();
    let mut buffers: Vec<Vec<u8>> = (0..options.qd).map(|_| vec![0; payload.len()]).collect();
    while left > 0 || queue.outstanding() > 0 {
        while left > 0 && queue.outstanding() < options.qd as usize {
            let cookie = match options.op {
                Op::Write => queue.write(payload.clone(), offsets.next(), CommandFlags::NONE)?,
                Op::Read | Op::Connect => {
                    queue.read(buffers.pop().unwrap_or_default(), offsets.next())?
                }
            };
            left -= 1;
            if options.lat {
                started[cookie.slot()] = Instant::now();
            }
        }
        let Some(completion) = queue.complete()? else {
            break;
        };
        completion.result?;
        if options.lat {
            latencies.push(started[completion.cookie.slot()].elapsed().as_secs_f32());
        }
        buffers.extend(completion.buffer);
    }
    Ok(latencies)
}

fn one_at_a_time(
    options: &Options,
    client: &Client,
    offsets: &mut Offsets,
    left: u64,
) -> Result<Vec<f32>, Error> {
    let mut latencies = Vec::new();
    // At the start of a page, as usual for blocks of disks. 16 bytes behind, where large vectors
    // often are, x86 copies at half the speed behind a TCP request's header of 28 bytes.
    let len: usize = options.bs.try_into().unwrap_or(0);
    let mut memory = vec![0x5a; len + PAGE];
    let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
    let buffer = &mut memory[start..start + len];
    for _ in 0..left {
        let start = options.lat.then(Instant::now);
        match options.op {
            Op::Write => client.write_all_at(buffer, offsets.next())?,
            Op::Read | Op::Connect => client.read_exact_at(buffer, offsets.next())?,
        }
        latencies.extend(start.map(|start| start.elapsed().as_secs_f32()));
    }
    Ok(latencies)
}
