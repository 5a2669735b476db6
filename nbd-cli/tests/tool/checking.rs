//! `nbd check` and servers.

use crate::support::{Ended, nbd, search_path};
use interop::{Certificates, run};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, SystemTime},
};

/// Serves something and checks it, by a line of a shell in which `$NBD_URI` is the server's.
fn served(serve: &str, check: &str, dir: &Path) -> Ended {
    let line = format!("nbd serve {serve} -- sh -c '{check}'");
    let mut shell = Command::new("bash");
    shell.args(["-c", &line]).current_dir(dir);
    let output = shell.env("PATH", search_path()).output();
    let output = output.expect("bash can be started");
    let text = |bytes| String::from_utf8(bytes).expect("the command prints UTF-8");
    Ended {
        command: line,
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Number of rules with this verdict.
fn total(document: &Value, verdict: &str) -> u64 {
    document["totals"][verdict]
        .as_u64()
        .expect("there are totals")
}

#[test]
fn each_rule_that_is_checked_is_one_of_the_document() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let document = fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let known: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split_once(" | ").map(|(id, _)| id))
        .collect();
    let listed = nbd(["check", "--list-rules", "--json"]).json();
    let rules = listed["rules"].as_array().unwrap();
    assert!(rules.len() > 240, "{}", rules.len());
    let mut names = BTreeSet::new();
    for rule in rules {
        let id = rule["id"].as_str().unwrap();
        assert!(known.contains(id), "{id}");
        let name = (id.as_bytes()[0], rule["what"].as_str().unwrap());
        assert!(names.insert(name), "{rule}");
        let link = rule["link"].as_str().unwrap();
        assert!(
            link.starts_with("https://github.com/NetworkBlockDevice/nbd/blob/"),
            "{link}"
        );
    }
}

/// An example of the third runtime, which `nbd` has only as a feature.
fn async_std_example(name: &str) -> Option<PathBuf> {
    let examples = Path::new(env!("CARGO_BIN_EXE_nbd")).with_file_name("examples");
    Some(examples.join(name)).filter(|example| example.is_file())
}

/// Checks the server of that runtime, which has these options.
fn with_async_std(
    dir: &Path,
    options: &[&str],
    check: impl FnOnce(&str) -> Ended,
) -> Option<Ended> {
    let socket = dir.join("async-std");
    let mut serve = Command::new(async_std_example("async_std_serve")?);
    let serve = serve
        .args(options)
        .arg("--quiet")
        .arg("--unix")
        .arg(&socket);
    let mut serve = serve.spawn().expect("the example can be started");
    while UnixStream::connect(&socket).is_err() {
        let ended = serve.try_wait().expect("our own child can be waited for");
        assert!(ended.is_none(), "it serves");
        thread::sleep(Duration::from_millis(5));
    }
    let checked = check(&format!("nbd+unix:///?socket={}", socket.display()));
    drop(serve.kill());
    drop(serve.wait());
    Some(checked)
}

#[test]
fn a_server_of_this_project_passes_every_rule() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk"), vec![7; 1 << 20]).unwrap();
        for runtime in ["blocking", "tokio"] {
            for disk in ["--memory d=8M", "disk", "--read-only disk"] {
                let serve = format!("--runtime {runtime} {disk}");
                let ended = served(&serve, "nbd check --json --write \"$NBD_URI\"", dir.path());
                let document = ended.json();
                assert_eq!(total(&document, "warning"), 0, "{document:#}");
                assert!(total(&document, "pass") > 100, "{document:#}");
            }
        }
        let checked = with_async_std(dir.path(), &[], |uri| {
            nbd(["check", "--json", "--write", uri])
        });
        if let Some(document) = checked.map(|checked| checked.json()) {
            assert_eq!(total(&document, "warning"), 0, "{document:#}");
            assert!(total(&document, "pass") > 100, "{document:#}");
        }
        // Overwritten bytes are there again.
        assert!(fs::read(dir.path().join("disk")).unwrap() == vec![7; 1 << 20]);
    });
}

