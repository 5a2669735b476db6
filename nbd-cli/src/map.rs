//! `nbd map`: the ranges of a disk that hold data, and their status in other meta contexts.

use crate::{
    connect::{Connect, Opened},
    outcome::{Answer, Error, Result},
    output::{self, Lines},
    range::{Part, reach},
    runtime,
    session::Session,
    target::Target,
    text::printable,
};
use clap::{Args, ValueEnum};
use nbd_tokio::{
    Client, ContextName, StatusRun,
    meta::{AllocationDepth, DirtyBitmap},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    ops::Range,
};

/// Columns of the picture where the width of the terminal is not known.
const WIDTH: u64 = 72;

/// Show which ranges of a disk hold data.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nbd map
  nbd map --totals nbd://localhost/disk
  nbd map --offset 1G --length 64M disk.img
  nbd map --context base:allocation --context qemu:dirty-bitmap:b0 URI")]
pub(crate) struct Map {
    /// A URI, a file or a block device.
    target: Option<Target>,
    /// Meta context [default: base:allocation].
    ///
    /// Several are shown side by side.
    #[arg(long, value_name = "NAME", value_parser = context)]
    context: Vec<ContextName>,
    /// Show all meta contexts of the export.
    #[arg(long, conflicts_with = "context")]
    all_contexts: bool,
    /// Show one meta context after the other.
    #[arg(long)]
    separate: bool,
    /// Show totals of each status instead of extents.
    #[arg(long)]
    totals: bool,
    /// Print a JSON document.
    ///
    /// Its extents have the keys that nbdinfo has for them.
    #[arg(long)]
    json: bool,
    /// Draw a strip: auto, always or never.
    ///
    /// `auto` draws the disk as a strip on a terminal.
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true
    )]
    strip: Strip,
    #[command(flatten)]
    part: Part,
    #[command(flatten)]
    connect: Connect,
}

/// When to draw the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Strip {
    /// On a terminal.
    Auto,
    Always,
    Never,
}

pub(crate) fn context(name: &str) -> Result<ContextName, String> {
    let wrong = |why: String| format!("expected NAMESPACE:LEAF as in base:allocation: {why}");
    if !name.contains(':') {
        return Err(wrong("there is no colon".to_owned()));
    }
    ContextName::new(name).map_err(|error| wrong(error.to_string()))
}

impl Map {
    pub(crate) fn run(self) -> Result {
        let Opened { uri, embedded } = Connect::open(self.target.as_ref())?;
        runtime::block_on(async {
            let options = self.connect.options()?;
            let mut session = Session::agreed(&options, self.connect.policy(), &uri).await?;
            let contexts = if self.all_contexts {
                session.contexts(uri.export()).await?
            } else if self.context.is_empty() {
                vec![ContextName::base_allocation()]
            } else {
                self.context.clone()
            };
            if contexts.is_empty() {
                return Err(Error::new(format!(
                    "the export \"{}\" has no meta contexts",
                    uri.export()
                )));
            }
            session.select(uri.export(), &contexts).await?;
            let client = session.enter(uri.export()).await?;
            for name in &contexts {
                if !client.has_context(name) {
                    return Err(missing(&client, name));
                }
            }
            let range = self.part.range(client.export().size)?;
            let (range, all) = reach(client.export(), range);
            self.show(&client, contexts, range).await?;
            client.disconnect().await?;
            all
        })?;
        drop(embedded);
        Ok(Answer::Yes)
    }

