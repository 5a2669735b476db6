//! The output of a tour, the same for every runtime.

use crate::common::Outcome;
use nbd_io::client::StatusRun;
use nbd_proto::{
    BlockSizes, ContextName, ExportInfo, ExportName, HeaderStyle,
    client::{Context, ListEntry, MetaContextEntry},
    meta::{Allocation, AllocationDepth, DirtyBitmap},
};
use std::fmt::Display;

/// Runs that are shown before the rest is only counted.
const SHOWN: usize = 12;

/// Which exports the server lists.
pub(crate) fn list(listed: Result<Vec<ListEntry>, impl Display>) {
    match listed {
        Ok(entries) => {
            println!("Exports:");
            for ListEntry { name, description } in entries {
                match name {
                    Ok(name) => println!("  \"{name}\"  {description}"),
                    Err(error) => println!("  a name that cannot be used: {error}"),
                }
            }
        }
        Err(error) => println!("The server does not list its exports: {error}"),
    }
}

/// The description of an export before it is entered.
pub(crate) fn outside(name: &ExportName, info: &ExportInfo) {
    println!("\"{name}\" has {} before it is entered.", size(info.size));
}

/// A server that can only be asked for an export by name.
pub(crate) fn by_name() {
    println!("The server speaks newstyle without options: nothing can be listed.\n");
}

/// A server that has entered its export unasked.
pub(crate) fn oldstyle(info: &ExportInfo) {
    println!("The server speaks oldstyle: {}.\n", size(info.size));
}

/// Those meta contexts that can be selected as they are listed.
pub(crate) fn contexts(listed: Vec<MetaContextEntry>) -> Vec<ContextName> {
    let names = listed.into_iter().filter_map(|entry| entry.name.ok());
    // A name that ends in a colon stands for many.
    names.filter(|name| !name.leaf().is_empty()).collect()
}

/// An export that was entered.
pub(crate) fn export(
    info: &ExportInfo,
    blocks: BlockSizes,
    mode: HeaderStyle,
    encrypted: bool,
    contexts: &[Context],
) {
    println!("Export:");
    if let Some(name) = &info.name {
        println!("  name         \"{name}\"");
    }
    if let Some(description) = &info.description {
        println!("  description  {description}");
    }
    println!("  size         {}", size(info.size));
    let unreachable = info.size - info.reachable();
    if unreachable > 0 {
        println!("               of which the last {unreachable} bytes are out of reach");
    }
    println!("  flags        {:?}", info.flags);
    println!(
        "  blocks       {} minimum, {} preferred, {} at most{}",
        blocks.minimum(),
        blocks.preferred(),
        blocks.maximum(),
        if info.block_sizes.is_some() {
            ""
        } else {
            " (not announced: the usual sizes)"
        },
    );
    let encryption = if encrypted {
        "encrypted"
    } else {
        "in the clear"
    };
    println!("  connection   {mode:?} replies, {encryption}");
    for context in contexts {
        if let Some(name) = &context.name {
            println!("  context      {name}");
        }
    }
    println!();
}

/// A table of the block status in each meta context.
pub(crate) struct Map {
    names: Vec<ContextName>,
    count: usize,
    covered: u64,
}

impl Map {
    /// Starts a table, if there is any meta context.
    pub(crate) fn start(contexts: &[Context]) -> Option<Self> {
        let names: Vec<_> = contexts
            .iter()
            .filter_map(|context| context.name.clone())
            .collect();
        if names.is_empty() {
            println!("The server has no meta context for allocation.\n");
            return None;
        }
        println!("{:>16} {:>16}  status", "offset", "length");
        Some(Self {
            names,
            count: 0,
            covered: 0,
        })
    }

    pub(crate) fn row(&mut self, run: &StatusRun) {
        self.count += 1;
        self.covered += run.len;
        if self.count > SHOWN {
            return;
        }
        let said = self.names.iter().zip(&run.status);
        let status: Vec<_> = said.map(|(name, status)| say(name, *status)).collect();
        println!("{:>16} {:>16}  {}", run.offset, run.len, status.join("  "));
    }

    pub(crate) fn end(self) {
        let runs = if self.count == 1 {
            "run covers"
        } else {
            "runs cover"
        };
        println!("{} {runs} {}.\n", self.count, size(self.covered));
    }
}

fn say(context: &ContextName, status: u64) -> String {
    match context.as_str() {
        "base:allocation" => Allocation::new(status).to_string(),
        "qemu:allocation-depth" => AllocationDepth::new(status).to_string(),
        name if name.starts_with("qemu:dirty-bitmap:") => DirtyBitmap::new(status).to_string(),
        _ => format!("{status:#x}"),
    }
}

/// Data of which no two parts are alike.
pub(crate) fn sample(len: u64) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect()
}

/// Compares the bytes read at `offset` with the expected ones.
pub(crate) fn compare(offset: u64, found: &[u8], expected: &[u8]) -> Outcome<()> {
    let mut pairs = found.iter().zip(expected);
    match pairs.position(|(found, expected)| found != expected) {
        None if found.len() == expected.len() => Ok(()),
        None => Err("a read has another length than was asked for".into()),
        Some(at) => Err(format!("byte {} reads back wrong", offset + at as u64).into()),
    }
}

/// The heading of the table of how fast it was.
pub(crate) fn headings() {
    println!(
        "{:<28} {:>14} {:>14} {:>12}",
        "", "4 KiB, 1 at a", "4 KiB, 32 at", "256 KiB, 8 at"
    );
    println!(
        "{:<28} {:>14} {:>14} {:>12}",
        "", "time (IOPS)", "once (IOPS)", "once (MB/s)"
    );
}

/// A row of that table, in requests per second.
pub(crate) fn speed(what: &str, one: f64, many: f64, large: f64) {
    let megabytes = large * f64::from(256 << 10) / 1e6;
    println!("{what:<28} {one:>14.0} {many:>14.0} {megabytes:>12.0}");
}

pub(crate) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units
        .iter()
        .find(|(shift, _)| bytes >> shift > 0 && bytes.trailing_zeros() >= *shift)
    {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}
