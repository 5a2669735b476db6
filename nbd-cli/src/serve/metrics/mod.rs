//! Metrics of a server, in Prometheus' text format.

mod export;
mod http;
mod object;

pub(super) use http::Endpoint;

use export::Counters;
use nbd_blocking::{
    exports::ExportName,
    server::{CloseReason, Event, Outcome},
};
use nbd_object::Disk;
use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// Exports that are counted apart. Those that clients use beyond that are counted together, so that a
/// directory of any size makes no more than so many series.
const EXPORTS: usize = 1_000;

/// Their name.
const OTHERS: &str = "other exports";

/// Ends of connections.
const ENDS: [&str; 11] = [
    "disconnected",
    "aborted",
    "left",
    "stopped",
    "idle",
    "displaced",
    "truncated",
    "panicked",
    "negotiation",
    "protocol",
    "io",
];

/// The numbers of a server.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Name of the default export, under which it is counted.
    default: Option<ExportName>,
    opened: AtomicU64,
    refused: AtomicU64,
    not_accepted: AtomicU64,
    closed: [AtomicU64; ENDS.len()],
    exports: RwLock<BTreeMap<ExportName, Arc<Counters>>>,
    others: Arc<Counters>,
    /// Counters of the export that each connection uses.
    used: Mutex<HashMap<u64, Arc<Counters>>>,
    /// Disks on object storage, with their names as a label has them.
    objects: Vec<(String, Disk)>,
}

impl Metrics {
    pub(super) fn new(default: Option<ExportName>) -> Self {
        Self {
            default,
            ..Self::default()
        }
    }

