//! Compares the rules of `docs/conformance.md` with the tests of the workspace.
//!
//! A test proves a rule by naming its id in a comment. Every rule must be named by some test, or
//! else be listed in the document with the reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const RULES: &str = "\n## Rules\n";
const UNPROVEN: &str = "\n## Not proven in this repository's core tests\n";

/// Above this many, a list in the report has ids without the texts of rules.
const EXPLAINED: usize = 30;

/// The families of rules, in the order of the document.
const FAMILIES: [char; 5] = ['C', 'S', 'U', 'B', 'H'];

#[test]
fn every_rule_is_proven_or_accounted_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let document = Document::parse(&document);
    let mut mentions = Vec::new();
    for path in sources(&root) {
        let source = fs::read_to_string(root.join(&path)).unwrap();
        mentions.extend(scan(&path, &source));
    }

    let report = Report::new(&document, &mentions);
    // Not `eprintln!`: the numbers are worth seeing even when all is well.
    drop(write!(io::stderr(), "{}", report.summary(&document)));
    assert!(report.problems.is_empty(), "\n{}", report.problems);
}

/// The contents of `docs/conformance.md`.
#[derive(Debug, Default)]
struct Document {
    /// Every rule and its text.
    rules: BTreeMap<String, String>,
    /// The rules that no test proves, each with the reason.
    unproven: BTreeMap<String, String>,
    /// Mistakes in the document itself.
    problems: String,
}

impl Document {
    fn parse(text: &str) -> Self {
        let mut document = Self::default();
        let (_, text) = text
            .split_once(RULES)
            .expect("the document has a section of rules");
        let (rules, unproven) = text
            .split_once(UNPROVEN)
            .expect("the document has a second part");
        for line in rules.lines() {
            let first = line
                .trim_start_matches('|')
                .split('|')
                .next()
                .unwrap_or_default()
                .trim();
            if !line.starts_with('|') || !is_id(first) {
                continue;
            }
            let Some([id, _level, what]) = row(line) else {
                document.problem(format_args!(
                    "docs/conformance.md: the row of {first} does not have three cells"
                ));
                continue;
            };
            if document
                .rules
                .insert(id.to_owned(), what.to_owned())
                .is_some()
            {
                document.problem(format_args!("docs/conformance.md has two rules {id}"));
            }
        }
        for [id, reason] in unproven.lines().filter_map(row::<2>) {
            for Id { id, in_range } in ids(id) {
                if in_range {
                    document.problem(format_args!("docs/conformance.md: {id} is part of a range"));
                }
                if reason.is_empty() {
                    document.problem(format_args!("docs/conformance.md gives no reason for {id}"));
                }
                if document
                    .unproven
                    .insert(id.clone(), reason.to_owned())
                    .is_some()
                {
                    document.problem(format_args!(
                        "docs/conformance.md gives two reasons for {id}"
                    ));
                }
            }
        }
        document
    }

    fn problem(&mut self, what: std::fmt::Arguments<'_>) {
        writeln!(self.problems, "{what}").expect("a string can always be written to");
    }
}

/// The cells of a line of a table.
fn row<const N: usize>(line: &str) -> Option<[&str; N]> {
    let cells = line.strip_prefix('|')?.strip_suffix('|')?;
    let cells: Vec<_> = cells.split('|').map(str::trim).collect();
    cells.try_into().ok()
}

/// A rule's id in a text.
#[derive(Debug, PartialEq, Eq)]
struct Id {
    id: String,
    /// Whether it begins or ends a range, whose members would be named nowhere.
    in_range: bool,
}

/// The ids in a text, such as `C-053`.
fn ids(text: &str) -> Vec<Id> {
    const LEN: usize = "C-053".len();
    let mut found = Vec::new();
    let mut at_range = false;
    let mut previous = ' ';
    for (at, letter) in text.char_indices() {
        let word = text.get(at..at + LEN).filter(|word| is_id(word));
        let after = text.get(at + LEN..).unwrap_or_default();
        let alone = !previous.is_alphanumeric() && !after.starts_with(char::is_alphanumeric);
        if let Some(word) = word.filter(|_| alone) {
            let begins = begins_range(after);
            found.push(Id {
                id: word.to_owned(),
                in_range: begins || at_range,
            });
            at_range = begins;
        }
        previous = letter;
    }
    found
}

fn is_id(word: &str) -> bool {
    let number = word
        .strip_prefix(FAMILIES)
        .and_then(|word| word.strip_prefix('-'));
    number.is_some_and(|number| number.len() == 3 && number.bytes().all(|n| n.is_ascii_digit()))
}

