//! Requirements that the documentation of the drivers has to meet.

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

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a directory") {
            sources(&entry.expect("an entry").path(), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
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
    let mut files = Vec::new();
    for source in SOURCES {
        sources(&root.join(source), &mut files);
    }
    let (mut total, mut missing) = (0, Vec::new());
    for file in files {
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
