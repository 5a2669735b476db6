//! Requirements that documentation and comments have to meet.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The types that users of a driver meet first.
const TYPES: [&str; 6] = [
    "Client",
    "ConnectOptions",
    "Extents",
    "Listener",
    "Queue",
    "Server",
];

/// Sources of the methods of these types, of all drivers or of one.
const SOURCES: [&str; 5] = [
    "nbd-io/src/api",
    "nbd-socket/src/driver.rs",
    "nbd-blocking/src",
    "nbd-tokio/src",
    "nbd-async-std/src",
];

/// Adds the files below a path whose names end so, without those that are built there.
fn files(path: &Path, ends: &[&str], found: &mut Vec<PathBuf>) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if path.is_dir() && name != "target" {
        for entry in fs::read_dir(path).expect("a directory") {
            files(&entry.expect("an entry").path(), ends, found);
        }
    } else if ends.iter().any(|end| name.ends_with(end)) {
        found.push(path.to_owned());
    }
}

/// The public methods in a file, and those of them without an example, as `Type::method`.
fn methods(text: &str) -> (usize, Vec<String>) {
    let (mut count, mut bare) = (0, Vec::new());
    // The type of an `impl` block, and how far that is indented.
    let mut block: Option<(&str, usize)> = None;
    let mut has_example = false;
    for line in text.lines() {
        let code = line.trim_start();
        let indentation = line.len() - code.len();
        if let Some(name) = code
            .strip_prefix("impl ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            block = TYPES.contains(&name).then_some((name, indentation));
        } else if code == "}" && block.is_some_and(|(_, own)| own == indentation) {
            block = None;
        }
        let Some((name, _)) = block else { continue };
        if code.starts_with("///") || code.starts_with("#[") {
            has_example |= code.starts_with("/// ```");
            continue;
        }
        let method = [
            "pub fn ",
            "pub const fn ",
            "pub async fn ",
            "pub $($async)? fn ",
        ];
        if let Some(rest) = method.iter().find_map(|start| code.strip_prefix(start)) {
            count += 1;
            if !has_example {
                let end = rest.find(['(', '<']).unwrap_or(rest.len());
                bare.push(format!("{name}::{}", &rest[..end]));
            }
        }
        has_example = false;
    }
    (count, bare)
}

#[test]
fn every_public_method_of_a_driver_has_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut sources = Vec::new();
    for source in SOURCES {
        files(&root.join(source), &[".rs"], &mut sources);
    }
    let (mut total, mut missing) = (0, Vec::new());
    for file in sources {
        let (count, bare) = methods(&fs::read_to_string(&file).unwrap());
        total += count;
        let place = file.strip_prefix(root).unwrap().display().to_string();
        missing.extend(bare.into_iter().map(|method| format!("{place}: {method}")));
    }
    assert!(
        missing.is_empty(),
        "without an example:\n{}",
        missing.join("\n")
    );
    assert!(total > 100, "only {total} methods were found");
}

#[test]
fn a_method_without_an_example_is_found() {
    let text = "\
impl Queue {
    /// Sends.
    ///
    /// ```
    /// queue.send()?;
    /// ```
    #[must_use]
    pub fn send(&mut self) {}

    /// Waits.
    pub fn wait<T>(&mut self) {}

    fn private(&mut self) {}
}

impl Other {
    pub fn bare() {}
}
";
    assert_eq!(methods(text), (2, vec!["Queue::wait".to_owned()]));
}

/// Persons without a name, a word for reports, and metaphors that the field does not use.
const BANNED: [&str; 14] = [
    "anybody",
    "anyone",
    "baton",
    "everybody",
    "everyone",
    "farewell",
    "goodbye",
    "mourners",
    "nobody",
    "patience",
    "somebody",
    "someone",
    "told",
    "whoever",
];

/// The numbered lines that the section *Prose* of CONTRIBUTING.md rules out, of a page or of a source
/// of Rust.
fn unclear(text: &str, is_source: bool) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(move |(_, line)| {
        let line = line.trim_start();
        // Without code, and without words that are spoken of.
        let words = line.split(['`', '*']).step_by(2);
        let words = words.flat_map(|part| part.split(|letter: char| !letter.is_alphanumeric()));
        let is_prose = !is_source || line.starts_with("//");
        // A heading, a cell of a table, a link or a question may be about the unknown.
        let text = line.trim_start_matches(['/', '!', ' ']);
        let is_sentence = !["#", "|", "- ["]
            .iter()
            .any(|start| text.starts_with(start))
            && !line.contains('?');
        let is_clause = |word: &str| match word {
            "How" | "What" | "Which" | "Who" | "Why" => is_prose && is_sentence,
            "what" => is_source && is_prose,
            _ => false,
        };
        let mut words = words.filter(|word| !word.is_empty());
        words.any(|word| is_clause(word) || BANNED.contains(&word.to_lowercase().as_str()))
    })
}

#[test]
fn prose_says_who_acts_and_on_what() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let (mut paths, mut found) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let parts = ["docs", "fuzz", "interop"];
        if name.starts_with("nbd-") || name.ends_with(".md") || parts.contains(&name) {
            files(&path, &[".rs", ".md"], &mut paths);
        }
    }
    assert!(paths.len() > 400, "only {} files were found", paths.len());
    for path in paths {
        // The words are in this file.
        if path.ends_with(file!()) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let is_source = path.extension().is_some_and(|kind| kind == "rs");
        let place = path.strip_prefix(root).unwrap().display();
        found.extend(
            unclear(&text, is_source).map(|(number, line)| format!("{place}:{number}: {line}")),
        );
    }
    assert!(
        found.is_empty(),
        "see the section Prose of CONTRIBUTING.md:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_sentence_with_a_clause_as_its_subject_is_found() {
    let text = "\
/// Sends a request.
/// What was sent is lost.
fn send() {
    // It waits, since nobody else does.
    // Writes what has come.
    let what = \"What\";
    /// # What it offers
    // Why not?
    fn peer_is_told() {}
    // The method `what` is not *told*.
";
    let found = |is_source| -> Vec<usize> {
        let lines = unclear(text, is_source);
        lines.map(|(number, _)| number).collect()
    };
    assert_eq!(found(true), [2, 4, 5, 9]);
    assert_eq!(found(false), [2, 4, 6, 9]);
}
