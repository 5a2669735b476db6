//! Tables of features and peers in docs/interoperability.md, compared with the results of the tests.

use std::{env, fmt::Write as _, fs, path::Path};

use crate::{Peer, require};

/// The result of a feature with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Support {
    /// It was used, and the outcome was right.
    Yes,
    /// The peer does not have it, for this reason.
    No(&'static str),
}

/// A table with a column for each peer and a row for each feature.
#[derive(Debug)]
pub struct Table {
    head: String,
    rows: String,
}

impl Table {
    /// Begins a table about these programs in the versions that are installed, which are called by
    /// the names given; `None` if one of them is missing, see [`require`].
    ///
    /// # Panics
    ///
    /// When a program does not print its version.
    pub fn new<const N: usize>(columns: [(&str, Peer); N]) -> Option<Self> {
        let mut head = "| ".to_owned();
        for (name, peer) in columns {
            let version = require(peer)?.version_number();
            append(&mut head, format_args!("| {name} {version} "));
        }
        head.push_str("|\n|---");
        head.push_str(&"|---".repeat(N));
        head.push_str("|\n");
        Some(Self {
            head,
            rows: String::new(),
        })
    }

    /// Adds the results of a feature, for each column.
    pub fn row(&mut self, feature: &str, found: impl IntoIterator<Item = Support>) {
        append(&mut self.rows, format_args!("| {feature} "));
        for support in found {
            match support {
                Support::Yes => self.rows.push_str("| yes "),
                Support::No(why) => append(&mut self.rows, format_args!("| no: {why} ")),
            }
        }
        self.rows.push_str("|\n");
    }

    /// Compares this with the table in docs/interoperability.md between the marks of that name. With
    /// `UPDATE_TABLES=1` in the environment it is written there instead.
    ///
    /// # Panics
    ///
    /// When they differ, although the table there is about the same versions; when there are no
    /// such marks; or when the paragraph before them does not say that the table is about `driver`.
    pub fn compare(&self, name: &str, driver: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/interoperability.md");
        let page = fs::read_to_string(&path).expect("the file can be read");
        let [begin, end] = ["begin", "end"].map(|what| format!("<!-- interop:{name}:{what} -->\n"));
        let (before, rest) = page.split_once(&begin).expect("the file has this table");
        let paragraph = before.trim_end().rsplit("\n\n").next();
        let driver = format!("`{driver}`");
        assert!(
            paragraph.is_some_and(|paragraph| paragraph.contains(&driver)),
            "docs/interoperability.md should say that the table is about {driver} too: {paragraph:?}"
        );
        let (table, after) = rest.split_once(&end).expect("the table has an end");
        let Self { head, rows } = self;
        let found = format!("{head}{rows}");
        if env::var_os("UPDATE_TABLES").is_some_and(|update| update == "1") {
            let updated = format!("{before}{begin}{found}{end}{after}");
            fs::write(&path, updated).expect("the file can be written");
            return;
        }
        // Other versions may do more or less, and the table does not claim to know them.
        if table.starts_with(head) || table.is_empty() {
            assert!(
                table == found,
                "docs/interoperability.md should have this table, which UPDATE_TABLES=1 would write:\n{found}"
            );
        } else {
            eprintln!(
                "the table in docs/interoperability.md is about other versions; this one is\n{found}"
            );
        }
    }
}

fn append(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes everything");
}
