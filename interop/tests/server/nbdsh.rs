//! libnbd's whole interface, by the scripts in the directory `nbdsh`.

use std::{path::Path, sync::Arc, thread, time::Duration};

use crate::runtime::Server;
use interop::{Certificates, Listen, MIB, Peer, pattern, require, run};
use nbd_blocking::{BlockSizes, HeaderStyle};
use nbd_io::{Memory, NamedExports, ZeroMode};

use crate::{
    exports::{Bare, Call, Spy},
    serving::{Serving, name, server, tls},
};

/// Runs a script of the directory `nbdsh` with these lines before it, and returns its output;
/// `None` without libnbd.
pub(crate) fn script(file: &str, lines: &str) -> Option<String> {
    let nbdsh = require(Peer::NbdSh)?;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/nbdsh");
    // The shell itself does not print the place of a script's failure.
    let runs = format!(
        "import os, sys, traceback
try:
    {lines}
    for path in ({:?}, {:?}):
        exec(compile(open(path).read(), path, 'exec'))
except Exception:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)",
        dir.join("prelude.py"),
        dir.join(file),
    );
    Some(nbdsh.run(["-c", &runs]).expect_success())
}

/// The headers that libnbd asks for by itself.
fn mode() -> HeaderStyle {
    match require(Peer::NbdSh).is_some_and(|nbdsh| nbdsh.is_at_least(1, 18)) {
        true => HeaderStyle::Extended,
        false => HeaderStyle::Structured,
    }
}

/// Runs a script for an export.
fn script_for(serving: &Serving, export: &str, file: &str) -> Option<String> {
    script(file, &format!("uri = {:?}", serving.uri(export)))
}

/// Runs some Python on an export that has been entered, and returns its output.
pub(crate) fn python(uri: &str, code: &str) -> Option<String> {
    script("python.py", &format!("uri, code = {uri:?}, {code:?}"))
}

/// The calls of `commands.py` that reach the storage, without the reads.
pub(crate) fn all_commands() -> Vec<Call> {
    let write = |offset, len, fua| Call::Write { offset, len, fua };
    let zeroes = |offset, len, no_hole, fast, fua| Call::Zeroes {
        offset,
        len,
        mode: ZeroMode { no_hole, fast, fua },
    };
    let trim = |offset, len, fua| Call::Trim { offset, len, fua };
    let cache = |offset, len| Call::Cache { offset, len };
    vec![
        write(0, 65_536, false),
        write(123_457, 1000, true),
        Call::Flush,
        cache(0, MIB),
        zeroes(0, 4096, false, false, false),
        zeroes(4096, 4096, true, false, false),
        zeroes(8192, 4096, false, false, true),
        zeroes(12_288, 4096, false, true, false),
        zeroes(16_384, 4096, true, true, true),
        zeroes(2 * MIB, 2 * MIB, false, true, false),
        zeroes(2 * MIB, 2 * MIB, false, false, false),
        trim(32_768, 32_768, false),
        trim(98_304, 32_768, true),
        write(4 * MIB - 1, 1, false),
    ]
}

#[test]
fn every_command_and_flag_reaches_the_storage() {
    run(|| {
        let spy = Spy::new(4 * MIB);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        if script_for(&serving, "disk", "commands.py").is_none() {
            return;
        }
        let mut calls = spy.calls();
        calls.retain(|call| !matches!(call, Call::Read { .. }));
        assert_eq!(calls, all_commands());
        assert_eq!(serving.stop().modes(), [mode()]);
    });
}

#[test]
fn holes_and_contexts_are_reported_as_they_are() {
    run(|| {
        let spy = Spy::new(4 * MIB);
        spy.put(MIB, &pattern(1, 65_536));
        let serving = Serving::disk(spy);
        script_for(&serving, "disk", "replies.py");
    });
}

#[test]
fn simple_replies_do_for_everything_else() {
    run(|| {
        for server in [
            server(Spy::new(4 * MIB)),
            server(Spy::new(4 * MIB)).structured_replies(false),
        ] {
            let serving = Serving::new(server, Listen::Tcp4);
            if script_for(&serving, "disk", "plain.py").is_some() {
                assert_eq!(serving.stop().modes(), [HeaderStyle::Simple]);
            }
        }
    });
}

#[test]
fn two_hundred_requests_in_flight_are_not_confused() {
    run(|| {
        let certificates = Certificates::new();
        let encrypted = || server(Spy::new(4 * MIB)).require_tls(&tls(&certificates));
        let serving = Serving::new(encrypted().unwrap(), Listen::Tcp4);
        let uri = serving.tls_uri("disk", &certificates);
        script("flight.py", &format!("uri = {uri:?}"));
        let serving = Serving::disk(Spy::new(4 * MIB));
        script_for(&serving, "disk", "flight.py");
    });
}

