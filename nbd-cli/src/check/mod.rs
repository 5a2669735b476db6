//! `nbd check`: the rules of the protocol as scripts against any server and any client.

mod client;
mod replies;
mod report;
mod rule;
mod server;
mod talk;
mod wire;

use self::{
    client::Listening,
    report::Report,
    rule::{About, Fault, Outcome, Verdict},
    server::{Scratch, Server},
};
use crate::{
    connect::{Connect, Opened, seconds},
    outcome::{Answer, Error, Result},
    output,
    target::Target,
};
use clap::Args;
use nbd_tokio::TlsPolicy;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::PathBuf,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Check how well a server or a client keeps the protocol, rule by rule.
#[derive(Debug, Args)]
#[command(after_help = "\
A client is a command, which is run once for each rule with $NBD_URI or {uri}
for a server that breaks it. With --tls always it finds that server's authority
in the directory {certs}, which {uri} names, too.
Exit codes: 0 if no rule failed, 1 if one did, 2 if the check could not be done.

Examples:
  nbd check                             a disk in this process, to try it
  nbd check --write --junit check.xml nbd://localhost/disk
  nbd check --rule S-159 --json nbd://localhost/disk
  nbd check --write nbd://localhost:10900 -- nbd serve --listen 10900 disk.img
  nbd check --listen 0 -- nbd copy {uri} copy.img
  nbd check --list-rules")]
pub(crate) struct Check {
    /// The URI of a server.
    target: Option<Target>,
    /// Send commands that write, too.
    ///
    /// They overwrite the first 256 KiB, which are written back.
    #[arg(long)]
    write: bool,
    /// Check this rule alone; can be repeated.
    #[arg(long = "rule", value_name = "ID")]
    rules: Vec<String>,
    /// Check a client: at HOST:PORT, PORT or PATH.
    ///
    /// It is served there: at a PORT of localhost, 0 for any, or a Unix socket.
    #[arg(long, value_name = "ADDR", requires = "command", conflicts_with_all = ["target", "write"])]
    listen: Option<String>,
    /// Clients at once.
    ///
    /// The client is run so many times at once, with a number from 1 on in the place of {job}.
    #[arg(long, value_name = "N", default_value = "1", requires = "listen",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Print the rules instead.
    #[arg(long)]
    list_rules: bool,
    /// Print a JSON document.
    #[arg(long)]
    json: bool,
    /// Write results as JUnit does.
    ///
    /// For continuous integration.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Seconds for all rules.
    #[arg(long, value_name = "S", default_value = "300", value_parser = seconds)]
    timeout: Duration,
    /// Seconds of silence for a rule.
    #[arg(long, value_name = "S", default_value = "5", value_parser = seconds)]
    rule_timeout: Duration,
    /// The client, with --listen; or the server, to be killed.
    ///
    /// A server is killed and started again.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    #[command(flatten)]
    connect: Connect,
}

impl Check {
    pub(crate) fn run(self, quiet: bool) -> Result {
        if self.list_rules {
            let servers = server::rules().into_iter().map(|rule| rule.about);
            let clients = client::rules().into_iter().map(|rule| rule.about);
            let mut about: Vec<About> = servers.chain(clients).collect();
            self.select(&mut about, |about| *about)?;
            report::list(&about, self.json)?;
            return Ok(Answer::Yes);
        }
        match &self.listen {
            Some(place) => self.client(place, quiet),
            None => self.server(quiet),
        }
    }

    fn server(&self, quiet: bool) -> Result {
        if !self.command.is_empty() && self.target.is_none() {
            return Err(Error::new(
                "expected the URI of the server that the command starts, or --listen for a client",
            ));
        }
        let mut rules = server::rules();
        self.select(&mut rules, |rule| rule.about)?;
        let Opened { uri, embedded } = Connect::open(self.target.as_ref())?;
        let (time, command) = (self.rule_timeout, &self.command);
        let server = Server::open(&self.connect, &uri, time, self.write, command)?;
        let scratch = Scratch::keep(&server)?;
        let report = Report {
            target: uri.redacted().to_string(),
            outcomes: self.each((&rules, |rule| rule.about), quiet, |rule| {
                server.check(rule)
            })?,
        };
        let restored = scratch.map_or(Ok(()), |scratch| scratch.restore(&server));
        drop(embedded);
        let answer = self.finish(&report);
        restored.and(answer)
    }

