//! Foreign servers that are clients of ours: nbdkit's plugin `nbd`, and QEMU's block layer with an
//! export of its own.

use std::sync::Arc;

use interop::{
    Certificates, KIB, Listen, MIB, Nbdkit, Peer, Program, StorageDaemon, assert_same, info, map,
    pattern, require, run,
};

use crate::{
    block_jobs::{add_nbd, export},
    exports::{Call, Spy},
    nbdsh::{all_commands, script},
    qemu,
    serving::{Serving, server, strict},
};

/// An nbdkit that forwards requests to the server at this URI.
pub(crate) fn nbdkit(uri: &str) -> Nbdkit {
    // It does not let URIs name files, and has parameters instead.
    let (uri, certificates) = match uri.split_once("?tls-certificates=") {
        Some((uri, certificates)) => (uri, Some(certificates)),
        None => (uri, None),
    };
    let nbdkit = Nbdkit::new("nbd").param(format!("uri={uri}"));
    match certificates {
        Some(dir) => nbdkit.param(format!("tls-certificates={dir}")),
        None => nbdkit,
    }
}

#[test]
fn nbdkit_forwards_requests_to_the_server() {
    run(|| {
        let spy = Spy::new(4 * MIB);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let Some(front) = nbdkit(&serving.uri("disk")).start() else {
            return;
        };
        let uri = front.uri("");
        if script("commands.py", &format!("uri = {uri:?}")).is_none() {
            return;
        }
        let mut calls = spy.calls();
        calls.retain(|call| !matches!(call, Call::Read { .. }));
        assert_eq!(calls, all_commands());

        spy.put(2 * MIB, &pattern(1, 64 * KIB));
        let theirs = map(&uri, "base:allocation").unwrap();
        assert_eq!(
            theirs,
            map(&serving.uri("disk"), "base:allocation").unwrap()
        );
        let [behind, direct] = [&uri, &serving.uri("disk")].map(|uri| info(uri).unwrap());
        for property in [
            "export-size",
            "is_rotational",
            "is_read_only",
            "can_cache",
            "can_fast_zero",
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_trim",
            "can_zero",
            "block_size_minimum",
            "block_size_preferred",
        ] {
            assert_eq!(behind[property], direct[property], "{property}");
        }
    });
}

/// The contents that `exercise.py` leaves when no other client uses this export.
pub(crate) fn exercise(uri: &str, structured: &str) -> Option<()> {
    let lines = format!("uri = {uri:?}; structured = {structured}");
    script("exercise.py", &lines).map(drop)
}

#[test]
fn everything_is_done_at_odd_places() {
    run(|| {
        let certificates = Certificates::new();
        let mut outcomes = Vec::new();
        for structured in ["True", "False"] {
            let spy = Spy::new(2 * MIB + 77);
            let tls = strict(&certificates);
            let server = server(Arc::clone(&spy) as _).require_tls(&tls).unwrap();
            let serving = Serving::new(server, Listen::Tcp4);
            let uri = serving.tls_uri("disk", &certificates);
            if exercise(&uri, structured).is_none() {
                return;
            }
            outcomes.push(spy.contents());
        }
        assert_same(&outcomes[0], &outcomes[1], 0);
    });
}

#[test]
fn everything_is_done_through_nbdkit() {
    run(|| {
        let spy = Spy::new(2 * MIB + 77);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let Some(front) = nbdkit(&serving.uri("disk")).start() else {
            return;
        };
        exercise(&front.uri(""), "None");
    });
}

#[test]
fn everything_is_done_through_qemu() {
    run(|| {
        let certificates = Certificates::new();
        let Some(mut daemon) = StorageDaemon::start() else {
            return;
        };
        let spy = Spy::new(2 * MIB);
        let tls = strict(&certificates);
        let server = server(Arc::clone(&spy) as _).require_tls(&tls).unwrap();
        let serving = Serving::new(server, Listen::Tcp4);
        add_nbd(&mut daemon, "disk", &serving, Some(&certificates));

        let dir = tempfile::Builder::new().prefix("nbd-").tempdir().unwrap();
        let uri = export(&mut daemon, "disk", dir.path());
        if exercise(&uri, "None").is_none() {
            return;
        }
        let mode = qemu::mode(daemon.program());
        daemon.quit();
        assert_eq!(serving.stop().modes(), [mode]);
    });
}

#[test]
fn a_disk_is_copied_through_nbdkit_over_several_connections() {
    run(|| {
        let Some(nbdcopy) = require(Peer::NbdCopy) else {
            return;
        };
        let contents = pattern(4, 8 * MIB);
        let [from, to] = [Spy::new(8 * MIB), Spy::new(8 * MIB)];
        from.put(0, &contents);
        let serving = [&from, &to].map(|spy| Serving::disk(Arc::clone(spy) as _));
        let fronts = serving
            .each_ref()
            .map(|serving| nbdkit(&serving.uri("disk")).start());
        let [Some(source), Some(destination)] = fronts else {
            return;
        };
        let copy = |nbdcopy: &Program| {
            let options = ["--connections=4", "--threads=4"].map(str::to_owned);
            let places = [source.uri(""), destination.uri("")];
            nbdcopy.run(options.into_iter().chain(places))
        };
        let _said = copy(&nbdcopy).expect_success();
        assert_same(&to.contents(), &contents, 0);
        drop((source, destination));
        for serving in serving {
            let entered = serving.stop().entered.len();
            assert!(entered >= 4, "{entered}");
        }
    });
}
