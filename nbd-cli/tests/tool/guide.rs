//! The shell sessions of the guide and the README, which are run as they stand there.
//!
//! A block of the kind `console` has commands behind `$ ` and their output. `[..]` stands for
//! anything in a line, and a line `...` for any lines. A line `? N` is the exit code, 0 where there
//! is none. All blocks of a page are one session, in an empty directory. A command that ends in `
//! &` runs on until the page ends, and the session goes on once it has printed something.

use crate::support::search_path;
use interop::{Peer, deadline, require};
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

const LIMIT: Duration = Duration::from_secs(300);

/// A command of a session, and its expected output.
struct Step {
    command: String,
    expected: Vec<String>,
    code: i32,
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let blocks = page.split("```console\n").skip(1);
    let lines = blocks
        .filter_map(|block| block.split("```").next())
        .flat_map(str::lines);
    for line in lines {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                command: command.to_owned(),
                expected: Vec::new(),
                code: 0,
            });
        } else if let Some(step) = steps.last_mut() {
            match line.strip_prefix("? ") {
                Some(code) => step.code = code.parse().expect("an exit code is a number"),
                None => step.expected.push(line.to_owned()),
            }
        }
    }
    steps
}

/// A script that runs the commands and keeps the output of each in a file of its number, and its
/// exit code in another one.
fn script(steps: &[Step], kept: &Path) -> String {
    let kept = kept.display();
    let mut script =
        "exec < /dev/null\ntrap 'kill $(jobs -p) $(cat *.pid) 2> /dev/null; wait' EXIT\n"
            .to_owned();
    for (at, Step { command, .. }) in steps.iter().enumerate() {
        let out = format!("{kept}/{at}");
        script += &match command.strip_suffix(" &") {
            // In place of the shell in between, which would be killed alone.
            Some(command) => format!(
                "{{ exec {command}; }} > {out} 2>&1 &\nuntil [ -s {out} ] || ! kill -0 $!; do sleep 0.01; done\n\
                 echo 0 > {out}.code\n"
            ),
            None => format!("{{ {command}\n}} > {out} 2>&1\necho $? > {out}.code\n"),
        };
    }
    script
}

/// Whether a line is the expected one, where `[..]` is anything.
fn is_line(expected: &str, line: &str) -> bool {
    let parts: Vec<&str> = expected.split("[..]").collect();
    let [first, between @ .., last] = parts.as_slice() else {
        return expected == line;
    };
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    for part in between {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether lines are the expected ones, where `...` is any number of them.
fn are_lines(expected: &[String], lines: &[&str]) -> bool {
    match (expected.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((first, more)), _) if first == "..." => {
            (0..=lines.len()).any(|skipped| are_lines(more, &lines[skipped..]))
        }
        (Some((first, more)), Some((line, rest))) => is_line(first, line) && are_lines(more, rest),
        _ => false,
    }
}

/// Runs the session of a page.
fn run(page: &Path) {
    let steps = steps(&fs::read_to_string(page).expect("the page can be read"));
    if steps.is_empty() || !steps.iter().all(|step| is_possible(&step.command)) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory can be made");
    let kept = tempfile::tempdir().expect("a directory can be made");
    let mut bash = Command::new("timeout");
    bash.args([
        "--kill-after=5",
        "60",
        "bash",
        "-c",
        &script(&steps, kept.path()),
    ])
    .current_dir(dir.path());
    bash.env("PATH", search_path())
        .env("LC_ALL", "C.UTF-8")
        .env_remove("NBD_LOG")
        .stdin(Stdio::null());
    let status = bash.status().expect("bash can be started");
    for (
        at,
        Step {
            command,
            expected,
            code,
        },
    ) in steps.iter().enumerate()
    {
        let said = |name: String| fs::read_to_string(kept.path().join(name)).unwrap_or_default();
        let printed = said(at.to_string());
        let ended = said(format!("{at}.code"));
        let place = page.file_name().unwrap_or_default().display();
        assert_eq!(
            ended.trim(),
            code.to_string(),
            "{place}: {command}\n{printed}({status})"
        );
        let lines: Vec<&str> = printed.lines().collect();
        if command.ends_with(" &") {
            // It prints where it listens, which is no part of the page.
            assert!(
                !printed.is_empty() && expected.is_empty(),
                "{place}: {command}"
            );
            continue;
        }
        assert!(
            are_lines(expected, &lines),
            "{place}: {command}\nexpected:\n{}\ngot:\n{printed}",
            expected.join("\n")
        );
    }
}

/// Whether the foreign programs of a command are there.
fn is_possible(command: &str) -> bool {
    let peers = [
        ("qemu-nbd", Peer::QemuNbd),
        ("qemu-img", Peer::QemuImg),
        ("qemu-io", Peer::QemuIo),
    ];
    peers
        .iter()
        .all(|(name, peer)| !command.contains(name) || require(*peer).is_some())
        && ["curl", "script"].iter().all(|name| {
            let is_there = !command.starts_with(name) || is_installed(name);
            if !is_there {
                // Not `eprintln!`: the test runner would swallow it.
                drop(writeln!(io::stderr(), "SKIPPED: a page that needs {name}"));
            }
            is_there
        })
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn sessions_of_the_guide_print_the_shown_output() {
    deadline(LIMIT, || {
        let pages = fs::read_dir(repository().join("docs/guide/src")).expect("there is a guide");
        let mut ran = 0;
        for page in pages {
            run(&page.expect("the directory can be read").path());
            ran += 1;
        }
        assert!(ran > 10, "{ran} pages");
    });
}

#[test]
fn the_session_of_the_front_page_prints_the_shown_output() {
    deadline(LIMIT, || run(&repository().join("README.md")));
}

#[test]
fn the_summary_names_every_page() {
    let guide = repository().join("docs/guide/src");
    let summary = fs::read_to_string(guide.join("SUMMARY.md")).expect("there is a summary");
    for page in fs::read_dir(guide).expect("there is a guide") {
        let name = page
            .expect("the directory can be read")
            .file_name()
            .into_string();
        let name = name.expect("names of pages are ASCII");
        assert!(
            name == "SUMMARY.md" || summary.contains(&format!("({name})")),
            "{name}"
        );
    }
}

#[test]
fn wildcards_match_parts_of_lines_and_lines() {
    assert!(is_line("a [..] c", "a b c"));
    assert!(is_line("[..]", ""));
    assert!(!is_line("a [..] c", "a c"));
    assert!(!is_line("a", "ab"));
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(are_lines(&lines("a\n...\nd"), &["a", "b", "c", "d"]));
    assert!(are_lines(&lines("a\n..."), &["a"]));
    assert!(!are_lines(&lines("a\n...\nd"), &["a", "b"]));
    assert!(!are_lines(&lines("a"), &["a", "b"]));
}