    fn client(&self, place: &str, quiet: bool) -> Result {
        let mut rules = client::rules();
        self.select(&mut rules, |rule| rule.about)?;
        let is_secure = match self.connect.policy() {
            TlsPolicy::Never => false,
            TlsPolicy::Always => true,
            other => {
                return Err(Error::new(format!(
                    "a client is checked with TLS or without: expected always or never, got {other:?}"
                )));
            }
        };
        let (jobs, time) = (usize::from(self.jobs), self.rule_timeout);
        let listening = Listening::new(place, jobs, is_secure, &self.command, time)?;
        listening.try_out(&rules)?;
        let report = Report {
            target: listening.target(),
            outcomes: self.all_at_once(&listening, &rules, quiet)?,
        };
        self.finish(&report)
    }

    /// Leaves the rules that were asked for.
    fn select<R>(&self, rules: &mut Vec<R>, about: fn(&R) -> About) -> Result<()> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let is = |rule: &R, id: &String| about(rule).id.eq_ignore_ascii_case(id);
        for id in &self.rules {
            if !rules.iter().any(|rule| is(rule, id)) {
                return Err(Error::new(format!(
                    "there is no rule {id:?} for this; nbd check --list-rules prints all"
                )));
            }
        }
        rules.retain(|rule| self.rules.iter().any(|id| is(rule, id)));
        Ok(())
    }

    /// Checks one rule after the other, as long as there is time.
    fn each<R>(
        &self,
        (rules, about): (&[R], fn(&R) -> About),
        quiet: bool,
        check: impl Fn(&R) -> Outcome,
    ) -> Result<Vec<Outcome>> {
        let start = Instant::now();
        let mut outcomes = Vec::with_capacity(rules.len());
        for rule in rules {
            let outcome = if start.elapsed() < self.timeout {
                check(rule)
            } else {
                late(about(rule))
            };
            self.show(&outcome, quiet)?;
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Checks several rules at once, as long as there is time, and shows them in their order.
    fn all_at_once(
        &self,
        listening: &Listening,
        rules: &[client::Rule],
        quiet: bool,
    ) -> Result<Vec<Outcome>> {
        let start = Instant::now();
        let next = AtomicUsize::new(0);
        let (done, results) = mpsc::channel();
        thread::scope(|scope| {
            for job in 0..listening.jobs() {
                let (next, done) = (&next, done.clone());
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(rule) = rules.get(at) else { return };
                        let outcome = if start.elapsed() < self.timeout {
                            listening.check(job, *rule)
                        } else {
                            late(rule.about)
                        };
                        // After an error of the output the rest is not wanted.
                        if done.send((at, outcome)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(done);
            let mut early = BTreeMap::new();
            let mut outcomes = Vec::with_capacity(rules.len());
            for (at, outcome) in results {
                early.insert(at, outcome);
                while let Some(outcome) = early.remove(&outcomes.len()) {
                    self.show(&outcome, quiet)?;
                    outcomes.push(outcome);
                }
            }
            Ok(outcomes)
        })
    }

    fn show(&self, outcome: &Outcome, quiet: bool) -> Result<()> {
        if self.json || quiet && outcome.transcript.is_empty() {
            return Ok(());
        }
        report::line(outcome)
    }

    fn finish(&self, report: &Report) -> Result {
        if let Some(path) = &self.junit {
            report.junit(path)?;
        }
        if self.json {
            report.json()?;
        } else {
            output::print(&format!("{}\n", report.totals()))?;
        }
        if report.count(Verdict::Fail) > 0 {
            return Ok(Answer::No);
        }
        match report.count(Verdict::NotDone) {
            0 => Ok(Answer::Yes),
            n => Err(Error::new(format!("{n} rules could not be checked"))),
        }
    }
}

/// The result of a rule for which no time was left.
fn late(about: About) -> Outcome {
    let late = Fault::Impossible("no time was left (--timeout)".into());
    Outcome::new(about, Err(late), Vec::new(), 0.0)
}
