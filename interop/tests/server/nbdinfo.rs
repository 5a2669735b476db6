//! libnbd's `nbdinfo` asks for all the information there is.

use std::sync::Arc;

use crate::runtime::Server;
use interop::{Certificates, KIB, Listen, MIB, Peer, Program, info, map, require, run};
use nbd_blocking::{BlockSizes, HeaderStyle};
use nbd_io::{Export, Memory, NamedExports};
use serde_json::{Value, json};

use crate::{
    exports::{Bare, Call, PARITY, Spy},
    serving::{Serving, many, name, server, tls},
};

/// Runs a test's body with `nbdinfo`, or not at all.
fn with_nbdinfo(body: impl FnOnce(&Program) + Send + 'static) {
    if let Some(nbdinfo) = require(Peer::NbdInfo) {
        run(move || body(&nbdinfo));
    }
}

fn json(nbdinfo: &Program, args: &[&str]) -> Value {
    let said = nbdinfo.run(args).expect_success();
    serde_json::from_str(&said).unwrap()
}

/// Checks that `found` says everything that `expected` does.
#[track_caller]
fn assert_says(found: &Value, expected: &Value) {
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&found[key], value, "{key} in {found:#}");
    }
}

/// Three exports, of which "disk" is the default one as well.
fn three() -> Server {
    let sizes = BlockSizes::new(512, 8192, 1 << 20).unwrap();
    let disk = Memory::new(4 * MIB).with_description("the disk itself");
    let blocks = Memory::new(MIB).with_block_sizes(sizes).read_only();
    Server::new(
        NamedExports::new()
            .with(name("disk"), Arc::new(disk))
            .with(name("of blocks"), Arc::new(blocks))
            .with(name("bare"), Arc::new(Bare))
            .with_default(name("disk")),
    )
}

fn disk() -> Value {
    json!({
        "export-name": "disk",
        "description": "the disk itself",
        "export-size": 4 * MIB,
        "contexts": ["base:allocation"],
        "is_rotational": false,
        "is_read_only": false,
        "can_cache": true,
        "can_df": true,
        "can_fast_zero": true,
        "can_flush": true,
        "can_fua": true,
        "can_multi_conn": true,
        "can_trim": true,
        "can_zero": true,
        "block_size_minimum": 1,
        "block_size_preferred": 4096,
        "block_size_maximum": 32 * MIB,
    })
}

fn of_blocks() -> Value {
    json!({
        "export-name": "of blocks",
        "export-size": MIB,
        "is_read_only": true,
        "can_fast_zero": false,
        "can_trim": false,
        "can_zero": false,
        "can_multi_conn": true,
        "block_size_minimum": 512,
        "block_size_preferred": 8192,
        "block_size_maximum": MIB,
    })
}

fn bare() -> Value {
    json!({
        "export-name": "bare",
        "export-size": 12_345,
        "is_read_only": true,
        "can_cache": false,
        "can_df": true,
        "can_flush": false,
        "can_fua": false,
        "can_multi_conn": false,
        "can_trim": false,
        "can_zero": false,
    })
}

#[test]
fn every_property_of_an_export_arrives() {
    run(|| {
        let serving = Serving::new(three(), Listen::Unix);
        for expected in [disk(), of_blocks(), bare()] {
            let name = expected["export-name"].as_str().unwrap();
            let Some(found) = info(&serving.uri(name)) else {
                return;
            };
            assert_says(&found, &expected);
        }
        // The default export has a name.
        let found = info(&serving.uri("")).unwrap();
        assert_eq!(found["export-size"], 4 * MIB);
    });
}

#[test]
fn the_text_for_people_says_the_same() {
    with_nbdinfo(|nbdinfo| {
        let certificates = Certificates::new();
        let server = three().offer_tls(&tls(&certificates)).unwrap();
        let serving = Serving::new(server, Listen::Tcp4);
        for (uri, how) in [
            (serving.uri("disk"), "without TLS"),
            (serving.tls_uri("disk", &certificates), "with TLS"),
        ] {
            let said = nbdinfo.run(["--no-color", &uri]).expect_success();
            for line in [
                "export=\"disk\":",
                "description: the disk itself",
                "export-size: 4194304 (4M)",
                "base:allocation",
                "can_fua: true",
                "block_size_maximum: 33554432",
            ] {
                // Some versions add a number in words.
                let mut said_lines = said.lines().map(str::trim);
                assert!(said_lines.any(|said| said.starts_with(line)), "{said}");
            }
            assert!(said.starts_with(&format!("protocol: newstyle-fixed {how}, using ")));

            let colourful = nbdinfo.run(["--color", &uri]).expect_success();
            assert!(colourful.contains("\x1b[") && !said.contains('\x1b'));
            assert!(colourful.contains("the disk itself"));
        }
    });
}

