//! `nbd info`, `list`, `map`, `dump` and `ping`, compared with nbdinfo's answers about the same
//! servers.
//!
//! It is longer than 500 lines because the five commands look at the same servers.

use crate::support::nbd;
use interop::{
    Certificates, Image, Listen, NbdServer, Nbdkit, Peer, QemuNbd, Server, deadline, require,
};
use serde_json::{Value, json};
use std::{fs, time::Duration};

/// Time limit of a test on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Servers of others with disks that have something to say.
fn servers() -> Vec<Server> {
    let image = || {
        let image = Image::qcow2(64 << 20)?;
        let image = image
            .io("write -P 7 1M 2M")
            .io("write -z 8M 1M")
            .bitmap("b0");
        Some(image.io("write -P 8 20M 64k").stop_bitmap("b0"))
    };
    let qemu = image().and_then(|image| {
        let server = QemuNbd::new(image).bitmap("b0").allocation_depth();
        server
            .read_only()
            .shared(4)
            .description("a disk\u{1b}[31m")
            .start()
    });
    let kits = [
        Nbdkit::new("memory").param("size=10M"),
        Nbdkit::new("pattern")
            .param("size=1M")
            .no_structured_replies()
            .read_only(),
        Nbdkit::new("sparse-random")
            .param("size=1G")
            .param("seed=1"),
        Nbdkit::new("memory")
            .param("size=1M")
            .filter("blocksize-policy")
            .param("blocksize-minimum=512")
            .param("blocksize-preferred=4096")
            .param("blocksize-maximum=65536"),
        Nbdkit::new("memory").param("size=1M").mask_handshake(0),
        Nbdkit::new("memory").param("size=1M").oldstyle(),
    ];
    qemu.into_iter()
        .chain(kits.into_iter().filter_map(Nbdkit::start))
        .collect()
}

fn nbdinfo(args: &[&str]) -> Option<Value> {
    let said = require(Peer::NbdInfo)?.run(args).expect_success();
    Some(serde_json::from_str(&said).expect("nbdinfo prints JSON"))
}

/// The values of `theirs` that `ours` must have, too.
fn assert_has(ours: &Value, theirs: &Value, what: &str) {
    let theirs = theirs.as_object().expect("nbdinfo prints objects");
    for (key, value) in theirs {
        // Each guesses the content in words of its own.
        if key != "content" && key != "exports" {
            assert_eq!(ours.get(key), Some(value), "{key} of {what}");
        }
    }
}

#[test]
fn info_agrees_with_nbdinfo() {
    deadline(LIMIT, || {
        for server in servers() {
            let uri = server.uri("");
            let Some(theirs) = nbdinfo(&["--json", &uri]) else {
                return;
            };
            let ours = nbd(["info", "--json", &uri]).json();
            assert_has(&ours, &theirs, &uri);
            assert_has(&ours["exports"][0], &theirs["exports"][0], &uri);
            assert_eq!(ours["schema"], json!(1));
            let size = nbd(["info", "--size", &uri]).expect(0);
            assert_eq!(size.trim(), theirs["exports"][0]["export-size"].to_string());
            let can = |feature: &str| nbd(["info", "--can", feature, &uri]).code;
            let export = &theirs["exports"][0];
            for (feature, key) in [
                ("flush", "can_flush"),
                ("multi-conn", "can_multi_conn"),
                ("df", "can_df"),
            ] {
                let code = if export[key] == json!(true) { 0 } else { 1 };
                assert_eq!(can(feature), Some(code), "{feature} of {uri}");
            }
        }
    });
}