/// A disk with contexts and one that is read-only.
fn two() -> Server {
    let disk = Spy::over(Memory::new(4 * MIB).with_description("the disk itself"));
    let exports = NamedExports::new()
        .with(name("disk"), disk)
        .with(name("other"), Arc::new(Memory::new(MIB).read_only()))
        .with_default(name("disk"));
    Server::new(exports)
}

#[test]
fn a_client_negotiates_as_long_as_it_likes() {
    run(|| {
        let serving = Serving::new(two(), Listen::Unix);
        if script_for(&serving, "", "options.py").is_none() {
            return;
        }
        let entered = serving.stop().entered;
        let names: Vec<_> = entered.iter().map(|entered| &entered.export).collect();
        assert_eq!(names, ["disk"]);
    });
}

#[test]
fn options_come_in_any_order() {
    run(|| {
        let certificates = Certificates::new();
        let server = two().require_tls(&tls(&certificates)).unwrap();
        let serving = Serving::new(server, Listen::Tcp4);
        let port = serving.endpoint().address().port();
        let dir = certificates.dir();
        let Some(said) = script(
            "newer.py",
            &format!("certificates = {dir:?}; port = '{port}'"),
        ) else {
            return;
        };
        eprint!("{said}");
        assert_eq!(serving.stop().entered.is_empty(), said.contains("lacks"));
    });
}

#[test]
fn terabytes_take_one_request() {
    run(|| {
        const TIB: u64 = 1 << 40;
        let spy = Spy::new(3 * TIB);
        spy.put(TIB, &pattern(1, 65_536));
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let Some(said) = script_for(&serving, "disk", "extended.py") else {
            return;
        };
        eprint!("{said}");
        if said.is_empty() {
            let len = |call: &Call| match call {
                Call::Zeroes { len, .. } | Call::Trim { len, .. } | Call::Cache { len, .. } => *len,
                _ => 0,
            };
            let lens: Vec<_> = spy.calls().iter().map(len).filter(|len| *len > 0).collect();
            assert_eq!(lens, [TIB, TIB, 2 * TIB]);
            assert_eq!(serving.stop().modes(), [HeaderStyle::Extended; 2]);
        }
    });
}

#[test]
fn requests_answered_before_the_server_stops_are_done() {
    run(|| {
        let spy = Spy::new(64 * MIB);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let uri = serving.uri("disk");
        let client = thread::spawn(move || script("until.py", &format!("uri = {uri:?}")));
        let written = |call: &Call| matches!(call, Call::Write { .. });
        while !client.is_finished() && !spy.calls().iter().any(written) {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(50));
        let log = serving.stop();
        let Some(said) = client.join().unwrap() else {
            return;
        };
        let acknowledged: u64 = said.trim().parse().unwrap();
        assert!(acknowledged > 0 && log.broken.is_empty(), "{log:?}");
        let contents = spy.contents();
        let mut numbers = contents.chunks(8).zip(1..=acknowledged);
        assert!(numbers.all(|(found, number)| found == number.to_be_bytes()));
    });
}

#[test]
fn a_client_of_old_gets_its_export_by_name() {
    run(|| {
        let serving = Serving::disk(Spy::new(4 * MIB));
        if script_for(&serving, "disk", "old.py").is_none() {
            return;
        }
        let modes = [HeaderStyle::Simple, HeaderStyle::Simple, mode()];
        assert_eq!(serving.stop().modes(), modes);
    });
}

#[test]
fn illegal_requests_are_refused_and_the_connection_goes_on() {
    run(|| {
        let serving = Serving::disk(Spy::new(4 * MIB));
        if script_for(&serving, "disk", "strict.py").is_none() {
            return;
        }
        // Only the last violation ends the connection.
        let log = serving.stop();
        assert_eq!((log.entered.len(), log.broken.len()), (3, 1), "{log:?}");
        assert!(log.broken[0].contains("a payload of 33554433 bytes"));
    });
}

#[test]
fn exports_that_can_do_less_refuse_the_rest() {
    run(|| {
        let sizes = BlockSizes::new(4096, 4096, 65_536).unwrap();
        let memory = || Memory::new(MIB);
        let exports = NamedExports::new()
            .with(name("read-only"), Arc::new(memory().read_only()))
            .with(name("bare"), Arc::new(Bare))
            .with(
                name("of blocks"),
                Arc::new(memory().with_block_sizes(sizes)),
            )
            .with(name("small"), Arc::new(memory().with_limit(32 << 10)));
        let serving = Serving::new(Server::new(exports), Listen::Unix);
        script_for(&serving, "", "limits.py");
    });
}
