//! `nbd bench`.

use crate::support::nbd;
use interop::{Nbdkit, deadline};
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);

fn lines(said: &str) -> Vec<Value> {
    let parsed = said.lines().map(serde_json::from_str);
    parsed
        .collect::<Result<_, _>>()
        .expect("--json prints a document a line")
}

#[test]
fn each_runtime_makes_as_many_requests_as_asked_for() {
    deadline(LIMIT, || {
        for runtime in ["blocking", "tokio", "tokio-multi"] {
            for (op, depth, connections) in [
                ("read", 1, 1),
                ("write", 7, 2),
                ("mix", 64, 3),
                ("connect", 1, 1),
                ("connect", 16, 3),
            ] {
                let said = nbd([
                    "bench",
                    "--json",
                    "--runtime",
                    runtime,
                    "--op",
                    op,
                    "--ops",
                    "600",
                    "--depth",
                    &depth.to_string(),
                    "--connections",
                    &connections.to_string(),
                ])
                .expect(0);
                let [line] = lines(&said).try_into().expect("one workload");
                assert_eq!(line["ops"], 600, "{said}");
                assert_eq!(line["op"], op);
                let bytes = if op == "connect" { 0 } else { 600 * 4096 };
                assert_eq!(line["bytes"], bytes, "{said}");
                let micros = |key: &str| line[key].as_f64().expect("a number");
                assert!(micros("p50_us") > 0.0, "{said}");
                assert!(micros("p50_us") <= micros("p99_us"), "{said}");
                assert!(micros("p99_us") <= micros("max_us"), "{said}");
                assert_eq!(
                    line["cpu_secs"].is_number(),
                    runtime != "tokio-multi",
                    "{said}"
                );
            }
        }
    });
}

#[test]
fn time_ends_every_workload() {
    deadline(LIMIT, || {
        for runtime in ["blocking", "tokio"] {
            let said = nbd(["bench", "--json", "--time", "0.01", "--runtime", runtime]).expect(0);
            assert_eq!(lines(&said).len(), 9, "{said}");
        }
    });
}

#[test]
fn each_connection_makes_a_request() {
    deadline(LIMIT, || {
        let args = "bench --json --op read --ops 5 --connections 8";
        let said = nbd(args.split(' ')).expect(0);
        assert_eq!(lines(&said)[0]["ops"], 8, "{said}");
        for none in ["--ops=0", "--bytes=0"] {
            nbd(["bench", none]).expect(2);
        }
    });
}

#[test]
fn a_file_can_be_written() {
    deadline(LIMIT, || {
        let file = tempfile::NamedTempFile::new().expect("a file can be made");
        file.as_file().set_len(4096).expect("it can be made longer");
        let args = "bench --op write --ops 1 --destroy-data";
        let path = file.path().to_str().expect("UTF-8");
        nbd(args.split(' ').chain([path])).expect(0);
        let written = std::fs::read(path).expect("it is there");
        assert!(written == [0x5a; 4096]);
    });
}

#[test]
fn nothing_is_written_without_permission() {
    deadline(LIMIT, || {
        let Some(server) = Nbdkit::new("memory").param("size=1M").start() else {
            return;
        };
        let uri = server.uri("");
        for op in ["write", "mix"] {
            let refused = nbd(["bench", "--op", op, "--ops", "1", &uri]);
            assert_eq!(refused.code, Some(2));
            assert!(refused.stderr.contains("--destroy-data"), "{refused:#?}");
        }
        let said = nbd(["bench", "--json", "--time", "0.01", &uri]).expect(0);
        assert!(
            lines(&said).iter().all(|line| line["op"] != "write"),
            "{said}"
        );
        let zero = nbd(["map", "--totals", &uri]).expect(0);
        assert!(
            zero.contains("hole,zero") && !zero.contains("data"),
            "{zero}"
        );
        let said = nbd([
            "bench",
            "--json",
            "--op",
            "write",
            "--ops",
            "1",
            "--destroy-data",
            &uri,
        ]);
        assert_eq!(lines(&said.expect(0)).len(), 1);
    });
}

#[test]
fn the_table_has_a_line_for_each_workload() {
    deadline(LIMIT, || {
        let said = nbd(["bench", "--time", "0.01"]).expect(0);
        assert_eq!(said.lines().count(), 10, "{said}");
        assert!(said.lines().all(|line| line.len() <= 100), "{said}");
    });
}