#[test]
fn list_agrees_with_nbdinfo() {
    deadline(LIMIT, || {
        for server in servers() {
            let uri = server.uri("");
            let Some(nbdinfo) = require(Peer::NbdInfo) else {
                return;
            };
            let theirs = nbdinfo.run(["--list", "--json", &uri]);
            if !theirs.status.success() {
                // Exports of a server of the oldest kind cannot be listed.
                assert_eq!(nbd(["list", &uri]).code, Some(2));
                continue;
            }
            let theirs: Value = serde_json::from_str(&theirs.stdout).expect("nbdinfo prints JSON");
            let ours = nbd(["list", "--json", &uri]).json();
            assert_has(&ours, &theirs, &uri);
            let (ours, theirs) = (ours["exports"].as_array(), theirs["exports"].as_array());
            let (ours, theirs) = (ours.expect("an array"), theirs.expect("an array"));
            assert_eq!(ours.len(), theirs.len(), "{uri}");
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert_has(ours, theirs, &uri);
            }
        }
    });
}

#[test]
fn map_agrees_with_nbdinfo() {
    deadline(LIMIT, || {
        for server in servers() {
            let uri = server.uri("");
            let contexts = nbd(["info", "--json", &uri]).json()["exports"][0]["contexts"].clone();
            for context in contexts.as_array().expect("an array") {
                let context = context.as_str().expect("a name");
                let Some(theirs) = interop::map(&uri, context) else {
                    return;
                };
                let ours = nbd(["map", "--json", "--context", context, &uri]).json();
                let extents = ours["contexts"][0]["extents"]
                    .as_array()
                    .expect("an array")
                    .clone();
                let number = |extent: &Value, key: &str| extent[key].as_u64().expect("a number");
                let ours: Vec<(u64, u64, u64)> = extents
                    .iter()
                    .map(|extent| {
                        ["offset", "length", "type"]
                            .map(|key| number(extent, key))
                            .into()
                    })
                    .collect();
                assert_eq!(ours, theirs, "{context} of {uri}");
                // nbdinfo describes them in the same words.
                let said = nbdinfo(&["--json", &format!("--map={context}"), &uri]);
                for theirs in said
                    .expect("nbdinfo is there")
                    .as_array()
                    .expect("an array")
                {
                    let same = extents.iter().find(|ours| ours["type"] == theirs["type"]);
                    let same = same.expect("the same types");
                    assert_eq!(
                        same["description"], theirs["description"],
                        "{context} of {uri}"
                    );
                }
            }
        }
    });
}

#[test]
fn map_shows_contexts_side_by_side_and_parts_of_a_disk() {
    deadline(LIMIT, || {
        let Some(image) = Image::qcow2(4 << 20) else {
            return;
        };
        let image = image
            .io("write -P 7 1M 1M")
            .bitmap("b0")
            .io("write -P 8 1536k 1M")
            .stop_bitmap("b0");
        let Some(server) = QemuNbd::new(image).bitmap("b0").read_only().start() else {
            return;
        };
        let uri = server.uri("");
        let both = [
            "--context",
            "base:allocation",
            "--context",
            "qemu:dirty-bitmap:b0",
        ];
        let part = ["--offset", "1M", "--length", "2M"];
        let said = nbd(["map", &uri].iter().chain(&both).chain(&part)).expect(0);
        let lines: Vec<Vec<&str>> = said
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                vec!["1048576", "524288", "data", "clean"],
                vec!["1572864", "1048576", "data", "dirty"],
                vec!["2621440", "524288", "hole,zero", "clean"],
            ]
        );
        let totals = nbd(["map", "--totals", "--context", "qemu:dirty-bitmap:b0", &uri]).expect(0);
        assert_eq!(
            totals.split_whitespace().take(3).collect::<Vec<_>>(),
            ["3145728", "75.0", "%"]
        );
        let strip = nbd(["map", "--strip", "always", "--totals", &uri]).expect(0);
        assert!(
            strip.lines().last().expect("a strip").contains('█'),
            "{strip}"
        );
        let Some(none) = Nbdkit::new("memory")
            .param("size=1M")
            .no_structured_replies()
            .start()
        else {
            return;
        };
        let none = nbd(["map", "--all-contexts", &none.uri("")]);
        assert!(none.stderr.contains("has no meta contexts"), "{none:#?}");
        none.expect(2);
        let missing = nbd(["map", "--context", "qemu:dirty-bitmap:b1", &uri]);
        assert_eq!(missing.code, Some(2));
        assert!(
            missing.stderr.contains("no such meta context"),
            "{missing:#?}"
        );
    });
}