    async fn show(
        &self,
        client: &Client,
        contexts: Vec<ContextName>,
        range: Range<u64>,
    ) -> Result<()> {
        let mut picture = Picture::new(self.strip, range.clone());
        let mut totals = vec![BTreeMap::new(); contexts.len()];
        // Extents that cannot be printed as they come.
        let mut collected = vec![Vec::new(); contexts.len()];
        let collects = !self.totals && (self.json || self.separate);
        let mut lines = Lines::new();
        let mut extents = client.extents(range.clone());
        while let Some(run) = extents.next().await {
            let run = run?;
            for (place, name) in contexts.iter().enumerate() {
                let status = run.status_of(name).unwrap_or_default();
                *totals[place].entry(status).or_insert(0) += run.len;
                if collects {
                    prolong(&mut collected[place], name, &run, status);
                }
            }
            picture.add(&run, &contexts);
            if !self.totals && !collects {
                let says: Vec<String> = contexts
                    .iter()
                    .map(|name| words(name, run.status_of(name).unwrap_or_default()))
                    .collect();
                let StatusRun { offset, len, .. } = run;
                lines.put(format_args!(
                    "{offset:>16} {len:>16}  {}\n",
                    says.join("  ")
                ))?;
            }
        }
        lines.finish()?;
        let shown = contexts.iter().zip(collected).zip(&totals);
        let contexts: Vec<Shown<'_>> = shown
            .map(|((name, extents), totals)| {
                Shown::new(name, extents, totals, range.end - range.start)
            })
            .collect();
        if self.json {
            return output::json(&Document {
                schema: output::SCHEMA,
                size: client.export().size,
                offset: range.start,
                length: range.end - range.start,
                contexts,
            });
        }
        let mut lines = Lines::new();
        for shown in &contexts {
            if self.separate {
                lines.put(format_args!("{}:\n", printable(&shown.name)))?;
            }
            for extent in &shown.extents {
                let Extent {
                    offset,
                    length,
                    description,
                    ..
                } = extent;
                lines.put(format_args!("{offset:>16} {length:>16}  {description}\n"))?;
            }
            if self.totals {
                for Total {
                    size,
                    percent,
                    description,
                    ..
                } in &shown.totals
                {
                    lines.put(format_args!("{size:>16} {percent:>5.1} %  {description}\n"))?;
                }
            }
        }
        if let Some(strip) = picture.draw() {
            lines.put(format_args!("{strip}\n"))?;
        }
        lines.finish()
    }
}

fn missing(client: &Client, name: &ContextName) -> Error {
    let why = if client.mode() == nbd_tokio::HeaderStyle::Simple {
        "the server has no structured replies, and so no meta contexts".to_owned()
    } else {
        "the export has no such meta context; \"nbd info\" lists those it has".to_owned()
    };
    Error::new(format!("cannot show {name}: {why}"))
}

/// The meaning of a status, in the words of nbdinfo.
pub(crate) fn words(context: &ContextName, status: u64) -> String {
    if *context == ContextName::base_allocation() {
        return match status & 3 {
            0 => "data",
            1 => "hole",
            2 => "zero",
            _ => "hole,zero",
        }
        .to_owned();
    }
    if context.namespace() == "qemu" && context.leaf().starts_with("dirty-bitmap:") {
        return DirtyBitmap::new(status).to_string();
    }
    if *context == ContextName::allocation_depth() {
        return match AllocationDepth::new(status).depth() {
            0 => "absent".to_owned(),
            1 => "local".to_owned(),
            depth => format!("backing depth {depth}"),
        };
    }
    status.to_string()
}

/// Adds an extent, or makes the last one longer if that says the same.
fn prolong(extents: &mut Vec<Extent>, context: &ContextName, run: &StatusRun, status: u64) {
    match extents.last_mut() {
        Some(last) if last.status == status => last.length += run.len,
        _ => extents.push(Extent {
            offset: run.offset,
            length: run.len,
            status,
            description: words(context, status),
        }),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    #[serde(rename = "export-size")]
    size: u64,
    offset: u64,
    length: u64,
    contexts: Vec<Shown<'a>>,
}

/// The extents and totals of one meta context.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extents: Vec<Extent>,
    totals: Vec<Total>,
}

impl<'a> Shown<'a> {
    fn new(
        name: &'a ContextName,
        extents: Vec<Extent>,
        totals: &BTreeMap<u64, u64>,
        all: u64,
    ) -> Self {
        let total = |(&status, &size): (&u64, &u64)| Total {
            size,
            percent: percent(size, all),
            status,
            description: words(name, status),
        };
        Self {
            name: name.as_str(),
            extents,
            totals: totals.iter().map(total).collect(),
        }
    }
}

/// The percentage, to a thousandth.
fn percent(part: u64, all: u64) -> f64 {
    let thousandths = (u128::from(part) * 100_000).checked_div(u128::from(all));
    f64::from(u32::try_from(thousandths.unwrap_or(0)).unwrap_or(u32::MAX)) / 1000.0
}