#[test]
fn a_size_is_announced_to_the_byte() {
    with_nbdinfo(|nbdinfo| {
        for size in [0, 1, 511, MIB + 1, (1 << 62) + 3, (1 << 63) - 1] {
            let serving = Serving::disk(Arc::new(Memory::new(size)));
            let said = nbdinfo
                .run(["--size", &serving.uri("disk")])
                .expect_success();
            assert_eq!(said.trim(), size.to_string());
        }
    });
}

#[test]
fn all_exports_are_listed_with_their_properties() {
    with_nbdinfo(|nbdinfo| {
        let serving = Serving::new(three(), Listen::Unix);
        let uri = serving.uri("");
        let list = json(nbdinfo, &["--list", "--json", &uri]);
        let exports = list["exports"].as_array().unwrap();
        let expected = [bare(), disk(), of_blocks()];
        assert_eq!(exports.len(), expected.len(), "{list:#}");
        for (found, expected) in exports.iter().zip(&expected) {
            assert_says(found, expected);
        }

        let said = nbdinfo.run(["--list", &uri]).expect_success();
        let names: Vec<_> = said
            .lines()
            .filter(|line| line.starts_with("export="))
            .collect();
        assert_eq!(
            names,
            [
                "export=\"bare\":",
                "export=\"disk\":",
                "export=\"of blocks\":"
            ]
        );
        assert!(said.contains("description: the disk itself"));
    });
}

#[test]
fn thousands_of_exports_are_listed() {
    with_nbdinfo(|nbdinfo| {
        let serving = Serving::new(many(5_000), Listen::Unix);
        let said = nbdinfo.run(["--list", &serving.uri("")]).expect_success();
        let names = said.lines().filter(|line| line.starts_with("export="));
        assert_eq!(names.count(), 5_000);
    });
}

#[test]
fn a_server_that_does_not_list_refuses_politely() {
    with_nbdinfo(|nbdinfo| {
        let serving = Serving::new(three().listing(false), Listen::Unix);
        let refused = nbdinfo.run(["--list", &serving.uri("")]).expect_failure();
        assert!(refused.contains("list"), "{refused}");
        assert!(info(&serving.uri("disk")).is_some());
    });
}

#[test]
fn content_is_read_where_it_is_wanted() {
    with_nbdinfo(|nbdinfo| {
        let spy = Spy::new(MIB);
        spy.put(
            0,
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x07\0\0\0\x09\x08\x06\0\0\0",
        );
        let serving = Serving::disk(Arc::clone(&spy) as Arc<dyn Export>);
        let uri = serving.uri("disk");
        for (args, wanted) in [
            (vec!["--json", &uri], true),
            (vec!["--json", "--content", "--list", &uri], true),
            (vec!["--json", "--no-content", &uri], false),
            (vec!["--json", "--list", &uri], false),
        ] {
            let found = json(nbdinfo, &args);
            let read = spy.calls();
            let of_start = |call: &Call| matches!(call, Call::Read { offset: 0, .. });
            assert_eq!(read.iter().any(of_start), wanted, "{args:?}: {read:?}");
            if let Some(content) = found["exports"][0]["content"].as_str() {
                // Only where file(1) is installed.
                assert!(
                    wanted && content.contains("PNG image data, 7 x 9"),
                    "{content}"
                );
            }
        }
    });
}

#[test]
fn a_map_shows_holes_where_they_are() {
    with_nbdinfo(|nbdinfo| {
        let spy = Spy::new(4 * MIB);
        spy.put(MIB, &[1; 64 << 10]);
        spy.put(3 * MIB, &[2; 1 << 20]);
        let serving = Serving::disk(Arc::clone(&spy) as Arc<dyn Export>);
        let uri = serving.uri("disk");

        let (data, hole) = (0, 3);
        let expected = [
            (0, MIB, hole),
            (MIB, 64 * KIB, data),
            (MIB + 64 * KIB, 2 * MIB - 64 * KIB, hole),
            (3 * MIB, MIB, data),
        ];
        assert_eq!(map(&uri, "base:allocation").unwrap(), expected);
        let parity = [
            (0, MIB, 0),
            (MIB, MIB, 1),
            (2 * MIB, MIB, 0),
            (3 * MIB, MIB, 1),
        ];
        assert_eq!(map(&uri, PARITY).unwrap(), parity);

        let said = nbdinfo.run(["--map", &uri]).expect_success();
        let lines: Vec<Vec<_>> = said
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines,
            [
                ["0", "1048576", "3", "hole,zero"],
                ["1048576", "65536", "0", "data"],
                ["1114112", "2031616", "3", "hole,zero"],
                ["3145728", "1048576", "0", "data"],
            ]
        );

        let totals = json(nbdinfo, &["--map", "--totals", "--json", &uri]);
        let total = |status: u64| {
            let mut totals = totals.as_array().unwrap().iter();
            let total = totals.find(|total| total["type"] == status).unwrap();
            total["size"].as_u64().unwrap()
        };
        assert_eq!(
            (total(data), total(hole)),
            (MIB + 64 * KIB, 3 * MIB - 64 * KIB)
        );
        let said = nbdinfo.run(["--map", "--totals", &uri]).expect_success();
        assert!(said.contains("26.6%") && said.contains("73.4%"), "{said}");

        let refused = nbdinfo.run(["--map=no:such", &uri]).expect_failure();
        assert!(refused.contains("no:such"), "{refused}");
    });
}

