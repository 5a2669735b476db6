//! `--help`, manual pages and completions.

use crate::support::{command, nbd, search_path};
use interop::{Nbdkit, Peer, deadline, require};
use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

const LIMIT: Duration = Duration::from_secs(300);

/// The commands that `nbd --help` lists.
fn commands() -> Vec<String> {
    let help = nbd(["--help"]).expect(0);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// The lines below "Examples:".
fn examples(name: &str) -> Vec<String> {
    let help = nbd([name, "--help"]).expect(0);
    let examples = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    examples
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// The help of a command in a terminal of 80 columns.
fn help_at_80_columns(name: &str) -> String {
    let mut help = command([name, "--help"]);
    let help = help.env("COLUMNS", "80").output();
    let help = help.expect("the command can be started").stdout;
    String::from_utf8(help).expect("the command prints UTF-8")
}

#[test]
fn the_help_of_each_command_is_short() {
    for name in commands() {
        let help = help_at_80_columns(&name);
        // The server has more options to explain than the others.
        let most = if name == "serve" { 69 } else { 49 };
        let lines = help.lines().count();
        assert!(lines <= most, "{name}: {lines} lines\n{help}");
        let long = help.lines().find(|line| line.chars().count() > 80);
        assert_eq!(long, None, "{name}");
        assert!(!examples(&name).is_empty(), "{help}");
        // Options of all commands are behind those of this one.
        let mut last = help
            .lines()
            .skip_while(|line| !line.contains("-q, --quiet"));
        for option in ["-q, --quiet", "-h, --help", "-V, --version"] {
            let line = last.next().unwrap_or_default();
            assert!(line.contains(option), "{help}");
        }
    }
    assert_eq!(nbd(["--version"]).expect(0).split(' ').next(), Some("nbd"));
}

#[test]
fn the_help_names_the_uris_of_disks_on_object_storage() {
    for args in [&["--help"][..], &["serve", "--help"]] {
        let help = nbd(args).expect(0);
        for uri in ["s3://BUCKET/PREFIX", "gs://", "az://", "file:///DIRECTORY"] {
            assert!(help.contains(uri), "{help}");
        }
    }
}

/// Runs a line of help as a shell would, with a server and files that exist for the names in it.
fn try_out(line: &str, uri: &str, dir: &Path) {
    let mut line = line.split("      ").next().unwrap_or(line).to_owned();
    for (from, to) in [
        ("nbd://localhost/disk", uri),
        ("nbd+unix:///?socket=/tmp/nbd.sock", uri),
        ("nbd://localhost", uri),
        (" URI", &format!(" '{uri}'")),
        ("/etc/bash_completion.d/nbd", "completions"),
        ("/usr/local/share/man/man1", "."),
    ] {
        line = line.replace(from, to);
    }
    let shell = Command::new("bash")
        .args(["-e", "-c", &line])
        .current_dir(dir)
        .env("PATH", search_path())
        .output();
    let ended = shell.expect("bash can be started");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{line}: {}: {said}", ended.status);
}

#[test]
fn examples_work() {
    deadline(LIMIT, || {
        let Some(server) = Nbdkit::new("memory").param("size=8M").start() else {
            return;
        };
        let dir = tempfile::tempdir().expect("a directory can be made");
        fs::write(dir.path().join("disk.img"), vec![7; 2 << 20]).expect("a file can be written");
        // Others need more than a server, and have tests of their own.
        let alone = [
            "info", "list", "dump", "copy", "compare", "ping", "bench", "object", "generate",
        ];
        for name in commands()
            .iter()
            .filter(|name| alone.contains(&name.as_str()))
        {
            for line in examples(name) {
                // These need a server with TLS.
                if !line.contains("nbds://") {
                    try_out(&line, &format!("'{}'", server.uri("")), dir.path());
                }
            }
        }
    });
}

#[test]
fn each_command_has_a_manual_page_that_can_be_shown() {
    deadline(LIMIT, || {
        let dir = tempfile::tempdir().expect("a directory can be made");
        nbd(["generate".as_ref(), "man".as_ref(), dir.path().as_os_str()]).expect(0);
        for name in commands() {
            let path = dir.path().join(format!("nbd-{name}.1"));
            let page = fs::read_to_string(&path).expect("each command has a page");
            assert!(
                page.contains(".SH SYNOPSIS") && page.contains(".SH OPTIONS"),
                "{page}"
            );
        }
        let main = fs::read_to_string(dir.path().join("nbd.1")).expect("there is a page for all");
        assert!(
            commands().iter().all(|name| main.contains(name.as_str())),
            "{main}"
        );
    });
}

/// The names of options in a text.
fn options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let long = words.filter_map(|word| word.strip_prefix("--"));
    long.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_help_has_every_option_of_the_manual_page_which_explains_more() {
    let dir = tempfile::tempdir().expect("a directory can be made");
    nbd(["generate".as_ref(), "man".as_ref(), dir.path().as_os_str()]).expect(0);
    for name in commands() {
        let path = dir.path().join(format!("nbd-{name}.1"));
        let page = fs::read_to_string(&path).expect("each command has a page");
        let (help, page) = (help_at_80_columns(&name), page.replace('\\', ""));
        let missing: Vec<_> = options(&page)
            .difference(&options(&help))
            .cloned()
            .collect();
        assert!(missing.is_empty(), "{name}: {missing:?}");
        if name == "serve" {
            let long = "server-cert.pem, server-key.pem and ca-cert.pem are taken";
            assert!(page.contains(long) && !help.contains(long), "{page}");
        }
    }
}

#[test]
fn completions_are_scripts_that_the_shell_takes() {
    deadline(LIMIT, || {
        let dir = tempfile::tempdir().expect("a directory can be made");
        for shell in [Peer::Bash, Peer::Fish, Peer::Zsh] {
            let name = shell.command();
            let script = nbd(["generate", "completions", name]).expect(0);
            assert!(
                commands().iter().all(|name| script.contains(name.as_str())),
                "{name}"
            );
            if let Some(shell) = require(shell) {
                let path = dir.path().join(name);
                fs::write(&path, script).expect("a file can be written");
                let _said = shell
                    .run(["-n".as_ref(), path.as_os_str()])
                    .expect_success();
            }
        }
    });
}
