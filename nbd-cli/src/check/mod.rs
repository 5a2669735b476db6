//! `nbd check`: the rules of the protocol as scripts against any server.

mod replies;
mod report;
mod rule;
mod server;
mod talk;
mod wire;

use self::{
    report::Report,
    rule::{About, Checked, Fault, Outcome, Verdict},
    server::{Rule, Scratch, Server},
};
use crate::{
    connect::{Connect, Opened, seconds},
    outcome::{Answer, Error, Result},
    output,
    target::Target,
};
use clap::Args;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// Check how well a server keeps the protocol, rule by rule.
#[derive(Debug, Args)]
#[command(after_help = "\
A rule passes, fails if a MUST of the specification is broken, or is a warning if a SHOULD is not kept.
Exit codes: 0 if no rule failed, 1 if one did, 2 if the check could not be done.

Examples:
  nbd check                             a disk in this process, to try it
  nbd check nbd://localhost/disk
  nbd check --write --junit check.xml nbd://localhost/disk
  nbd check --rule S-159 --json nbd://localhost/disk
  nbd check --list-rules")]
pub(crate) struct Check {
    /// The URI of a server.
    target: Option<Target>,
    /// Send commands that write, too. They overwrite the first 256 KiB, which are written back.
    #[arg(long)]
    write: bool,
    /// Check this rule alone; can be repeated.
    #[arg(long = "rule", value_name = "ID")]
    rules: Vec<String>,
    /// Print the rules instead.
    #[arg(long)]
    list_rules: bool,
    /// Print a JSON document.
    #[arg(long)]
    json: bool,
    /// Write the results to a file as JUnit does, for continuous integration.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    timeout: Duration,
    /// Give up a rule after so many seconds of silence.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    rule_timeout: Duration,
    #[command(flatten)]
    connect: Connect,
}

impl Check {
    pub(crate) fn run(self, quiet: bool) -> Result {
        let rules = server::rules();
        if self.list_rules {
            let about: Vec<About> = rules.iter().map(|rule| rule.about).collect();
            report::list(&about, self.json)?;
            return Ok(Answer::Yes);
        }
        let rules = self.selected(rules)?;
        let Opened { uri, embedded } = Connect::open(self.target.as_ref())?;
        let server = Server::open(&self.connect, &uri, self.rule_timeout, self.write)?;
        let scratch = Scratch::keep(&server)?;
        let report = Report {
            target: uri.redacted().to_string(),
            outcomes: self.check(&server, &rules, quiet)?,
        };
        if let Some(scratch) = scratch {
            scratch.restore(&server)?;
        }
        drop(embedded);
        self.finish(&report)
    }

    /// The rules that were asked for.
    fn selected(&self, mut rules: Vec<Rule>) -> Result<Vec<Rule>> {
        for id in &self.rules {
            if !rules
                .iter()
                .any(|rule| rule.about.id.eq_ignore_ascii_case(id))
            {
                return Err(Error::new(format!(
                    "there is no rule {id:?}; nbd check --list-rules prints all"
                )));
            }
        }
        if !self.rules.is_empty() {
            rules.retain(|rule| {
                let is_this = |id: &String| rule.about.id.eq_ignore_ascii_case(id);
                self.rules.iter().any(is_this)
            });
        }
        Ok(rules)
    }

    /// Checks one rule after the other, as long as there is time.
    fn check(&self, server: &Server, rules: &[Rule], quiet: bool) -> Result<Vec<Outcome>> {
        let start = Instant::now();
        let mut outcomes = Vec::with_capacity(rules.len());
        for rule in rules {
            let begin = Instant::now();
            let checked: Checked = if start.elapsed() < self.timeout {
                (rule.check)(server)
            } else {
                Err(Fault::Impossible("no time was left (--timeout)".into()))
            };
            let seconds = begin.elapsed().as_secs_f64();
            let outcome = Outcome::new(rule.about, checked, server.record.take(), seconds);
            if !(self.json || quiet && outcome.transcript.is_empty()) {
                report::line(&outcome)?;
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
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
