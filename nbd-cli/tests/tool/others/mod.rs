//! `nbd check` and the programs of others: docs/conformance-of-others.md.
//!
//! `UPDATE_TABLES=1 cargo test -p nbd-cli --test tool others` checks all rules, which takes minutes, and
//! writes the tables anew. Without it, the rules that are broken are checked.

mod judged;
mod subjects;

use self::{
    judged::{JUDGED, Judged},
    subjects::{SUBJECTS, Subject},
};
use interop::{Peer, deadline, require};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// All rules of all programs take minutes.
const LIMIT: Duration = Duration::from_secs(1800);

/// The worst of each rule that is not passed, and the reason.
fn broken(document: &Value) -> BTreeMap<String, (String, String)> {
    let mut broken = BTreeMap::new();
    for rule in document["rules"].as_array().expect("there are rules") {
        let verdict = rule["verdict"].as_str().unwrap_or_default();
        let id = rule["id"].as_str().unwrap_or_default();
        if verdict == "fail" || verdict == "warning" && !broken.contains_key(id) {
            let reason = rule["reason"].as_str().unwrap_or_default();
            broken.insert(id.to_owned(), (verdict.to_owned(), reason.to_owned()));
        }
    }
    broken
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance-of-others.md")
}

/// The text between the marks of this name.
fn between<'a>(text: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let [begin, end] = ["begin", "end"].map(|what| format!("<!-- {name}:{what} -->\n"));
    let (before, rest) = text.split_once(&begin).expect("the page has this table");
    let (table, after) = rest.split_once(&end).expect("the table has an end");
    (
        &text[..before.len() + begin.len()],
        table,
        &text[text.len() - after.len() - end.len()..],
    )
}

fn differences() -> String {
    let mut table = "| Program | Rule | Result | Why |\n|---|---|---|---|\n".to_owned();
    for Judged {
        program,
        id,
        verdict,
        at_times,
        only,
        why,
    } in JUDGED
    {
        let only = if only.is_empty() {
            String::new()
        } else {
            format!(", {only}")
        };
        let at_times = if *at_times { ", at times" } else { "" };
        let name = program.command();
        writeln!(
            table,
            "| {name}{only} | {id} | {verdict}{at_times} | {why} |"
        )
        .expect("a string takes all");
    }
    table
}

/// The ids that are judged of a program, and come out so each time.
fn ids(program: Peer) -> Vec<&'static str> {
    let all = JUDGED
        .iter()
        .filter(|one| one.program == program && !one.at_times);
    all.map(|one| one.id).collect()
}

/// The rules of a subject that came out otherwise than they were judged.
fn compare(subject: &Subject, found: &BTreeMap<String, (String, String)>) -> Vec<String> {
    let is_known = |(id, (verdict, _)): &(&String, &(String, String))| {
        let program = subject.program;
        let mut judged = JUDGED.iter();
        judged.any(|one| {
            let is_same = one.program == program && subject.what.ends_with(one.only);
            is_same && one.id == *id && one.verdict == *verdict
        })
    };
    let unknown = found.iter().filter(|difference| !is_known(difference));
    let name = |(id, (verdict, reason)): (&String, &(String, String))| {
        let (program, what) = (subject.program.command(), subject.what);
        format!("{program}, {what}: {id} is not judged as {verdict}: {reason}")
    };
    unknown.map(name).collect()
}

/// Results of the programs that are installed.
struct Results {
    table: String,
    /// Differences without a judgement.
    unknown: Vec<String>,
    /// Judged rules that were kept.
    kept: BTreeSet<(&'static str, &'static str)>,
}

/// Checks some subjects by some rules, by all if there are none.
fn results<'a>(
    subjects: impl Iterator<Item = &'a Subject>,
    rules: impl Fn(Peer) -> Vec<&'static str>,
) -> Results {
    let table = "| | passed | warnings | failed | not applicable |\n|---|---|---|---|---|\n";
    let mut results = Results {
        table: table.to_owned(),
        unknown: Vec::new(),
        kept: BTreeSet::new(),
    };
    let mut found_of = BTreeSet::new();
    for subject in subjects {
        let Some(version) = require(subject.program).map(|program| program.version_number()) else {
            continue;
        };
        let Some(document) = (subject.check)(&rules(subject.program)) else {
            continue;
        };
        let found = broken(&document);
        let program = subject.program.command();
        results.unknown.extend(compare(subject, &found));
        results
            .kept
            .extend(ids(subject.program).iter().map(|id| (program, *id)));
        found_of.extend(found.into_keys().map(|id| (program, id)));
        let total = |verdict: &str| document["totals"][verdict].as_u64().unwrap_or(0);
        let undone = match total("not_done") {
            0 => String::new(),
            n => format!(", {n} not done: the server was gone"),
        };
        writeln!(
            results.table,
            "| {program} {version}: {} | {} | {} | {} | {}{undone} |",
            subject.what,
            total("pass"),
            total("warning"),
            total("fail"),
            total("not_applicable"),
        )
        .expect("a string takes all");
    }
    results
        .kept
        .retain(|(program, id)| !found_of.contains(&(*program, (*id).to_owned())));
    results
}

/// Whether a subject was checked for the page in the version that is installed, and can be again in
/// a few seconds.
fn is_quick_and_known(subject: &Subject, page: &str) -> bool {
    let is_slow = [Peer::NbdServer, Peer::Fio].contains(&subject.program);
    let version = require(subject.program).map(|program| program.version_number());
    let known = version.is_some_and(|version| {
        let program = subject.program.command();
        page.contains(&format!("| {program} {version}: {} |", subject.what))
    });
    known && !is_slow
}

#[test]
fn programs_of_others_break_the_rules_that_the_page_says() {
    deadline(LIMIT, || {
        let text = fs::read_to_string(page()).unwrap();
        let all = env::var_os("UPDATE_TABLES").is_some_and(|update| update == "1");
        let results = if all {
            results(SUBJECTS.iter(), |_| Vec::new())
        } else {
            assert_eq!(between(&text, "differences").1, differences());
            let subjects = SUBJECTS.iter();
            results(subjects.filter(|one| is_quick_and_known(one, &text)), ids)
        };
        assert!(results.unknown.is_empty(), "{:#?}", results.unknown);
        assert!(results.kept.is_empty(), "not broken: {:?}", results.kept);
        if all {
            let (before, _, after) = between(&text, "results");
            let text = format!("{before}{}{after}", results.table);
            let (before, _, after) = between(&text, "differences");
            fs::write(page(), format!("{before}{}{after}", differences())).unwrap();
        }
    });
}