#[test]
fn text_of_a_server_does_not_reach_a_terminal_raw() {
    deadline(LIMIT, || {
        let image = Image::raw(1 << 20);
        let server = QemuNbd::new(image)
            .export_name("d\u{9b}31m")
            .description("\u{1b}]0;x\u{7}");
        let Some(server) = server.start() else { return };
        for command in ["info", "list"] {
            let said = nbd([command, &server.uri("d%C2%9B31m")]).expect(0);
            assert!(!said.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{said}");
            assert!(said.contains("\\u{1b}]0;x\\u{7}"), "{said}");
        }
    });
}

#[test]
fn dump_agrees_with_nbddump() {
    deadline(LIMIT, || {
        let Some(nbddump) = require(Peer::NbdDump) else {
            return;
        };
        let server = Nbdkit::new("data")
            .param("data=1 2 3 @0x10000 \"hello\" @0x20000 0*100 4")
            .start();
        let Some(server) = server else { return };
        let uri = server.uri("");
        let lines = |said: &str| -> Vec<String> {
            // Each marks columns and the end of the disk in its own way.
            let words = |line: &str| {
                line.split(['|', '│', '┊']).next().map(|left| {
                    left.split([' ', '·'])
                        .filter(|word| !word.is_empty())
                        .collect::<Vec<_>>()
                        .join(" ")
                })
            };
            said.lines().filter_map(words).collect()
        };
        let ours = nbd(["dump", &uri]).expect(0);
        let theirs = nbddump.run([&uri]).expect_success();
        assert_eq!(lines(&ours), lines(&theirs), "{ours}\n{theirs}");
        let part = nbd(["dump", "--offset", "64K", "--length", "5", &uri]).expect(0);
        assert_eq!(part.lines().count(), 1);
        assert!(part.ends_with("|hello|\n"), "{part}");
    });
}

/// The end of an export that is less than a block, at which no request can be made.
#[test]
fn bytes_that_cannot_be_reached_are_reported() {
    deadline(LIMIT, || {
        let server = Nbdkit::new("memory")
            .param("size=1000")
            .filter("blocksize-policy")
            .param("blocksize-minimum=512")
            .param("blocksize-error-policy=error");
        let Some(server) = server.start() else { return };
        let uri = server.uri("");
        let missing = "the last 488 of 1000 bytes, from 512 on, cannot be reached";
        let part = ["--offset", "600", "--length", "10"];
        for args in [
            vec!["dump"],
            vec!["map"],
            vec!["map", "--json"],
            [&["dump"][..], &part].concat(),
            [&["map", "--totals"][..], &part].concat(),
            vec!["compare", &uri],
            vec!["copy", &uri],
        ] {
            let ended = nbd([&args[..], &[&uri]].concat());
            assert_eq!(ended.code, Some(2), "{ended:#?}");
            assert!(ended.stderr.contains(missing), "{ended:#?}");
        }
        // Everything before is shown nevertheless.
        let dumped = nbd(["dump", &uri]).stdout;
        assert!(dumped.ends_with("0000000200:\n"), "{dumped}");
        let mapped: Value =
            serde_json::from_str(&nbd(["map", "--json", &uri]).stdout).expect("--json prints JSON");
        assert_eq!(mapped["export-size"], json!(1000));
        assert_eq!(mapped["length"], json!(512));
        for command in ["dump", "map"] {
            nbd([command, "--length", "512", &uri]).expect(0);
        }
        // These are about the rest.
        let bench = [
            "bench", "--time", "0.01", "--bs", "512", "--op", "read", &uri,
        ];
        for runtime in ["blocking", "tokio"] {
            let ended = nbd(bench.iter().chain(&["--runtime", runtime]));
            assert_eq!(ended.code, Some(0), "{ended:#?}");
            assert!(ended.stderr.contains(missing), "{ended:#?}");
        }
        assert!(nbd(["ping", "--count=1", &uri]).expect(0).contains(missing));
        let said = nbd(["info", &uri]).expect(0);
        assert!(said.contains("unreachable: the last 488 bytes"), "{said}");
        let said = nbd(["list", &uri]).expect(0);
        assert!(
            said.contains("the last 488 bytes cannot be reached"),
            "{said}"
        );
        for command in ["info", "list"] {
            let said = nbd([command, "--json", &uri]).json();
            assert_eq!(
                said["exports"][0]["unreachable-size"],
                json!(488),
                "{said:#}"
            );
        }
    });
}

#[test]
fn the_tls_session_and_the_servers_certificate_are_shown() {
    deadline(LIMIT, || {
        let certificates = Certificates::new();
        let server = Nbdkit::new("memory")
            .param("size=1M")
            .listen(Listen::Tcp4)
            .tls_required(&certificates);
        let Some(server) = server.start() else { return };
        let uri = server.tls_uri("", &certificates);
        let info = nbd(["info", "--json", &uri]).json();
        assert_eq!(info["TLS"], json!(true));
        assert_eq!(info["tls_session"]["version"], json!("TLS 1.3"));
        let names = &info["tls_session"]["certificate"]["names"];
        assert!(
            names.as_array().is_some_and(|names| !names.is_empty()),
            "{info:#}"
        );
        // The same without a URI that says so.
        let plain = uri.replace("nbds://", "nbd://");
        let plain = plain.split('?').next().expect("a split has a first part");
        let ca = certificates.ca_certificate();
        let ca = ca.to_str().expect("a path in UTF-8");
        let said = nbd(["info", "--tls", "always", "--tls-ca", ca, plain]).expect(0);
        assert!(said.contains("TLS 1.3"), "{said}");
        let refused = nbd(["info", plain]);
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains("TLS"), "{refused:#?}");
    });
}

