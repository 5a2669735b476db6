//! Limits of clients, and of their time.

use crate::support::{Serving, failed, run_nbd};
use interop::run;
use nbd_blocking::Client;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

#[test]
fn connections_are_bounded() {
    run(|| {
        let serving = Serving::new("--memory 1M --max-connections 1").ready();
        let client = nbd_blocking::connect(&serving.uri("")).unwrap();
        // It is not idle.
        client.read_at(&mut [0; 1], 0).unwrap();
        failed(&run_nbd(["info", &serving.uri("")]));
    });
}

#[test]
fn connections_of_each_client_are_bounded() {
    run(|| {
        let mut serving = Serving::prepared(
            |_| {},
            |command, _| {
                command.args("--memory 1M --listen 127.0.0.1:0 --client-connections 1".split(' '));
            },
        );
        let uri = serving.line();
        let client = nbd_blocking::connect(&uri).unwrap();
        client.read_at(&mut [0; 1], 0).unwrap();
        failed(&run_nbd(["info", &uri]));
        client.disconnect().unwrap();
    });
}

/// Number of bytes that the server sends before it closes the connection.
fn received(mut stream: &UnixStream) -> usize {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap()
}

#[test]
fn silent_clients_are_left() {
    run(|| {
        let options = "--memory 1M --handshake-timeout 0.1 --idle-timeout 0.1";
        let serving = Serving::new(options).ready();
        let connect = || UnixStream::connect(serving.path("socket")).unwrap();
        const GREETING: usize = 18;
        assert_eq!(received(&connect()), GREETING);
        let mut idle = connect();
        // No zeroes, fixed newstyle, and the default export by the option that ends negotiation.
        idle.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
            .unwrap();
        assert_eq!(received(&idle), GREETING + 10);
    });
}

/// The time that so many reads take, many at a time.
fn read(client: &Client, times: usize, len: usize) -> Duration {
    let start = Instant::now();
    let mut queue = client.queue();
    for _ in 0..times {
        queue.read(vec![0; len], 0).unwrap();
    }
    while let Some(completion) = queue.complete().unwrap() {
        completion.into_buffer().unwrap();
    }
    start.elapsed()
}

#[test]
fn rates_hold_within_a_fifth() {
    run(|| {
        for (option, times, len) in [
            ("--max-requests 500", 500, 512),
            ("--client-requests 500", 500, 512),
            ("--max-rate 16M", 64, 256 << 10),
            ("--client-rate 16M", 64, 256 << 10),
        ] {
            let serving = Serving::new(&format!("--memory 1M {option}")).ready();
            let client = nbd_blocking::connect(&serving.uri("")).unwrap();
            // Use up the tokens that were saved up.
            read(&client, times / 4, len);
            // A thread may be held up, and then it takes longer.
            let is_right = (0..10).any(|_| {
                let took = read(&client, times, len);
                assert!(took >= Duration::from_millis(800), "{option}: {took:?}");
                took <= Duration::from_millis(1200)
            });
            assert!(is_right, "{option}: it always takes longer");
        }
    });
}
