//! fio writes at random, and verifies the data that it reads.

use std::sync::Arc;

use interop::{Certificates, Finished, KIB, Listen, MIB, Peer, Program, require, run};

use crate::{
    exports::{Call, Spy},
    serving::{Serving, server, tls},
};

const JOBS: u64 = 4;
const EACH: u64 = 4 * MIB;
const BLOCK: u64 = 4 * KIB;

/// Runs a test's body with fio, or not at all.
fn with_fio(body: impl FnOnce(&Program) + Send + 'static) {
    if let Some(fio) = require(Peer::Fio) {
        run(move || body(&fio));
    }
}

/// Runs jobs of these options, each with a connection of its own.
pub(crate) fn run_jobs(fio: &Program, uri: &str, options: &str) -> Finished {
    let uri = format!("--uri={uri}");
    let common = [
        "--name=job",
        "--ioengine=nbd",
        "--thread",
        "--iodepth=16",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    let common = common.into_iter().chain([&*uri]);
    fio.run(common.chain(options.split_whitespace()))
}

/// Runs several jobs, each with a part of the disk of its own.
fn jobs(fio: &Program, uri: &str, options: &str) -> Finished {
    let parts = format!("--numjobs={JOBS} --size={EACH} --offset_increment={EACH} --bs={BLOCK}");
    run_jobs(fio, uri, &format!("{parts} {options}"))
}

fn count(calls: &[Call], is: impl Fn(&Call) -> bool) -> u64 {
    calls.iter().filter(|call| is(call)).count() as u64
}

fn writes(calls: &[Call]) -> u64 {
    count(calls, |call| matches!(call, Call::Write { len: BLOCK, .. }))
}

fn bytes_read(calls: &[Call]) -> u64 {
    let len = |call: &Call| match call {
        Call::Read { len, .. } => *len,
        _ => 0,
    };
    calls.iter().map(len).sum()
}

#[test]
fn random_writes_of_several_jobs_are_verified() {
    with_fio(|fio| {
        for listen in [Listen::Unix, Listen::Tcp4] {
            let spy = Spy::new(JOBS * EACH);
            let serving = Serving::new(server(Arc::clone(&spy) as _), listen);
            let uri = serving.uri("disk");
            let verify = "--rw=randwrite --verify=crc32c --do_verify=1";
            let _said = jobs(fio, &uri, verify).expect_success();
            let calls = spy.calls();
            assert_eq!(writes(&calls), JOBS * EACH / BLOCK);
            assert_eq!(bytes_read(&calls), JOBS * EACH);

            // It verifies the actual contents: a single wrong byte is noticed.
            let again = "--rw=randwrite --verify=crc32c --verify_only=1";
            let _said = jobs(fio, &uri, again).expect_success();
            let wrong = EACH + 12_345;
            let byte = spy.contents()[usize::try_from(wrong).unwrap()];
            spy.put(wrong, &[byte ^ 1]);
            let found = jobs(fio, &uri, again).expect_failure();
            assert!(found.contains("verify"), "{found}");

            let entered = serving.stop().entered.len() as u64;
            assert!(entered >= 3 * JOBS, "{entered}");
        }
    });
}

#[test]
fn reads_and_writes_are_mixed_with_flushes_and_trims() {
    with_fio(|fio| {
        let spy = Spy::new(JOBS * EACH);
        let serving = Serving::disk(Arc::clone(&spy) as _);
        let uri = serving.uri("disk");
        let mixed = "--rw=randrw --fsync=32 --verify=md5 --verify_backlog=64";
        let _said = jobs(fio, &uri, mixed).expect_success();
        let calls = spy.calls();
        assert!(count(&calls, |call| *call == Call::Flush) >= JOBS * 4);
        assert!(writes(&calls) > 0 && bytes_read(&calls) > 0);

        let _said = jobs(fio, &uri, "--rw=randtrim").expect_success();
        let trims = |call: &Call| matches!(call, Call::Trim { len: BLOCK, .. });
        assert_eq!(count(&spy.calls(), trims), JOBS * EACH / BLOCK);
        assert!(spy.contents().iter().all(|byte| *byte == 0));
        assert_eq!(spy.allocated(), 0);
    });
}

#[test]
fn it_knows_no_tls() {
    with_fio(|fio| {
        // The library can, but needs permission to read files.
        let certificates = Certificates::new();
        let server = server(Spy::new(JOBS * EACH)).require_tls(&tls(&certificates));
        let serving = Serving::new(server.unwrap(), Listen::Tcp4);
        for (uri, why) in [
            (serving.uri("disk"), "TLS"),
            (serving.tls_uri("disk", &certificates), "not allowed"),
        ] {
            let refused = jobs(fio, &uri, "--rw=randread");
            assert!(!refused.status.success());
            let said = format!("{}{}", refused.stdout, refused.stderr);
            assert!(said.contains(why), "{said}");
        }
        assert!(serving.stop().entered.is_empty());
    });
}