#[test]
fn ping_names_the_step_that_failed() {
    deadline(LIMIT, || {
        let Some(server) = Nbdkit::new("memory")
            .param("size=1M")
            .listen(Listen::Tcp4)
            .start()
        else {
            return;
        };
        let uri = server.uri("");
        let said = nbd(["ping", "-c", "2", "-i", "0.001", &uri]).expect(0);
        let steps: Vec<&str> = said
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(
            steps,
            [
                "lookup",
                "connect",
                "headers",
                "export",
                "read",
                "read",
                "disconnect"
            ]
        );
        drop(server);
        let failed = nbd(["ping", &uri]);
        assert_eq!(failed.code, Some(2));
        assert!(failed.stderr.contains("cannot connect to"), "{failed:#?}");
        let nowhere = nbd(["ping", "nbd://nowhere.invalid"]);
        assert_eq!(nowhere.code, Some(2));
        assert!(
            nowhere
                .stderr
                .contains("cannot look up the host nowhere.invalid"),
            "{nowhere:#?}"
        );
    });
}

#[test]
fn ping_shows_every_message_in_both_directions() {
    deadline(LIMIT, || {
        let Some(server) = Nbdkit::new("memory").param("size=1M").start() else {
            return;
        };
        let ended = nbd(["ping", "-v", "--count=1", &server.uri("")]);
        let said = ended.stderr.clone();
        ended.expect(0);
        // In this order.
        let messages = [
            "the server has greeted",
            "the client's flags are sent",
            "an option is sent option=NBD_OPT_EXTENDED_HEADERS",
            "a reply is received option=NBD_OPT_EXTENDED_HEADERS reply=NBD_REP_ERR_UNSUP",
            "an option is sent option=NBD_OPT_STRUCTURED_REPLY",
            "a reply is received option=NBD_OPT_STRUCTURED_REPLY reply=NBD_REP_ACK",
            "an option is sent option=NBD_OPT_GO",
            "a reply is received option=NBD_OPT_GO reply=NBD_REP_INFO",
            "a reply is received option=NBD_OPT_GO reply=NBD_REP_ACK",
            "a request is sent command=NBD_CMD_READ",
            "a chunk is received kind=NBD_REPLY_TYPE_OFFSET_",
            "a request is sent command=NBD_CMD_DISC",
        ];
        let mut rest = said.as_str();
        for message in messages {
            let at = rest.find(message);
            let at = at.unwrap_or_else(|| panic!("{message}: {said}"));
            rest = &rest[at..];
        }
    });
}

