//! `nbd ping`: whether a server can be reached and used, step by step.

use crate::{
    connect::{Connect, Opened, seconds},
    interrupt::Catcher,
    outcome::{Answer, Context, Error, Result},
    output,
    range::Unreachable,
    runtime,
    session::Session,
    size::Size,
    target::Target,
    text::printable,
};
use clap::Args;
use nbd_tokio::{Client, Uri, nbd_proto::uri::Address};
use std::time::{Duration, Instant};

/// Reach a server and use an export of it, step by step, with times.
#[derive(Debug, Args)]
#[command(after_help = "\
The step that fails is named with its cause, and what to try.

Examples:
  nbd ping
  nbd ping -c 10 nbd://localhost/disk
  nbd ping -v nbds://example.com        every message in both directions")]
pub(crate) struct Ping {
    /// A URI.
    target: Option<Target>,
    /// Read so many times after the export was entered; 0 reads until Ctrl-C.
    #[arg(short, long, value_name = "NUMBER", default_value = "3")]
    count: u64,
    /// Wait between two reads.
    #[arg(short, long, value_name = "SECONDS", default_value = "0.2", value_parser = seconds)]
    interval: Duration,
    #[command(flatten)]
    connect: Connect,
}

impl Ping {
    pub(crate) fn run(self) -> Result {
        let Opened { uri, embedded } = Connect::open(self.target.as_ref())?;
        runtime::block_on(self.walk(&uri))?;
        drop(embedded);
        Ok(Answer::Yes)
    }

    async fn walk(&self, uri: &Uri) -> Result<()> {
        if let Address::Tcp { host, port, .. } = uri.address() {
            let start = Instant::now();
            let found = tokio::net::lookup_host((host.as_str(), *port)).await;
            let found: Vec<_> = found
                .step(|| {
                    format!(
                        "cannot look up the host {}; is its name right?",
                        host.as_str()
                    )
                })?
                .map(|address| address.ip().to_string())
                .collect();
            done("lookup", start, &found.join(", "))?;
        }
        let options = self.connect.options()?;
        let start = Instant::now();
        let mut session = Session::begin(&options, self.connect.policy(), uri).await?;
        let secure = if session.is_encrypted() { ", TLS" } else { "" };
        let greeted = format!(
            "{} handshake{secure}, {}",
            session.protocol(),
            uri.redacted()
        );
        done("connect", start, &greeted)?;
        let start = Instant::now();
        session.agree().await?;
        done(
            "headers",
            start,
            &format!("{:?}", session.header_style()).to_lowercase(),
        )?;
        let start = Instant::now();
        let client = session.enter(uri.export()).await?;
        let export = client.export();
        let access = if export.is_read_only() {
            "read-only"
        } else {
            "writable"
        };
        let missing = Unreachable::of(export);
        let mut entered = format!(
            "export \"{}\", {} bytes ({}), {access}",
            uri.export(),
            export.size,
            Size(export.size)
        );
        if let Some(missing) = missing {
            entered = format!("{entered}; {missing}");
        }
        done("export", start, &entered)?;
        if let Some(missing) = missing.filter(|_| client.size() == 0) {
            return Err(missing.into());
        }
        let mut signals = Catcher::new()?;
        let read = tokio::select! {
            read = self.read(&client) => read,
            () = signals.signal() => Err(Error::Interrupted),
        };
        let start = Instant::now();
        client.disconnect().await?;
        done("disconnect", start, "")?;
        read
    }

    /// Reads the first block again and again.
    async fn read(&self, client: &Client) -> Result<()> {
        let block = u64::from(client.block_sizes().minimum().max(512)).min(client.size());
        if block == 0 {
            return Ok(());
        }
        let len = usize::try_from(block).unwrap_or(usize::MAX);
        let mut reads = 0;
        while self.count == 0 || reads < self.count {
            if reads > 0 {
                tokio::time::sleep(self.interval).await;
            }
            let start = Instant::now();
            client.read(0, len).await?;
            reads += 1;
            done("read", start, &format!("{block} bytes"))?;
        }
        Ok(())
    }
}

/// Prints a step and how long it took.
fn done(step: &str, start: Instant, what: &str) -> Result<()> {
    let took = start.elapsed();
    let took = format!("{}.{:03} ms", took.as_millis(), took.subsec_micros() % 1000);
    output::print(&format!("{step:<10} {took:>12}  {}\n", printable(&what)))
}