#[test]
fn a_server_of_this_project_passes_every_rule_over_tls() {
    run(|| {
        let certificates = Certificates::new();
        let dir = certificates.dir().display().to_string();
        let check = format!(
            "nbd check --json --tls always --tls-ca {dir}/ca-cert.pem --tls-cert {dir}/client-cert.pem \
             --tls-key {dir}/client-key.pem --tls-hostname localhost --write"
        );
        let place = tempfile::tempdir().unwrap();
        for runtime in ["blocking", "tokio"] {
            for policy in ["", "--tls offered"] {
                let serve = format!("--runtime {runtime} --tls-dir {dir} {policy} --memory d=8M");
                let inside = served(&serve, &format!("{check} \"$NBD_URI\""), place.path()).json();
                assert_eq!(total(&inside, "warning"), 0, "{inside:#}");
                assert!(total(&inside, "pass") > 100, "{inside:#}");
            }
        }
        let checked = with_async_std(place.path(), &["--tls", &dir], |uri| {
            let check = check.split_whitespace().skip(1);
            nbd(check.chain([uri]))
        });
        if let Some(inside) = checked.map(|checked| checked.json()) {
            assert_eq!(total(&inside, "warning"), 0, "{inside:#}");
            assert!(total(&inside, "pass") > 100, "{inside:#}");
        }
    });
}

/// A server whose first bytes are changed on their way.
fn spoil(server: &str, dir: &Path, change: fn(&mut [u8])) -> String {
    let path = dir.join("spoilt");
    let listener = UnixListener::bind(&path).expect("a socket can be made");
    let server = server.to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, UnixStream::connect(&server)) else {
                return;
            };
            let both = client
                .try_clone()
                .and_then(|client| Ok((client, server.try_clone()?)));
            let (mut from, mut to) = both.expect("sockets can be cloned");
            thread::spawn(move || {
                drop(std::io::copy(&mut from, &mut to));
                drop(to.shutdown(std::net::Shutdown::Write));
            });
            let (mut from, mut to) = (server, client);
            thread::spawn(move || {
                let mut greeting = [0; 18];
                if from.read_exact(&mut greeting).is_ok() {
                    change(&mut greeting);
                    drop(to.write_all(&greeting));
                    drop(std::io::copy(&mut from, &mut to));
                }
                drop(to.shutdown(std::net::Shutdown::Write));
            });
        }
    });
    format!("nbd+unix:///?socket={}", path.display())
}

#[test]
fn a_broken_rule_is_named_with_the_bytes_that_show_it() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let Some(server) = interop::Nbdkit::new("memory").param("size=1M").start() else {
            return;
        };
        let uri = spoil(
            &server.socket().display().to_string(),
            dir.path(),
            |greeting| {
                greeting[16] |= 0x80;
            },
        );
        let said = nbd(["check", &uri, "--rule", "S-006", "--rule", "s-004"]).expect(1);
        for expected in [
            "pass  S-004  ",
            "FAIL  S-006  ",
            "unknown handshake flags 0x8000",
            "doc/proto.md#handshake-flags",
            "4e 42 44 4d 41 47 49 43 49 48 41 56 45 4f 50 54 80 03",
            "2 rules: 1 passed, 0 warnings, 1 failed, 0 not applicable",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let junit = dir.path().join("check.xml");
        let args = ["check", &uri, "--rule", "S-006", "--json", "--junit"];
        let said = nbd(args.into_iter().chain([junit.to_str().unwrap()])).expect(1);
        let document: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(document["rules"][0]["verdict"], "fail");
        assert_eq!(document["rules"][0]["transcript"][0]["from"], "server");
        let junit = fs::read_to_string(junit).unwrap();
        assert!(junit.contains("tests=\"1\" failures=\"1\""), "{junit}");
        assert!(
            junit.contains("<failure message=\"unknown handshake flags 0x8000\">"),
            "{junit}"
        );
    });
}

#[test]
fn a_server_that_is_silent_is_given_up() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("silent");
        let _listener = UnixListener::bind(&path).unwrap();
        let uri = format!("nbd+unix:///?socket={}", path.display());
        let ended = nbd(["check", "--rule-timeout", "0.1", &uri]);
        assert!(
            ended.stderr.contains("but the server is silent"),
            "{ended:?}"
        );
        ended.expect(2);
        assert_eq!(nbd(["check", "--rule", "S-999"]).code, Some(2));
    });
}

#[test]
fn a_check_has_an_end_and_says_what_it_left_out() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let soon = ["--json", "--timeout", "0.001"];
        let check = format!("nbd check {} \"$NBD_URI\"", soon.join(" "));
        let copy = ["nbd", "copy", "{uri}", "null:"];
        for ended in [
            served("--memory d=8M", &check, dir.path()),
            client(&soon, &copy),
        ] {
            let document: Value = serde_json::from_str(&ended.stdout).unwrap();
            assert!(total(&document, "not_done") > 100, "{document:#}");
            assert!(ended.stderr.contains("rules could not be checked"));
            ended.expect(2);
        }
    });
}