#[test]
fn every_command_can_be_tried_without_a_server() {
    deadline(LIMIT, || {
        for args in [
            vec!["info"],
            vec!["list"],
            vec!["map"],
            vec!["dump"],
            vec!["ping", "-i", "0.001"],
        ] {
            assert!(!nbd(&args).expect(0).is_empty(), "{args:?}");
        }
        nbd(["copy", "--verify"]).expect(0);
        assert_eq!(nbd(["compare"]).expect(0), "identical\n");
        // One disk alone is a mistake.
        nbd(["copy", "disk.img"]).expect(2);
        nbd(["compare", "disk.img"]).expect(2);
        let dir = tempfile::tempdir().expect("a directory can be made");
        let file = dir.path().join("disk.img");
        fs::write(&file, b"hello").expect("a file can be written");
        let said = nbd(["dump".as_ref(), file.as_os_str()]).expect(0);
        assert!(said.ends_with("|hello|\n"), "{said}");
    });
}

#[test]
fn errors_in_arguments_name_the_expected_value() {
    for (args, said) in [
        (
            vec!["info", "nbd://host/?sokcet=1"],
            "the parameter `sokcet` at byte 12 is unknown",
        ),
        (vec!["info", "nbd:host:port"], "expected a decimal number"),
        (
            vec!["info", "/nonexistent/disk.img"],
            "cannot open /nonexistent/disk.img",
        ),
        (vec!["info", ""], "is a variable unset?"),
        (vec!["map", "--offset", "1X"], "got the suffix \"X\""),
        (
            vec!["map", "--offset", "16E"],
            "\"16E\" is 2^64 bytes or more",
        ),
        (vec!["copy", "--limit-rate", "0"], "at least one byte"),
        (vec!["map", "--context", "allocation"], "there is no colon"),
        (
            vec!["dump", "--offset", "1T"],
            "expected an --offset within the disk's 67108864 bytes",
        ),
        (
            vec!["dump", "--offset", "63M", "--length", "2M"],
            "a --length of at most 1048576 bytes, up to the end of the disk, got 2097152",
        ),
        (
            vec!["info", "--connect-timeout", "0"],
            "expected a positive number of seconds",
        ),
    ] {
        let ended = nbd(&args);
        assert_eq!(ended.code, Some(2), "{ended:#?}");
        assert!(ended.stderr.contains(said), "{ended:#?}");
    }
}

#[test]
fn an_export_that_cannot_be_read_is_described() {
    deadline(LIMIT, || {
        let server = Nbdkit::new("memory").param("size=1M").filter("error");
        let Some(server) = server
            .param("error-pread=EIO")
            .param("error-pread-rate=1")
            .start()
        else {
            return;
        };
        let said = nbd(["info", &server.uri("")]).expect(0);
        assert!(
            said.contains("content: cannot be read: ") && said.contains("EIO"),
            "{said}"
        );
        assert!(said.contains("is rotational"), "{said}");
        let json = nbd(["info", "--json", &server.uri("")]).json();
        let export = &json["exports"][0];
        assert!(export["content-error"].is_string(), "{json}");
        assert!(export["content"].is_null(), "{json}");
    });
}

#[test]
fn a_server_with_an_old_handshake_is_looked_at() {
    deadline(LIMIT, || {
        let Some(server) = NbdServer::new("disk", Image::raw(1 << 20)).start() else {
            return;
        };
        let said = nbd(["info", &server.uri("disk")]).expect(0);
        assert!(said.contains("1048576 bytes"), "{said}");
    });
}
