//! Servers of object stores, and the long line to them.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use interop::{LatencyProxy, MemoryStore, ObjectStoreServer, run};

const LATENCY: Duration = Duration::from_millis(30);

/// Sends a request with this header and body, and returns the answer.
fn ask(host: SocketAddr, method: &str, path: &str, header: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(host).unwrap();
    // moto wants to know who asks, and does not look at the signature.
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n{header}\
         Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The same, and returns the status of the answer.
fn request(host: SocketAddr, method: &str, path: &str, header: &str, body: &str) -> u16 {
    let answer = ask(host, method, path, header, body);
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The conditions that disks are built on.
fn keeps_conditions(host: SocketAddr) {
    let put = |header, body| request(host, "PUT", "/disks/some/object", header, body);
    let created = "If-None-Match: *\r\n";
    assert_eq!(put(created, "old"), 200);
    assert_eq!(put(created, "new"), 412);
    assert_eq!(put("If-Match: \"x\"\r\n", "new"), 412);
    assert_eq!(request(host, "HEAD", "/disks/some/object", "", ""), 200);
}

#[test]
fn a_store_for_s3_keeps_conditions_and_is_reached_over_a_long_line() {
    run(|| {
        let Some(store) = ObjectStoreServer::s3() else {
            return;
        };
        let line = LatencyProxy::new(store.address(), LATENCY);
        let start = Instant::now();
        keeps_conditions(line.address());
        assert!(start.elapsed() >= 4 * LATENCY, "{:?}", start.elapsed());
        let counted: Vec<_> = line.requests().into_iter().collect();
        assert_eq!(counted, [("HEAD".to_owned(), 1), ("PUT".to_owned(), 3)]);
        assert_eq!(store.uri("a"), "s3://disks/a");
    });
}

#[test]
fn a_store_in_memory_keeps_conditions_and_answers_after_its_latency() {
    run(|| {
        let store = MemoryStore::s3(LATENCY);
        let host = store.address();
        let start = Instant::now();
        keeps_conditions(host);
        assert!(start.elapsed() >= 4 * LATENCY, "{:?}", start.elapsed());
        let traffic = store.traffic();
        assert_eq!(traffic.requests["PUT"], 3);
        assert_eq!(traffic.most_in_flight, 1);
        store.set_latency(Duration::ZERO);
        let at = |path, header| ask(host, "GET", path, header, "");
        let part = at("/disks/some/object", "Range: bytes=1-1\r\n");
        assert!(part.starts_with("HTTP/1.1 206"), "{part}");
        assert!(part.ends_with("\r\n\r\nl"), "{part}");
        let behind = at("/disks/some/object", "Range: bytes=3-4\r\n");
        assert!(behind.starts_with("HTTP/1.1 416"), "{behind}");
        for number in 0..3 {
            assert_eq!(
                request(host, "PUT", &format!("/disks/a/{number}"), "", ""),
                200
            );
        }
        let first = at("/disks?list-type=2&prefix=a/&max-keys=2", "");
        assert!(first.contains("<Key>a/1</Key>"), "{first}");
        assert!(first.contains("<NextContinuationToken>a/1<"), "{first}");
        let next = at("/disks?list-type=2&prefix=a/&continuation-token=a/1", "");
        assert!(next.contains("<KeyCount>1</KeyCount>"), "{next}");
        let keys = "<Delete><Object><Key>a/0</Key></Object></Delete>";
        assert_eq!(request(host, "POST", "/disks?delete", "", keys), 200);
        assert_eq!(request(host, "HEAD", "/disks/a/0", "", ""), 404);
        assert_eq!(request(host, "DELETE", "/disks/a/1", "", ""), 204);
        assert_eq!(request(host, "POST", "/disks/a/2?uploads", "", ""), 501);
    });
}

/// <https://cloud.google.com/storage/docs/request-preconditions>
#[test]
fn a_store_in_memory_keeps_the_conditions_of_googles() {
    run(|| {
        let store = MemoryStore::gcs(Duration::ZERO);
        let at = |method, path: &str, header: &str, body| {
            let answer = ask(store.address(), method, path, header, body);
            let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
            let generation = answer.lines().find_map(|line| {
                let number = line.strip_prefix("x-goog-generation: ")?;
                Some(number.parse::<u64>().unwrap())
            });
            (status, generation)
        };
        let condition = |generation| format!("x-goog-if-generation-match: {generation}\r\n");
        let put = |generation, body| at("PUT", "/disks/a", &condition(generation), body);
        assert_eq!(put(7, "none"), (412, None));
        let (created, first) = put(0, "old");
        assert_eq!((created, first.is_some()), (200, true));
        assert_eq!(put(0, "new"), (412, None));
        assert_eq!(at("GET", "/disks/a", "", ""), (200, first));
        let (swapped, second) = put(first.unwrap(), "old");
        assert_eq!(swapped, 200);
        assert!(second > first, "also with the same bytes");
        assert_eq!(put(first.unwrap(), "new"), (412, None));
        // The conditions of S3 are none here.
        let (done, third) = at("PUT", "/disks/a", "If-None-Match: *\r\n", "new");
        assert_eq!(done, 200);
        assert_eq!(at("HEAD", "/disks/a", "", ""), (200, third));
        let delete = |generation| at("DELETE", "/disks/a", &condition(generation), "").0;
        assert_eq!(delete(first.unwrap()), 412);
        assert_eq!(delete(third.unwrap()), 204);
        assert_eq!(at("DELETE", "/disks/a", "", "").0, 404);
        assert_eq!(at("POST", "/disks?delete", "", "<Delete/>").0, 501);
        // Names are reused, and generations are not.
        assert!(put(0, "old").1 > third);
        assert_eq!(store.uri("a"), "gs://disks/a");
    });
}

#[test]
fn a_store_for_azure_has_a_container() {
    run(|| {
        let Some(store) = ObjectStoreServer::azure() else {
            return;
        };
        // It is there, but not for strangers.
        assert_eq!(
            request(store.address(), "GET", "/devstoreaccount1/disks/x", "", ""),
            403
        );
        assert_eq!(store.uri("a"), "az://disks/a");
    });
}
