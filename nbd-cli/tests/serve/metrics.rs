//! The metrics that Prometheus reads.

use crate::support::{Serving, run_nbd, succeeded};
use interop::run;
use nbd_blocking::Client;
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
};

/// A server that is asked for metrics at this address.
pub(crate) fn serve(args: &str) -> (Serving, String) {
    let serving = Serving::new(&format!("{args} --metrics 127.0.0.1:0"));
    let mut serving = serving.ready();
    let said = serving.said();
    let (_, address) = said.split_once("metrics at http://").unwrap();
    let address = address.strip_suffix("/metrics").unwrap().to_owned();
    (serving, address)
}

/// Asks by HTTP. Returns the status and the text.
fn ask(address: &str, line: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let question = format!("{line} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(question.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let is_head = line.starts_with("HEAD");
    assert!(is_head || length == Some(&text.len().to_string()), "{head}");
    (head.lines().next().unwrap().to_owned(), text.to_owned())
}

/// The numbers, each of which has a help and a type, and belongs to the metric before it.
pub(crate) fn scrape(address: &str) -> BTreeMap<String, f64> {
    let (status, text) = ask(address, "GET /metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    let mut numbers = BTreeMap::new();
    let mut metric = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            metric = help.split_once(' ').unwrap().0.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(name == metric && ["counter", "gauge", "histogram"].contains(&kind));
        } else {
            let (series, number) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with(&metric), "{line}");
            let number = number.parse().unwrap();
            assert!(
                numbers.insert(series.to_owned(), number).is_none(),
                "{line}"
            );
        }
    }
    numbers
}

#[test]
fn requests_and_connections_are_counted() {
    run(|| {
        let (serving, address) = serve("--memory a=1M --memory b=1M");
        let connect = |name: &str| nbd_blocking::connect(&serving.uri(name)).unwrap();
        let numbers = scrape(&address);
        assert_eq!(numbers["nbd_connections"], 0.0);
        // The default export has a name.
        let clients: [Client; 3] = [connect("a"), connect(""), connect("b")];
        for client in &clients {
            client.read_at(&mut [0; 4096], 0).unwrap();
        }
        clients[0].write_at(&[1; 512], 512).unwrap();
        clients[0].flush().unwrap();
        let numbers = scrape(&address);
        for (series, number) in [
            ("nbd_connections", 3.0),
            ("nbd_connections_accepted_total", 3.0),
            ("nbd_export_connections{export=\"a\"}", 2.0),
            ("nbd_export_connections{export=\"b\"}", 1.0),
            (
                "nbd_requests_total{export=\"a\",command=\"read\",result=\"ok\"}",
                2.0,
            ),
            (
                "nbd_requests_total{export=\"b\",command=\"read\",result=\"ok\"}",
                1.0,
            ),
            (
                "nbd_requests_total{export=\"a\",command=\"write\",result=\"ok\"}",
                1.0,
            ),
            (
                "nbd_requests_total{export=\"a\",command=\"flush\",result=\"ok\"}",
                1.0,
            ),
            (
                "nbd_request_bytes_total{export=\"a\",command=\"read\"}",
                8192.0,
            ),
            (
                "nbd_request_bytes_total{export=\"a\",command=\"write\"}",
                512.0,
            ),
            (
                "nbd_request_duration_seconds_count{export=\"a\",command=\"read\"}",
                2.0,
            ),
            (
                "nbd_request_duration_seconds_bucket{export=\"a\",command=\"read\",le=\"+Inf\"}",
                2.0,
            ),
        ] {
            assert_eq!(numbers.get(series), Some(&number), "{series}");
        }
        for client in clients {
            client.disconnect().unwrap();
        }
        while scrape(&address)["nbd_connections"] != 0.0 {}
        let numbers = scrape(&address);
        assert_eq!(
            numbers["nbd_connections_closed_total{reason=\"disconnected\"}"],
            3.0
        );
        assert_eq!(ask(&address, "HEAD /metrics").0, "HTTP/1.1 200 OK");
        assert_eq!(ask(&address, "GET /else").0, "HTTP/1.1 404 Not Found");
        assert_eq!(
            ask(&address, "POST /metrics").0,
            "HTTP/1.1 405 Method Not Allowed"
        );
    });
}

#[test]
fn a_copy_takes_two_connections_of_a_server_on_this_machine_or_as_many_as_it_was_given() {
    run(|| {
        let (serving, address) = serve("--memory a=4M");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("copy").to_str().unwrap().to_owned();
        let mut accepted = 0.0;
        let cases = [
            (None, 2.0),
            (Some("1"), 1.0),
            (Some("3"), 3.0),
            (Some("4"), 4.0),
        ];
        for (given, expected) in cases {
            let uri = serving.uri("a");
            let mut args = vec!["copy", "--quiet", &uri, &file];
            args.extend(given.iter().flat_map(|given| ["--connections", given]));
            succeeded(&run_nbd(args));
            let before = accepted;
            accepted = scrape(&address)["nbd_connections_accepted_total"];
            assert_eq!(accepted - before, expected, "{given:?}");
        }
    });
}

#[test]
fn many_exports_are_listed_over_several_connections() {
    run(|| {
        let disks: String = (0..40)
            .map(|number| format!("--memory {number}=1M "))
            .collect();
        let (serving, address) = serve(disks.trim_end());
        let listed = succeeded(&run_nbd(["list", &serving.uri("")]));
        assert_eq!(listed.lines().count(), 40);
        // A question waits for the answer to the one before, and the server may be far away.
        assert_eq!(scrape(&address)["nbd_connections_accepted_total"], 8.0);
    });
}

#[test]
fn slow_scrapers_hold_up_no_client_and_no_other_scraper_for_long() {
    run(|| {
        let (serving, address) = serve("--memory 1M");
        let _slow: Vec<_> = (0..9)
            .map(|_| {
                let mut stream = TcpStream::connect(&address).unwrap();
                stream.write_all(b"GET /met").unwrap();
                stream
            })
            .collect();
        let client = nbd_blocking::connect(&serving.uri("")).unwrap();
        client.read_at(&mut [0; 4096], 0).unwrap();
        assert_eq!(scrape(&address)["nbd_connections"], 1.0);
    });
}
