//! The results of all rules: as text, as JSON, and as JUnit's XML.

use super::rule::{About, Message, Outcome, Verdict};
use crate::{
    outcome::{Context, Result},
    output::{self, SCHEMA},
    text::printable,
};
use clap::builder::styling::AnsiColor;
use serde::Serialize;
use std::{fmt::Write, fs, path::Path};

/// Limit of messages that are shown, the last ones. Documents have more.
const SHOWN: usize = 6;

/// A rule as a document has it.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    id: &'a str,
    level: &'a str,
    what: &'a str,
    section: &'a str,
    link: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Message]>::is_empty")]
    transcript: &'a [Message],
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

impl<'a> Entry<'a> {
    fn new(about: &'a About) -> Self {
        Self {
            id: about.id,
            level: about.level.name(),
            what: about.what,
            section: about.place.heading(),
            link: about.place.link(),
            verdict: None,
            reason: None,
            transcript: &[],
            seconds: None,
        }
    }
}

#[derive(Debug, Serialize)]
struct Totals {
    pass: usize,
    warning: usize,
    fail: usize,
    not_applicable: usize,
    not_done: usize,
}

#[derive(Debug, Serialize)]
struct Document<'a> {
    schema: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    totals: Option<Totals>,
    rules: Vec<Entry<'a>>,
}

/// The results of all rules.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) target: String,
    pub(super) outcomes: Vec<Outcome>,
}

/// Prints the rules themselves.
pub(super) fn list(rules: &[About], as_json: bool) -> Result<()> {
    if as_json {
        return output::json(&Document {
            schema: SCHEMA,
            target: None,
            totals: None,
            rules: rules.iter().map(Entry::new).collect(),
        });
    }
    let mut text = String::new();
    for about in rules {
        // A string takes everything.
        let _ = writeln!(
            text,
            "{}  {:<6}  {}",
            about.id,
            about.level.name(),
            about.what
        );
    }
    output::print(&text)
}

impl Report {
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.outcomes
            .iter()
            .filter(|one| one.verdict == verdict)
            .count()
    }

    pub(super) fn json(&self) -> Result<()> {
        let rules = self.outcomes.iter().map(|outcome| Entry {
            verdict: Some(outcome.verdict),
            reason: outcome.reason.as_deref(),
            transcript: &outcome.transcript,
            seconds: Some(outcome.seconds),
            ..Entry::new(&outcome.about)
        });
        output::json(&Document {
            schema: SCHEMA,
            target: Some(&self.target),
            totals: Some(Totals {
                pass: self.count(Verdict::Pass),
                warning: self.count(Verdict::Warning),
                fail: self.count(Verdict::Fail),
                not_applicable: self.count(Verdict::NotApplicable),
                not_done: self.count(Verdict::NotDone),
            }),
            rules: rules.collect(),
        })
    }

    /// The totals in one line.
    pub(super) fn totals(&self) -> String {
        let mut text = format!(
            "{} rules: {} passed, {} warnings, {} failed, {} not applicable",
            self.outcomes.len(),
            self.count(Verdict::Pass),
            self.count(Verdict::Warning),
            self.count(Verdict::Fail),
            self.count(Verdict::NotApplicable),
        );
        let not_done = self.count(Verdict::NotDone);
        if not_done > 0 {
            let _ = write!(text, ", {not_done} not done");
        }
        text
    }

    /// Writes a report for continuous integration.
    pub(super) fn junit(&self, path: &Path) -> Result<()> {
        let mut text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <testsuite name=\"nbd check {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n",
            xml(&self.target),
            self.outcomes.len(),
            self.count(Verdict::Fail),
            self.count(Verdict::NotDone),
            self.count(Verdict::NotApplicable),
        );
        for outcome in &self.outcomes {
            let About { id, what, .. } = outcome.about;
            // A string takes everything.
            let _ = write!(
                text,
                "  <testcase classname=\"{id}\" name=\"{}\" time=\"{:.3}\">",
                xml(what),
                outcome.seconds
            );
            let reason = xml(outcome.reason.as_deref().unwrap_or_default());
            let shown = xml(&shown(outcome));
            let _ = match outcome.verdict {
                Verdict::Pass => Ok(()),
                Verdict::Warning => write!(text, "<system-out>{reason}\n{shown}</system-out>"),
                Verdict::Fail => write!(text, "<failure message=\"{reason}\">{shown}</failure>"),
                Verdict::NotApplicable => write!(text, "<skipped message=\"{reason}\"/>"),
                Verdict::NotDone => write!(text, "<error message=\"{reason}\"/>"),
            };
            text.push_str("</testcase>\n");
        }
        text.push_str("</testsuite>\n");
        fs::write(path, text).step(|| format!("cannot write {}", path.display()))
    }
}

/// The section, and the messages.
fn shown(outcome: &Outcome) -> String {
    let About { place, .. } = outcome.about;
    let mut text = format!("{}: {}\n", place.heading(), place.link());
    let messages = &outcome.transcript;
    let several = messages.iter().any(|message| message.connection > 1);
    let skipped = messages.len().saturating_sub(SHOWN);
    if skipped > 0 {
        text.push_str("..\n");
    }
    for message in messages.iter().skip(skipped) {
        let arrow = if message.from == "client" { '>' } else { '<' };
        let number = if several {
            format!("{} ", message.connection)
        } else {
            String::new()
        };
        // A string takes everything.
        let _ = writeln!(text, "{number}{arrow} {}", message.meaning);
        if !message.bytes.is_empty() {
            let _ = writeln!(text, "{number}    {}", message.bytes);
        }
    }
    text
}

/// Prints a rule when it is done: a line, and for a fault its evidence.
pub(super) fn line(outcome: &Outcome) -> Result<()> {
    let colour = match outcome.verdict {
        Verdict::Pass => AnsiColor::Green,
        Verdict::Warning | Verdict::NotDone => AnsiColor::Yellow,
        Verdict::Fail => AnsiColor::Red,
        Verdict::NotApplicable => AnsiColor::BrightBlack,
    };
    let style = colour.on_default();
    let About {
        id, what, level, ..
    } = outcome.about;
    let word = outcome.verdict.word();
    let mut text = format!("{style}{word:<4}{style:#}  {id}  {what}");
    let shows = !outcome.transcript.is_empty();
    if let Some(reason) = &outcome.reason {
        let reason = printable(reason);
        if shows {
            let _ = write!(text, " ({})\n      {reason}", level.name());
        } else {
            let _ = write!(text, ": {reason}");
        }
    }
    text.push('\n');
    if shows {
        for line in shown(outcome).lines() {
            let _ = writeln!(text, "      {}", printable(&line));
        }
    }
    output::print(&text)
}

/// Text for XML. Characters that no XML may have are escaped as for a terminal.
fn xml(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\n' => safe.push('\n'),
            c => safe.push_str(&printable(&c)),
        }
    }
    safe
}
