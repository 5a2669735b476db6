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

use interop::{LatencyProxy, ObjectStoreServer, run};

const LATENCY: Duration = Duration::from_millis(30);

/// Sends a request with this header and body, and returns the status of the answer.
fn request(host: SocketAddr, method: &str, path: &str, header: &str, body: &str) -> u16 {
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
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_store_for_s3_keeps_conditions_and_is_reached_over_a_long_line() {
    run(|| {
        let Some(store) = ObjectStoreServer::s3() else {
            return;
        };
        let line = LatencyProxy::new(store.address(), LATENCY);
        let put = |path, header, body| request(line.address(), "PUT", path, header, body);
        let start = Instant::now();
        let path = "/disks/some/object";
        let created = "If-None-Match: *\r\n";
        assert_eq!(put(path, created, "old"), 200);
        assert_eq!(put(path, created, "new"), 412);
        assert_eq!(put(path, "If-Match: \"x\"\r\n", "new"), 412);
        assert_eq!(request(line.address(), "HEAD", path, "", ""), 200);
        assert!(start.elapsed() >= 4 * LATENCY, "{:?}", start.elapsed());
        let counted: Vec<_> = line.requests().into_iter().collect();
        assert_eq!(counted, [("HEAD".to_owned(), 1), ("PUT".to_owned(), 3)]);
        assert_eq!(store.uri("a"), "s3://disks/a");
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