/// Whether the text behind an id begins with `..C-055`, `to C-055` or the like.
fn begins_range(text: &str) -> bool {
    let text = text.trim_start();
    let end = ["...", "..=", "..", "…", "–", "-", "to ", "through "]
        .iter()
        .find_map(|sign| text.strip_prefix(sign));
    end.and_then(|end| end.trim_start().get(.."C-055".len()))
        .is_some_and(is_id)
}

/// A rule's id in a comment of a source file.
#[derive(Debug, PartialEq, Eq)]
struct Mention {
    id: Id,
    at: String,
    /// Whether the comment belongs to a test.
    proves: bool,
}

/// The ids in the comments of a source file, given its path inside the workspace.
fn scan(path: &Path, source: &str) -> Vec<Mention> {
    let mut in_tests = is_test(path);
    let mut after_cfg = false;
    let mut doctest = false;
    let mut fenced = false;
    let mut mentions = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test") {
            after_cfg = true;
        } else if after_cfg && !line.starts_with("#[") {
            // House style puts the tests last, so they end with the file.
            in_tests |= line.ends_with('{') && line.contains("mod ");
            after_cfg = false;
        }

        let docs = line
            .strip_prefix("///")
            .or_else(|| line.strip_prefix("//!"))
            .map(str::trim);
        if let Some(language) = docs.and_then(|docs| docs.strip_prefix("```")) {
            fenced = !fenced;
            doctest = fenced && !language.contains("text") && !language.contains("ignore");
            continue;
        }
        let (comment, proves) = match docs {
            Some(code) if doctest => (comment(code), true),
            Some(docs) => (docs, in_tests),
            None => {
                (fenced, doctest) = (false, false);
                (comment(line), in_tests)
            }
        };
        mentions.extend(ids(comment).into_iter().map(|id| Mention {
            id,
            at: format!("{}:{}", path.display(), number + 1),
            proves,
        }));
    }
    mentions
}

/// The text behind `//`, save in `https://`.
fn comment(code: &str) -> &str {
    let begins = |(at, _): &(usize, &str)| !code[..*at].ends_with(':');
    code.match_indices("//")
        .find(begins)
        .map_or("", |(at, _)| &code[at..])
}

/// Whether all of a file is tests.
fn is_test(path: &Path) -> bool {
    path.starts_with("interop")
        || path.starts_with("fuzz")
        || path.components().any(|part| part.as_os_str() == "tests")
        || path.file_name().is_some_and(|name| name == "tests.rs")
}