#[derive(Clone, Serialize)]
struct Extent {
    offset: u64,
    length: u64,
    #[serde(rename = "type")]
    status: u64,
    description: String,
}

#[derive(Serialize)]
struct Total {
    size: u64,
    percent: f64,
    #[serde(rename = "type")]
    status: u64,
    description: String,
}

/// The disk as a strip: full where the first context says something, empty where it does not.
struct Picture {
    range: Range<u64>,
    /// Number of bytes with a status other than 0 in each column; empty if there is no picture.
    columns: Vec<u64>,
}

impl Picture {
    fn new(strip: Strip, range: Range<u64>) -> Self {
        let wanted = match strip {
            Strip::Auto => io::stdout().is_terminal(),
            Strip::Always => true,
            Strip::Never => false,
        };
        let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| width.0.into());
        let columns = width.min(range.end - range.start);
        let columns = usize::try_from(columns).unwrap_or(0);
        Self {
            range,
            columns: vec![0; if wanted { columns } else { 0 }],
        }
    }

    /// Offset of a column's beginning.
    fn begins(&self, column: usize) -> u64 {
        let Range { start, end } = self.range;
        let (column, columns) = (column as u128, self.columns.len() as u128);
        let within = u128::from(end - start) * column / columns;
        start + u64::try_from(within).unwrap_or(end - start)
    }

    fn add(&mut self, run: &StatusRun, contexts: &[ContextName]) {
        let Some(name) = contexts.first() else { return };
        let status = run.status_of(name).unwrap_or_default();
        let has_something = if *name == ContextName::base_allocation() {
            status & 3 == 0
        } else {
            status != 0
        };
        if has_something && !self.columns.is_empty() {
            self.fill(run.offset, run.offset + run.len);
        }
    }

    /// Adds a range to the columns that it is in.
    fn fill(&mut self, start: u64, end: u64) {
        let Range {
            start: from,
            end: to,
        } = self.range;
        let before = u128::from(start - from) * self.columns.len() as u128 / u128::from(to - from);
        let mut column = usize::try_from(before).unwrap_or(usize::MAX);
        while column < self.columns.len() && self.begins(column) < end {
            let shared = end.min(self.begins(column + 1)) - start.max(self.begins(column));
            self.columns[column] += shared;
            column += 1;
        }
    }

    fn draw(&self) -> Option<String> {
        if self.columns.is_empty() {
            return None;
        }
        let cell = |(column, filled): (usize, &u64)| {
            let width = self.begins(column + 1) - self.begins(column);
            match filled.saturating_mul(4) / width.max(1) {
                0 if *filled == 0 => '·',
                0 => '░',
                1 => '▒',
                2 | 3 => '▓',
                _ => '█',
            }
        };
        Some(self.columns.iter().enumerate().map(cell).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_the_words_of_nbdinfo() {
        let base = ContextName::base_allocation();
        let said = [0, 1, 2, 3].map(|status| words(&base, status));
        assert_eq!(said, ["data", "hole", "zero", "hole,zero"]);
        let depth = ContextName::allocation_depth();
        assert_eq!(
            [0, 1, 3].map(|status| words(&depth, status)),
            ["absent", "local", "backing depth 3"]
        );
        assert_eq!(words(&ContextName::dirty_bitmap("b0").unwrap(), 1), "dirty");
        assert_eq!(words(&ContextName::new("x-other:thing").unwrap(), 7), "7");
    }

    #[test]
    fn a_picture_has_each_byte_in_its_column() {
        let mut picture = Picture {
            range: 100..111,
            columns: vec![0; 4],
        };
        let edges: Vec<u64> = (0..=4).map(|column| picture.begins(column)).collect();
        assert_eq!(edges, [100, 102, 105, 108, 111]);
        for (start, end) in [(100, 101), (101, 106), (110, 111)] {
            picture.fill(start, end);
        }
        assert_eq!(picture.columns, [2, 3, 1, 1]);
        assert_eq!(picture.draw().unwrap(), "██▒▒");
    }

    #[test]
    fn percentages_of_anything_are_exact() {
        assert!((percent(1, 3) - 33.333).abs() < 1e-9);
        assert!((percent(u64::MAX, u64::MAX) - 100.0).abs() < 1e-9);
        assert!(percent(0, 0).abs() < 1e-9);
    }
}
