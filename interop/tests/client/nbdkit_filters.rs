//! nbdkit with filters that hide features, refuse, fail and delay.
//!
//! It is longer than 500 lines because each filter of nbdkit has a test here.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use interop::{Image, Listen, Nbdkit};

use crate::{
    driver::{CommandFlags, Errno, Error, Misuse},
    peers::exercise,
    support::{
        KIB, MIB, assert_has, assert_names, connect, context, extents, go, name, options, pattern,
        run, uri,
    },
};

fn memory() -> Nbdkit {
    Nbdkit::new("memory").param("size=1M")
}

/// A gate that reads wait for.
struct Gate(tempfile::TempDir);

impl Gate {
    fn new() -> Self {
        let gate = Self(tempfile::tempdir().unwrap());
        let disk = fs::File::create(gate.path("disk")).unwrap();
        disk.set_len(MIB).unwrap();
        fs::File::create(gate.path("shut")).unwrap();
        gate
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A disk of 1 MiB that is read when the gate is open, and written to at any time.
    fn guarded(&self) -> Nbdkit {
        let dir = self.0.path().display();
        let copy = "dd iflag=count_bytes,skip_bytes oflag=seek_bytes conv=notrunc status=none";
        Nbdkit::new("eval")
            .param("thread_model=echo parallel")
            .param("get_size=echo 1M")
            .param(format!(
                "pread=: >{dir}/reader; while [ -e {dir}/shut ]; do sleep 0.02; done; \
                 {copy} if={dir}/disk skip=$4 count=$3"
            ))
            .param(format!("pwrite={copy} of={dir}/disk seek=$4"))
    }

    fn wait_for_reader(&self) {
        let reader = self.path("reader");
        while !reader.exists() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn open(&self) {
        fs::remove_file(self.path("shut")).unwrap();
    }
}

#[test]
fn commands_that_a_filter_hides_are_not_sent() {
    run(|| {
        let filters: [(&str, &[&str]); 7] = [
            ("noextents", &[]),
            ("nozero", &[]),
            ("noparallel", &[]),
            ("nocache", &[]),
            ("fua", &[]),
            ("multi-conn", &["multi-conn-mode=disable"]),
            ("log", &["logfile=/dev/null"]),
        ];
        for (filter, params) in filters {
            let mut server = memory().filter(filter);
            for param in params {
                server = server.param(*param);
            }
            let Some(server) = server.start() else { return };
            let client = connect(&server, "");
            let export = client.export();
            assert_eq!(export.can_write_zeroes(), filter != "nozero");
            assert_eq!(export.can_cache(), filter != "nocache");
            assert_eq!(export.can_fua(), filter != "fua");
            assert_eq!(export.can_multi_conn(), filter != "multi-conn");
            let _copy = exercise(&client);
            match filter {
                "noextents" => {
                    client.trim(0, MIB, CommandFlags::NONE).unwrap();
                    assert_eq!(extents(&client), [(0, MIB, 0)]);
                }
                "nozero" => {
                    let error = client.write_zeroes(0, 512, CommandFlags::NONE).unwrap_err();
                    not_offered(&error);
                }
                "nocache" => not_offered(&client.cache(0, 512).unwrap_err()),
                "fua" => {
                    let error = client
                        .write_all_at_with(&[1; 512], 0, CommandFlags::FUA)
                        .unwrap_err();
                    assert!(
                        matches!(error, Error::Misuse(Misuse::Flags { .. })),
                        "{error:?}"
                    );
                }
                _ => {}
            }
            client.disconnect().unwrap();
        }
    });
}

fn not_offered(error: &Error) {
    assert!(
        matches!(error, Error::Misuse(Misuse::NotOffered { .. })),
        "{error:?}"
    );
}

#[test]
fn unaligned_requests_are_made_of_whole_blocks() {
    // C-114: the policy refuses unaligned requests, and the client knows the block sizes.
    run(|| {
        let server = memory()
            .filter("blocksize-policy")
            .param("blocksize-error-policy=error")
            .param("blocksize-minimum=4096")
            .param("blocksize-preferred=64K")
            .param("blocksize-maximum=256K");
        let Some(server) = server.start() else { return };
        let client = connect(&server, "");
        assert_eq!(client.block_sizes().minimum(), 4096);
        assert_eq!(client.block_sizes().preferred(), 64 << 10);
        assert_eq!(client.block_sizes().maximum(), 256 << 10);

        let mut copy = pattern(1, MIB);
        client.write_all_at(&copy, 0).unwrap();
        for (seed, offset, len) in [
            (2, 1, 1),
            (3, 4095, 2),
            (4, 4000, 9000),
            (5, 100_000, 700_000),
            (6, MIB - 1, 1),
            (7, 8192, 4096),
        ] {
            let data = pattern(seed, len);
            client
                .write_all_at_with(&data, offset, CommandFlags::FUA)
                .unwrap();
            let start = usize::try_from(offset).unwrap();
            copy[start..start + data.len()].copy_from_slice(&data);
            assert_has(&client, offset, &data);
            assert_has(&client, 0, &copy);
        }

        // No command can trim or cache a part of a block, and nothing is sent.
        for error in [
            client.trim(1, 4096, CommandFlags::NONE).unwrap_err(),
            client.cache(0, 100).unwrap_err(),
            client
                .read_exact_at_with(&mut [0; 512], 512, CommandFlags::NONE)
                .unwrap_err(),
        ] {
            assert!(
                matches!(error, Error::Misuse(Misuse::Unaligned { .. })),
                "{error:?}"
            );
        }
        let part: Vec<_> = client.extents(1000..9000).map(Result::unwrap).collect();
        assert_eq!(part[0].offset, 1000);
        assert_eq!(part[0].len, 8000);
        client.disconnect().unwrap();
    });
}

#[test]
fn an_incomplete_block_at_the_end_is_reported_and_the_rest_can_be_used() {
    // C-129
    run(|| {
        let server = Nbdkit::new("memory")
            .param("size=1048676")
            .filter("blocksize-policy")
            .param("blocksize-error-policy=error")
            .param("blocksize-minimum=512");
        let Some(server) = server.start() else { return };
        let client = connect(&server, "");
        assert_eq!(client.size(), MIB);
        assert_eq!(client.export().size, MIB + 100);
        let copy = pattern(1, MIB);
        client.write_all_at(&copy, 0).unwrap();
        assert_has(&client, 0, &copy);
        client.write_all_at(&[7; 600], MIB - 600).unwrap();
        assert_has(&client, MIB - 600, &[7; 600]);
        client.write_zeroes(0, MIB, CommandFlags::NONE).unwrap();
        client.trim(0, MIB, CommandFlags::NONE).unwrap();
        client.cache(0, MIB).unwrap();
        assert_eq!(extents(&client), [(0, MIB, 3)]);
        let mut tail = [0; 676];
        for error in [
            client.read_exact_at(&mut tail, MIB - 576).unwrap_err(),
            client.read_exact_at(&mut tail[..1], MIB).unwrap_err(),
            client.write_all_at(&tail, MIB - 576).unwrap_err(),
            client.trim(MIB, 100, CommandFlags::NONE).unwrap_err(),
            client
                .block_status(0, MIB + 100, CommandFlags::NONE)
                .unwrap_err(),
            client.extents(0..MIB + 1).next().unwrap().unwrap_err(),
        ] {
            let Error::Misuse(misuse) = error else {
                panic!("{error:?}");
            };
            assert!(matches!(misuse, Misuse::Unreachable { .. }), "{misuse:?}");
            let text = misuse.to_string();
            let whole = "only 1048576 of the export's 1048676 bytes are in whole blocks of 512";
            assert!(text.contains(whole), "{text}");
        }
        let outside = client.read_exact_at(&mut tail, MIB).unwrap_err();
        assert!(matches!(outside, Error::Misuse(Misuse::OutOfBounds { .. })));
        client.disconnect().unwrap();
    });
}

#[test]
fn threads_do_not_lose_each_others_parts_of_a_block() {
    run(|| {
        let server = memory()
            .filter("blocksize-policy")
            .param("blocksize-error-policy=error")
            .param("blocksize-minimum=64K")
            .param("blocksize-preferred=64K");
        let Some(server) = server.start() else { return };
        let client = connect(&server, "");
        thread::scope(|scope| {
            for thread in 0..8_u8 {
                let client = client.clone();
                scope.spawn(move || {
                    let offset = u64::from(thread) * 8 * KIB;
                    for round in 0..30 {
                        client
                            .write_all_at(&[thread + round; 8192], offset)
                            .unwrap();
                        assert_has(&client, offset, &[thread + round; 8192]);
                    }
                });
            }
        });
        for thread in 0..8_u8 {
            assert_has(&client, u64::from(thread) * 8 * KIB, &[thread + 29; 8192]);
        }
    });
}

#[test]
fn long_requests_are_cut_to_the_servers_maximum() {
    run(|| {
        let server = Nbdkit::new("memory")
            .param("size=8M")
            .filter("blocksize-policy")
            .param("blocksize-error-policy=error")
            .param("blocksize-maximum=64K");
        let Some(server) = server.start() else { return };
        let client = connect(&server, "");
        assert_eq!(client.block_sizes().maximum(), 64 << 10);
        let data = pattern(8, 5 * MIB);
        client.write_all_at(&data, 77).unwrap();
        assert_has(&client, 77, &data);
        // Without payload a request may be longer, but this filter does not think so.
        client.write_zeroes(0, 8 * MIB, CommandFlags::NONE).unwrap();
        client.trim(0, 8 * MIB, CommandFlags::NONE).unwrap();
        client.cache(0, 8 * MIB).unwrap();
        assert_has(&client, 0, &vec![0; 8 << 20]);
    });
}

#[test]
fn errors_of_the_server_fail_the_command_and_nothing_else() {
    run(|| {
        for (said, errno) in [
            ("EPERM", Errno::Perm),
            ("EIO", Errno::Io),
            ("ENOMEM", Errno::NoMem),
            ("EINVAL", Errno::Inval),
            ("ENOSPC", Errno::NoSpc),
        ] {
            let trigger = tempfile::NamedTempFile::new().unwrap();
            let server = memory()
                .filter("error")
                .param(format!("error={said}"))
                .param("error-rate=100%")
                .param(format!("error-file={}", trigger.path().display()));
            let Some(server) = server.start() else { return };
            let client = connect(&server, "");
            for error in [
                client.read_exact_at(&mut [0; 512], 0).unwrap_err(),
                client.write_all_at(&[0; 512], 0).unwrap_err(),
                client.trim(0, 512, CommandFlags::NONE).unwrap_err(),
                client.cache(0, 512).unwrap_err(),
                client.write_zeroes(0, 512, CommandFlags::NONE).unwrap_err(),
                client.block_status(0, 512, CommandFlags::NONE).unwrap_err(),
            ] {
                assert_eq!(error.errno(), Some(errno), "{error:?}");
                assert_names(&error, &["failed", &format!("NBD_{said}")]);
            }
            fs::remove_file(trigger.path()).unwrap();
            let _copy = exercise(&client);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn a_server_that_shuts_down_is_left() {
    // C-188
    run(|| {
        let server = memory()
            .filter("error")
            .param("error=ESHUTDOWN")
            .param("error-pread-rate=100%");
        let Some(server) = server.start() else { return };
        let client = connect(&server, "");
        client.write_all_at(&[1; 512], 0).unwrap();
        let error = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Shutdown));
        assert!(client.write_all_at(&[1; 512], 0).unwrap_err().is_lost());
        // NBD_CMD_DISC may still be in flight.
        if let Err(error) = client.disconnect() {
            assert!(error.is_lost(), "{error:?}");
        }
        assert!(client.is_lost());
    });
}

#[test]
fn a_protected_range_refuses_writes() {
    run(|| {
        let server = memory().filter("protect").param("protect=4096-8191");
        let Some(server) = server.start() else { return };
        let client = connect(&server, "");
        client.write_all_at(&[1; 4096], 0).unwrap();
        let error = client.write_all_at(&[1; 8192], 0).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Perm), "{error:?}");
        // Of a long write the allowed pieces may have been written, and the others not.
        assert_has(&client, 4096, &[0; 4096]);
    });
}

#[test]
fn a_slow_request_times_out_and_the_connection_goes_on() {
    run(|| {
        for listen in [Listen::Unix, Listen::Tcp4] {
            let gate = Gate::new();
            let Some(server) = gate.guarded().listen(listen).start() else {
                return;
            };
            // Long enough for all requests that need not wait.
            let limit = Duration::from_secs(3);
            let client = options()
                .request_timeout(Some(limit))
                .connect(&server.uri(""))
                .unwrap();
            let data = pattern(3, 100 * KIB);
            client.write_all_at(&data, 0).unwrap();

            let start = Instant::now();
            let mut buf = vec![0; data.len()];
            let error = client.read_exact_at(&mut buf, 0).unwrap_err();
            assert!(matches!(error, Error::Timeout { after, .. } if after == limit));
            assert_names(&error, &["NBD_CMD_READ", "3s"]);
            assert!(start.elapsed() >= limit);

            // The late reply is thrown away, while others come.
            client.write_all_at(&data, 1).unwrap();
            gate.open();
            for round in 0..10 {
                client.write_all_at(&data, round).unwrap();
                assert_has(&client, round, &data);
            }
            assert!(!client.is_lost());
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn a_slow_request_does_not_hold_up_others() {
    run(|| {
        let gate = Gate::new();
        let Some(server) = gate.guarded().start() else {
            return;
        };
        let client = options().connect(&server.uri("")).unwrap();
        thread::scope(|scope| {
            let reads = scope.spawn(|| assert_has(&client, 512 * KIB, &[0; 4096]));
            gate.wait_for_reader();
            for round in 0..20_u8 {
                client.write_all_at(&[round; 4096], 0).unwrap();
            }
            assert!(!reads.is_finished());
            gate.open();
        });
    });
}

#[test]
fn a_server_that_dies_in_the_middle_ends_every_request() {
    run(|| {
        for listen in [Listen::Unix, Listen::Tcp4] {
            let server = memory()
                .filter("delay")
                .param("delay-read=60")
                .listen(listen);
            let Some(server) = server.start() else { return };
            let client = options().connect(&server.uri("")).unwrap();
            thread::scope(|scope| {
                for reader in 0..4 {
                    let client = &client;
                    scope.spawn(move || {
                        let error = client
                            .read_exact_at(&mut [0; 4096], reader * 4096)
                            .unwrap_err();
                        assert!(error.is_lost(), "{error:?}");
                    });
                }
                thread::sleep(Duration::from_millis(300));
                server.kill();
            });
            assert!(client.is_lost());
        }
    });
}

#[test]
fn zeroes_that_would_be_slow_are_refused_on_demand() {
    run(|| {
        let slow = memory()
            .filter("nozero")
            .param("zeromode=emulate")
            .param("fastzeromode=slow");
        let Some(server) = slow.start() else { return };
        let client = connect(&server, "");
        assert!(client.export().can_fast_zero());
        client.write_all_at(&[7; 4096], 0).unwrap();
        let error = client
            .write_zeroes(0, 4096, CommandFlags::FAST_ZERO)
            .unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NotSup), "{error:?}");
        assert_has(&client, 0, &[7; 4096]);
        client.write_zeroes(0, 4096, CommandFlags::NONE).unwrap();
        assert_has(&client, 0, &[0; 4096]);

        let Some(server) = memory().start() else {
            return;
        };
        let client = connect(&server, "");
        client.write_all_at(&[7; 4096], 0).unwrap();
        client
            .write_zeroes(0, 4096, CommandFlags::FAST_ZERO)
            .unwrap();
        assert_has(&client, 0, &[0; 4096]);
    });
}

#[test]
fn fua_reaches_the_plugin() {
    run(|| {
        let log = tempfile::NamedTempFile::new().unwrap();
        let server = Nbdkit::file(Image::raw(MIB))
            .filter("log")
            .param(format!("logfile={}", log.path().display()));
        let Some(server) = server.start() else { return };
        let client = connect(&server, "");
        client
            .write_all_at_with(&[1; 512], 0, CommandFlags::FUA)
            .unwrap();
        client.write_all_at(&[1; 512], 512).unwrap();
        client
            .write_zeroes(1024, 512, CommandFlags::FUA.with(CommandFlags::NO_HOLE))
            .unwrap();
        client.trim(4096, 512, CommandFlags::FUA).unwrap();
        client.cache(0, 512).unwrap();
        client.flush().unwrap();
        client.block_status(0, 512, CommandFlags::REQ_ONE).unwrap();
        client.disconnect().unwrap();
        server.kill();
        let log = fs::read_to_string(log.path()).unwrap();
        for said in [
            "Write id=1 offset=0x0 count=0x200 fua=1",
            "offset=0x200 count=0x200 fua=0",
            "offset=0x400 count=0x200 trim=0 fua=1 fast=0",
            "offset=0x1000 count=0x200 fua=1",
            "Cache",
            "Flush",
            "req_one=1",
        ] {
            assert!(log.contains(said), "no {said:?} in\n{log}");
        }
    });
}

#[test]
fn a_limit_of_clients_is_a_clear_error() {
    run(|| {
        let Some(server) = memory().filter("limit").param("limit=1").start() else {
            return;
        };
        let first = connect(&server, "");
        let error = options().connect(&server.uri("")).unwrap_err();
        assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
        first.disconnect().unwrap();
    });
}

#[test]
fn export_names_can_be_strict() {
    run(|| {
        let server = memory()
            .filter("exportname")
            .param("exportname=disk")
            .param("exportname-list=explicit")
            .param("exportname-strict=true")
            .param("default-export=disk");
        let Some(server) = server.start() else { return };
        let mut negotiation = options()
            .start(&uri(&server.uri("")))
            .unwrap()
            .negotiation()
            .unwrap();
        let list = negotiation.list().unwrap();
        assert_eq!(list.len(), 1);
        negotiation.structured_reply().unwrap();
        let _selected = negotiation
            .set_meta_context(&name("disk"), &[context("base:allocation")])
            .unwrap();
        // C-076
        let refused = negotiation
            .go(go("other"))
            .unwrap()
            .into_result()
            .unwrap_err();
        let client = refused
            .handle
            .go(go("disk"))
            .unwrap()
            .into_result()
            .unwrap();
        assert_eq!(client.size(), MIB);
        client.disconnect().unwrap();
    });
}