/// The Rust files of the workspace, as paths inside it.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("a directory of ours can be read") {
            let entry = entry.expect("a directory of ours can be read");
            let name = entry.file_name();
            let path = dir.join(&name);
            let hidden = name.to_string_lossy().starts_with('.');
            if entry.path().is_dir() {
                if !hidden && name != "target" && name != "corpus" {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs")
                // This file's examples are no proofs.
                && !path.ends_with("interop/tests/conformance.rs")
            {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The result of the comparison.
#[derive(Debug)]
struct Report<'a> {
    proven: BTreeSet<&'a str>,
    problems: String,
}

impl<'a> Report<'a> {
    fn new(document: &Document, mentions: &'a [Mention]) -> Self {
        let mut problems = document.problems.clone();
        let mut proven = BTreeSet::new();
        let mut problem = |what: String| {
            problems.push_str(&what);
            problems.push('\n');
        };
        for Mention {
            id: Id { id, in_range },
            at,
            proves,
        } in mentions
        {
            if !document.rules.contains_key(id) {
                problem(format!("{at}: there is no rule {id}"));
            } else if *proves {
                proven.insert(id.as_str());
                if *in_range {
                    problem(format!("{at}: {id} is part of a range; name each rule"));
                }
                if document.unproven.contains_key(id) {
                    problem(format!(
                        "{at}: {id} is listed as not proven, but named here"
                    ));
                }
            }
        }
        for id in document
            .unproven
            .keys()
            .filter(|id| !document.rules.contains_key(*id))
        {
            problem(format!(
                "docs/conformance.md lists {id} as not proven, which is no rule"
            ));
        }

        let listed = |id: &str| proven.contains(id) || document.unproven.contains_key(id);
        let nowhere: Vec<_> = document
            .rules
            .iter()
            .filter(|(id, _)| !listed(id))
            .collect();
        if !nowhere.is_empty() {
            problem(format!("rules accounted for nowhere: {}", nowhere.len()));
        }
        if nowhere.len() > EXPLAINED {
            for ids in nowhere.chunks(12) {
                let ids: Vec<_> = ids.iter().map(|(id, _)| id.as_str()).collect();
                problem(format!("  {}", ids.join(" ")));
            }
        } else {
            nowhere
                .iter()
                .for_each(|(id, what)| problem(format!("  {id} {what}")));
        }
        Self { proven, problems }
    }

    fn summary(&self, document: &Document) -> String {
        let mut table = "rules         all  proven  listed\n".to_owned();
        for family in FAMILIES {
            let of_family = |id: &&str| id.starts_with(family);
            writeln!(
                table,
                "{family}          {:>6} {:>7} {:>7}",
                document
                    .rules
                    .keys()
                    .map(String::as_str)
                    .filter(of_family)
                    .count(),
                self.proven.iter().copied().filter(of_family).count(),
                document
                    .unproven
                    .keys()
                    .map(String::as_str)
                    .filter(of_family)
                    .count(),
            )
            .expect("a string can always be written to");
        }
        table
    }
}

/// The rules that a source file proves.
fn proofs(path: &str, source: &str) -> Vec<String> {
    let mentions = scan(Path::new(path), source).into_iter();
    mentions
        .filter(|mention| mention.proves)
        .map(|mention| mention.id.id)
        .collect()
}

#[test]
fn an_id_stands_alone() {
    let found = ids("C-001, S-235 (H-001) AES-256 SHA-256 C-0011 xB-001 A-001 C-00");
    let found: Vec<_> = found
        .iter()
        .map(|id| (id.id.as_str(), id.in_range))
        .collect();
    assert_eq!(
        found,
        [("C-001", false), ("S-235", false), ("H-001", false)]
    );
}

#[test]
fn both_ends_of_a_range_are_noticed() {
    for range in [
        "C-001..C-003",
        "C-001 – C-003",
        "C-001-C-003",
        "C-001 to C-003",
    ] {
        let found = ids(range);
        assert!(
            found.len() == 2 && found.iter().all(|id| id.in_range),
            "{range}: {found:?}"
        );
    }
    assert!(
        ids("C-001 - see C-003, to C-004")
            .iter()
            .all(|id| !id.in_range)
    );
}

#[test]
fn only_comments_of_tests_prove() {
    let source = r#"
        // C-001: obeyed here.
        #[cfg(test)]
        use super::*;
        // C-002
        #[cfg(test)]
        mod tests {
            // C-003, S-003
            let url = "https://C-004"; // U-005
            let name = "C-006";
            /// H-007
        }"#;
    assert_eq!(
        proofs("nbd-proto/src/x.rs", source),
        ["C-003", "S-003", "U-005", "H-007"]
    );
    assert_eq!(proofs("nbd-proto/src/x/tests.rs", "// C-001"), ["C-001"]);
    assert_eq!(proofs("nbd-io/tests/x.rs", "// C-001"), ["C-001"]);
    assert_eq!(proofs("fuzz/src/x.rs", "// C-001"), ["C-001"]);
}

#[test]
fn the_code_of_a_doctest_proves() {
    let source = "
        /// C-001 says so.
        /// ```compile_fail,E0382
        /// upgrade.start_tls(); // C-049
        /// ```
        /// C-002
        /// ```text
        /// // C-003
        /// ```
        fn f() {}
        // C-004";
    assert_eq!(proofs("nbd-proto/src/x.rs", source), ["C-049"]);
}

#[test]
fn the_report_names_mistakes() {
    let rules = "| C-001 | M | a |\n| C-002 | M | b |\n| C-003 | M | c |\n| C-004 | M | d | e |";
    let unproven = "| C-002, C-009 | said so |\n| C-003 | |";
    let document = Document::parse(&format!("{RULES}{rules}{UNPROVEN}{unproven}"));
    let mentions = scan(Path::new("fuzz/x.rs"), "// C-002, C-007");
    let report = Report::new(&document, &mentions);
    assert_eq!(
        report.problems.lines().collect::<Vec<_>>(),
        [
            "docs/conformance.md: the row of C-004 does not have three cells",
            "docs/conformance.md gives no reason for C-003",
            "fuzz/x.rs:1: C-002 is listed as not proven, but named here",
            "fuzz/x.rs:1: there is no rule C-007",
            "docs/conformance.md lists C-009 as not proven, which is no rule",
            "rules accounted for nowhere: 1",
            "  C-001 a",
        ]
    );
}
