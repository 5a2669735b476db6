//! What clients may take, and how long.

use crate::support::{Serving, failed, run_nbd};
use interop::run;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
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

/// What the server sends before it closes the connection.
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