    /// Counts also the requests of disks to their stores.
    pub(super) fn with_objects<'a>(
        mut self,
        disks: impl Iterator<Item = (&'a ExportName, &'a Disk)>,
    ) -> Self {
        let disks = disks.map(|(name, disk)| (escaped(name.as_str()), disk.clone()));
        self.objects = disks.collect();
        self
    }

    /// Something has happened to a connection.
    pub(super) fn note(&self, event: &Event<'_>) {
        match event {
            Event::Connected { .. } => count(&self.opened),
            Event::Entered {
                connection, export, ..
            } => {
                let counters = self.counters(export);
                counters.connections.fetch_add(1, Ordering::Relaxed);
                self.used().insert(*connection, counters);
            }
            Event::Closed { connection, ending } => {
                if let Some(closed) = self.closed.get(end(ending)) {
                    count(closed);
                }
                if let Some(counters) = self.used().remove(connection) {
                    counters.connections.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Event::Refused { .. } => count(&self.refused),
            Event::AcceptFailed { .. } => count(&self.not_accepted),
            _ => {}
        }
    }

    /// A request was carried out.
    pub(super) fn count(&self, outcome: &Outcome<'_>) {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let counters = exports.get(self.canonical(outcome.export));
        counters.unwrap_or(&self.others).count(outcome);
    }

    fn canonical<'a>(&'a self, name: &'a ExportName) -> &'a ExportName {
        match &self.default {
            Some(default) if name.is_default() => default,
            _ => name,
        }
    }

    /// Those of an export that a client has entered.
    fn counters(&self, name: &ExportName) -> Arc<Counters> {
        let name = self.canonical(name);
        let mut exports = self.exports.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(counters) = exports.get(name) {
            return Arc::clone(counters);
        }
        if exports.len() == EXPORTS {
            return Arc::clone(&self.others);
        }
        let counters = Arc::<Counters>::default();
        exports.insert(name.clone(), Arc::clone(&counters));
        counters
    }

    fn used(&self) -> MutexGuard<'_, HashMap<u64, Arc<Counters>>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All numbers, to be read by Prometheus.
    fn text(&self) -> String {
        let mut text = String::new();
        // A string takes everything.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        head(out, "nbd_build_info", "gauge", "The version of the server.")?;
        writeln!(out, "nbd_build_info{{version=\"{version}\"}} 1")?;
        let closed: Vec<_> = self.closed.iter().map(get).collect();
        // Read after those that are closed, so that there are never less than none.
        let opened = get(&self.opened);
        let open = opened.saturating_sub(closed.iter().sum());
        head(
            out,
            "nbd_connections",
            "gauge",
            "Connections that there are.",
        )?;
        writeln!(out, "nbd_connections {open}")?;
        let name = "nbd_connections_accepted_total";
        head(out, name, "counter", "Connections that were taken.")?;
        writeln!(out, "{name} {opened}")?;
        let name = "nbd_connections_closed_total";
        head(
            out,
            name,
            "counter",
            "Connections that have ended, and why.",
        )?;
        for (reason, closed) in ENDS.iter().zip(&closed) {
            writeln!(out, "{name}{{reason=\"{reason}\"}} {closed}")?;
        }
        let name = "nbd_connections_refused_total";
        head(
            out,
            name,
            "counter",
            "Connections for which there was no room.",
        )?;
        writeln!(out, "{name} {}", get(&self.refused))?;
        let name = "nbd_accept_errors_total";
        head(out, name, "counter", "Connections that could not be taken.")?;
        writeln!(out, "{name} {}", get(&self.not_accepted))?;
        export::write(&self.exports(), out)?;
        object::write(&self.objects, out)
    }

    /// The exports that were used, each with its name as a label has it.
    fn exports(&self) -> Vec<(String, Arc<Counters>)> {
        let exports = self.exports.read().unwrap_or_else(PoisonError::into_inner);
        let named = exports.iter();
        let mut all: Vec<_> = named
            .map(|(name, counters)| (escaped(name.as_str()), Arc::clone(counters)))
            .collect();
        if exports.len() == EXPORTS {
            all.push((OTHERS.to_owned(), Arc::clone(&self.others)));
        }
        all
    }
}

/// The index in [`ENDS`].
fn end(reason: &CloseReason) -> usize {
    match reason {
        CloseReason::Disconnected => 0,
        CloseReason::Aborted => 1,
        CloseReason::Left => 2,
        CloseReason::Stopped => 3,
        CloseReason::Idle => 4,
        CloseReason::Displaced => 5,
        CloseReason::Truncated => 6,
        CloseReason::Panicked => 7,
        CloseReason::Negotiation(_) => 8,
        CloseReason::Protocol(_) => 9,
        // And reasons of later versions of the library.
        _ => 10,
    }
}

/// The lines before the numbers of a metric.
fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

/// A text as the value of a label.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('\n', "\\n")
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_blocking::{HeaderStyle, server::Peer};

    fn name(name: &str) -> ExportName {
        ExportName::new(name).unwrap()
    }

    fn enter(metrics: &Metrics, connection: u64, export: &str) {
        let peer = &Peer::Unix;
        metrics.note(&Event::Connected { connection, peer });
        metrics.note(&Event::Entered {
            connection,
            export: &name(export),
            mode: HeaderStyle::Simple,
            encrypted: false,
        });
    }

    #[test]
    fn connections_are_counted_with_their_exports_and_ends() {
        let metrics = Metrics::new(Some(name("a")));
        enter(&metrics, 1, "");
        enter(&metrics, 2, "a");
        enter(&metrics, 3, "b\"\\\n");
        metrics.note(&Event::Closed {
            connection: 1,
            ending: &CloseReason::Idle,
        });
        metrics.note(&Event::Refused { peer: &Peer::Unix });
        let text = metrics.text();
        for line in [
            "nbd_connections 2",
            "nbd_connections_accepted_total 3",
            "nbd_connections_closed_total{reason=\"idle\"} 1",
            "nbd_connections_closed_total{reason=\"io\"} 0",
            "nbd_connections_refused_total 1",
            "nbd_export_connections{export=\"a\"} 1",
            "nbd_export_connections{export=\"b\\\"\\\\\\n\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn any_number_of_exports_makes_only_so_many_series() {
        let metrics = Metrics::new(None);
        for number in 0..EXPORTS as u64 + 10 {
            enter(&metrics, number, &number.to_string());
        }
        let text = metrics.text();
        let series = |of: &str| text.lines().filter(|line| line.starts_with(of)).count();
        assert_eq!(series("nbd_export_connections{"), EXPORTS + 1);
        assert!(text.contains("nbd_export_connections{export=\"other exports\"} 10\n"));
    }
}