/// Asks about each property, and checks that the answer is yes just for those in `yes`.
#[track_caller]
fn assert_can(nbdinfo: &Program, uri: &str, yes: &[&str]) {
    for (option, property) in [
        ("--can", "connect"),
        ("--can", "read"),
        ("--can", "write"),
        ("--can", "structured-reply"),
        ("--can", "cache"),
        ("--can", "df"),
        ("--can", "fast-zero"),
        ("--can", "flush"),
        ("--can", "fua"),
        ("--can", "multi-conn"),
        ("--can", "trim"),
        ("--can", "zero"),
        ("--is", "read-only"),
        ("--is", "rotational"),
        ("--is", "tls"),
    ] {
        let finished = nbdinfo.run([option, property, uri]);
        let expected = if yes.contains(&property) { 0 } else { 2 };
        let status = finished.status.code();
        assert_eq!(status, Some(expected), "{property}: {}", finished.stderr);
    }
}

#[test]
fn each_property_is_answered_by_itself() {
    with_nbdinfo(|nbdinfo| {
        let certificates = Certificates::new();
        let everything = [
            "connect",
            "read",
            "write",
            "structured-reply",
            "cache",
            "df",
            "fast-zero",
            "flush",
            "fua",
            "multi-conn",
            "trim",
            "zero",
            "rotational",
            "tls",
        ];
        let encrypted = server(Spy::new(MIB))
            .require_tls(&tls(&certificates))
            .unwrap();
        let serving = Serving::new(encrypted, Listen::Tcp4);
        assert_can(
            nbdinfo,
            &serving.tls_uri("disk", &certificates),
            &everything,
        );

        let serving = Serving::disk(Arc::new(Memory::new(MIB).read_only()));
        let some = [
            "connect",
            "read",
            "structured-reply",
            "cache",
            "df",
            "flush",
            "fua",
            "multi-conn",
            "read-only",
        ];
        assert_can(nbdinfo, &serving.uri("disk"), &some);

        let simple = server(Arc::new(Bare))
            .structured_replies(false)
            .extended_headers(false);
        let serving = Serving::new(simple, Listen::Unix);
        assert_can(
            nbdinfo,
            &serving.uri("disk"),
            &["connect", "read", "read-only"],
        );
        assert!(
            serving
                .stop()
                .modes()
                .iter()
                .all(|mode| *mode == HeaderStyle::Simple)
        );
    });
}

#[test]
fn an_export_that_is_not_there_is_refused_with_words() {
    with_nbdinfo(|nbdinfo| {
        let serving = Serving::new(three(), Listen::Unix);
        let refused = nbdinfo.run([&serving.uri("other")]).expect_failure();
        assert!(refused.contains("No such file or directory"), "{refused}");
    });
}

#[test]
fn exports_for_tls_only_are_hidden_without_it() {
    with_nbdinfo(|nbdinfo| {
        let certificates = Certificates::new();
        let server = Server::new(
            NamedExports::new()
                .with(name("open"), Arc::new(Memory::new(MIB)))
                .with_tls_only(name("secret"), Arc::new(Memory::new(2 * MIB))),
        );
        let server = server.offer_tls(&tls(&certificates)).unwrap();
        let serving = Serving::new(server, Listen::Tcp4);

        let secret = serving.tls_uri("secret", &certificates);
        let said = nbdinfo.run(["--size", &secret]).expect_success();
        assert_eq!(said.trim(), (2 * MIB).to_string());
        let _why = nbdinfo.run([&serving.uri("secret")]).expect_failure();
        let said = nbdinfo
            .run(["--size", &serving.uri("open")])
            .expect_success();
        assert_eq!(said.trim(), MIB.to_string());

        let sizes = |list: &Value| -> Vec<Value> {
            let exports = list["exports"].as_array().unwrap().iter();
            exports
                .map(|export| export["export-size"].clone())
                .collect()
        };
        let list = json(nbdinfo, &["--list", "--json", &secret]);
        assert_eq!(sizes(&list), [json!(MIB), json!(2 * MIB)]);
        let list = json(nbdinfo, &["--list", "--json", &serving.uri("")]);
        assert_eq!(sizes(&list), [json!(MIB)]);
    });
}