#[test]
fn nothing_is_written_to_a_server_that_is_only_read() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        fs::write(&disk, vec![7; 1 << 20]).unwrap();
        for (option, writes) in [("", false), ("--write", true)] {
            let file = fs::File::options().write(true).open(&disk).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            let check = format!("nbd check --json {option} \"$NBD_URI\"");
            let document = served("disk", &check, dir.path()).json();
            assert!(total(&document, "pass") > 50, "{document:#}");
            let modified = fs::metadata(&disk).unwrap().modified().unwrap();
            assert_eq!(modified != SystemTime::UNIX_EPOCH, writes);
        }
    });
}

#[test]
fn examples_of_its_help_work() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let help = nbd(["check", "--help"]).expect(0);
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        // Other tests have those with a command.
        for line in examples.lines().filter(|line| !line.contains(" -- ")) {
            let line = line.trim().split("     ").next().unwrap();
            let line = line.replace("nbd://localhost/disk", "\"$NBD_URI\"");
            served("--memory d=8M", &line, dir.path()).expect(0);
        }
    });
}

#[test]
fn a_server_that_forgets_flushed_data_when_it_is_killed_has_failed() {
    run(|| {
        let dir = tempfile::tempdir().unwrap();
        let [disk, socket] = ["disk", "nbd.sock"].map(|name| dir.path().join(name));
        let disk = disk.to_str().unwrap();
        let socket = socket.to_str().unwrap();
        fs::write(disk, vec![7; 1 << 20]).unwrap();
        let uri = format!("nbd+unix:///?socket={socket}");
        let check = "check --write --rule S-220 --rule S-221 --rule S-222 --rule S-233";
        let check: Vec<_> = check.split(' ').chain([&uri[..], "--"]).collect();
        let serve = |runtime: &str, what: &[&str]| {
            let mut command = crate::support::command(&check);
            command.args(["nbd", "serve", "--runtime", runtime, "--unix", socket]);
            let output = command.args(what).env("PATH", search_path()).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        for runtime in ["blocking", "tokio"] {
            let said = serve(runtime, &[disk]);
            assert!(said.contains("11 rules: 11 passed"), "{said}");
        }
        // A disk in memory has nowhere to keep it.
        let said = serve("tokio", &["--memory", "1M"]);
        for expected in [
            "FAIL  S-220  flushed data is there after the server was killed",
            "FAIL  S-221  so is data that was flushed on another connection",
            "FAIL  S-222  so is data that was written with NBD_CMD_FLAG_FUA",
            "FAIL  S-222  so are zeroes that were written with it",
            "4 failed",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        // Overwritten bytes are there again.
        assert!(fs::read(disk).unwrap() == vec![7; 1 << 20]);
    });
}

/// Checks a client, in a directory with a file of 1 MiB.
fn client(args: &[&str], command: &[&str]) -> Ended {
    let dir = tempfile::tempdir().expect("a directory can be made");
    fs::write(dir.path().join("disk"), vec![7; 1 << 20]).expect("a file can be written");
    let mut check = crate::support::command(["check", "--listen"]);
    check.arg("127.0.0.1:0").args(args).arg("--").args(command);
    check.current_dir(dir.path()).env("PATH", search_path());
    let output = check.output().expect("the command can be started");
    let text = |bytes| String::from_utf8(bytes).expect("the command prints UTF-8");
    Ended {
        command: format!("{check:?}"),
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[test]
fn clients_of_this_project_pass_every_rule() {
    run(|| {
        // Each rule is a run of the command: all of them for two clients, and some for the other.
        let bench = "nbd bench --runtime blocking --op mix --destroy-data --ops 20 {uri}";
        let some = "C-042 C-059 C-169 C-170 C-188 C-196 C-204 C-209 C-225 C-226 C-230";
        let copy = "nbd copy {uri} copy{job}.img";
        let read = async_std_example("async_std_read");
        let read = read.map(|read| format!("{} {{uri}}", read.display()));
        // Without TLS the rules about it do not apply, nor those about writes and block status to a client
        // that reads one sector.
        for (tls, rules, command, not_applicable) in [
            ("never", "", Some(copy), 22),
            ("always", "", Some(copy), 5),
            ("never", some, Some(bench), 10),
            ("always", some, Some(bench), 5),
            ("never", "", read.as_deref(), 50),
        ] {
            let Some(command) = command else {
                continue;
            };
            let rules = rules.split_whitespace().flat_map(|rule| ["--rule", rule]);
            let args = ["--json", "--jobs", "4", "--tls", tls];
            let args: Vec<_> = args.into_iter().chain(rules).collect();
            let command: Vec<_> = command.split(' ').collect();
            let document = client(&args, &command).json();
            assert_eq!(total(&document, "warning"), 0, "{document:#}");
            assert!(
                total(&document, "not_applicable") < not_applicable,
                "{document:#}"
            );
        }
    });
}

#[test]
fn a_client_that_trusts_any_certificate_or_goes_on_without_tls_has_failed() {
    run(|| {
        let insecure = ["bash", "-c", "nbd info --tls-insecure nbds${NBD_URI#nbds}"];
        let said = client(&["--tls", "always", "--rule", "C-059"], &insecure).expect(1);
        for expected in [
            "pass  C-059  an end within the handshake",
            "FAIL  C-059  a certificate for another host is refused",
            "FAIL  C-059  a certificate that has expired is refused",
            "FAIL  C-059  a certificate of an authority that is not trusted is refused",
            "FAIL  C-059  a certificate that is signed with its own key is refused",
            "4 failed",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let place = "address=${NBD_URI#nbds}; address=nbd${address%%[?]*}";
        let trust = "nbd info --tls if-offered --tls-ca {certs}/ca-cert.pem";
        let script = format!("{place}; {trust} $address");
        let args = ["--tls", "always", "--rule", "H-015", "--rule", "C-057"];
        let said = client(&args, &["bash", "-c", &script]).expect(1);
        for expected in [
            "pass  C-057  ",
            "FAIL  H-015  NBD_OPT_STARTTLS is refused: nothing is sent in the clear",
            "FAIL  H-015  a server without fixed newstyle",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
    });
}

#[test]
fn servers_without_options_are_checked_by_the_rules_that_apply() {
    run(|| {
        let old = interop::Nbdkit::new("memory").param("size=1M");
        let newstyle = old.clone().mask_handshake(0).start();
        for (server, rule, expected) in [
            (old.oldstyle().start(), "S-008", "pass  S-008  an oldstyle"),
            (newstyle, "S-012", "pass  S-012  NBD_OPT_EXPORT_NAME: 134"),
        ] {
            let Some(server) = server else { return };
            let uri = server.uri("");
            let rules = [
                "check", "--rule", "S-174", "--rule", "S-019", "--rule", rule,
            ];
            let said = nbd(rules.into_iter().chain([&uri[..]])).expect(0);
            for expected in [
                expected,
                "pass  S-174  reads by simple replies",
                "n/a   S-019  an unknown option",
            ] {
                assert!(said.contains(expected), "{expected}: {said}");
            }
        }
    });
}

#[test]
fn the_rules_that_a_client_breaks_are_reported_to_it() {
    run(|| {
        // It sets a flag that was not offered, and ends without a word.
        let script = "address=${NBD_URI#nbd://}; address=${address%/}; exec 3<>/dev/tcp/${address%:*}/${address#*:}; \
                      printf '\\0\\0\\1\\3' >&3; head -c 18 <&3 > /dev/null";
        let place = tempfile::tempdir().unwrap();
        let junit = place.path().join("check.xml");
        let args = [
            "--rule", "C-016", "--rule", "C-042", "--rule", "C-204", "--junit",
        ];
        let args: Vec<_> = args.into_iter().chain(junit.to_str()).collect();
        let said = client(&args, &["bash", "-c", script]).expect(1);
        let junit = fs::read_to_string(junit).unwrap();
        assert!(junit.contains("tests=\"4\" failures=\"2\""), "{junit}");
        for expected in [
            "FAIL  C-016  ",
            "the client flags 0x102 were not offered",
            "FAIL  C-042  ",
            "n/a   C-204  ",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
    });
}

#[test]
fn a_client_that_crashes_or_hangs_has_failed() {
    run(|| {
        let crash = "nbd info {uri} > /dev/null || kill -SEGV $$";
        let args = ["--rule", "C-006"];
        let said = client(&args, &["bash", "-c", crash]).expect(1);
        assert!(said.contains("ended by signal 11"), "{said}");
        let hang = "nbd info {uri} > /dev/null || sleep 1000";
        let args = ["--rule", "C-006", "--rule-timeout", "3"];
        let said = client(&args, &["bash", "-c", hang]).expect(1);
        assert!(said.contains("the command hung and was killed"), "{said}");
    });
}

#[test]
fn a_command_that_does_not_work_at_all_is_not_checked() {
    run(|| {
        assert!(
            client(&[], &["false"])
                .stderr
                .contains("makes no connection")
        );
        let fails = "nbd info {uri} > /dev/null; false";
        let ended = client(&[], &["bash", "-c", fails]);
        assert!(
            ended.stderr.contains("a server that does everything right"),
            "{ended:?}"
        );
        ended.expect(2);
    });
}
