//! Features of nbdkit alone: an old server, an odd one, one with several exports.

use std::time::{Duration, Instant};

use interop::{Image, Listen, Nbdkit};

use crate::{
    driver::{CommandFlags, ConnectOptions, Errno, Greeted, HeaderStyle},
    peers::exercise,
    support::{
        KIB, MIB, assert_has, assert_names, connect, extents, go, info, map, name, names, options,
        pattern, run, uri,
    },
};

fn memory() -> Nbdkit {
    Nbdkit::new("memory").param("size=1M")
}

#[test]
fn memory_is_written_and_shown_as_holes() {
    run(|| {
        let Some(server) = Nbdkit::new("memory").param("size=8M").start() else {
            return;
        };
        let client = connect(&server, "");
        assert_eq!(client.mode(), HeaderStyle::Structured);
        let _copy = exercise(&client);
        client.write_zeroes(0, 8 * MIB, CommandFlags::NONE).unwrap();
        client
            .write_all_at(&pattern(1, 100 * KIB), 3 * MIB)
            .unwrap();
        let Some(theirs) = map(&server.uri(""), "base:allocation") else {
            return;
        };
        assert_eq!(theirs.len(), 3);
        assert_eq!(extents(&client), theirs);
        client.disconnect().unwrap();
    });
}

#[test]
fn sparse_data_has_as_many_extents_as_libnbd_finds() {
    run(|| {
        // More extents than nbdkit puts into one reply.
        let data = Nbdkit::new("data")
            .param("(1 @+98303)*600")
            .param("size=64M");
        let Some(server) = data.start() else { return };
        let client = connect(&server, "");
        let Some(theirs) = map(&server.uri(""), "base:allocation") else {
            return;
        };
        assert!(theirs.len() > 1000, "{}", theirs.len());
        assert_eq!(extents(&client), theirs);
        for block in [0, 1, 300, 599] {
            assert_has(&client, block * 96 * KIB, &[1, 0]);
        }

        let Some(server) = Nbdkit::new("sparse-random").param("size=1G").start() else {
            return;
        };
        let client = connect(&server, "");
        assert_eq!(
            Some(extents(&client)),
            map(&server.uri(""), "base:allocation")
        );
    });
}

#[test]
fn without_structured_replies_all_but_block_status_works() {
    // C-133, C-137
    run(|| {
        let Some(server) = memory().no_structured_replies().start() else {
            return;
        };
        let client = connect(&server, "");
        assert_eq!(client.mode(), HeaderStyle::Simple);
        assert!(client.contexts().is_empty());
        let _copy = exercise(&client);
        client.disconnect().unwrap();

        let mut negotiation = options()
            .start(&uri(&server.uri("")))
            .unwrap()
            .negotiation()
            .unwrap();
        for refused in [
            negotiation.extended_headers(),
            negotiation.structured_reply(),
        ] {
            assert_names(&refused.unwrap_err(), &["NBD_REP_ERR_UNSUP"]);
        }
        assert_eq!(negotiation.mode(), HeaderStyle::Simple);
        negotiation.abort();
    });
}

#[test]
fn an_oldstyle_server_is_entered_at_once() {
    run(|| {
        for listen in [Listen::Unix, Listen::Tcp4] {
            let Some(server) = memory().oldstyle().listen(listen).start() else {
                return;
            };
            let client = connect(&server, "");
            assert_eq!(client.mode(), HeaderStyle::Simple);
            assert_eq!(client.size(), MIB);
            let data = pattern(2, 300_000);
            client.write_all_at(&data, 1).unwrap();
            assert_has(&client, 1, &data);
            // nbdkit offers an oldstyle client all its features, and refuses most of them.
            if let Err(error) = client.flush() {
                assert_eq!(error.errno(), Some(Errno::Inval), "{error:?}");
            }
            client.disconnect().unwrap();

            let Greeted::Oldstyle(entered) = options().start(&uri(&server.uri(""))).unwrap() else {
                panic!("the server speaks oldstyle");
            };
            assert_eq!(entered.export().size, MIB);
            entered.accept().unwrap().disconnect().unwrap();

            // C-012: it has one export, and that has no name.
            let error = options().connect(&server.uri("disk")).unwrap_err();
            assert_names(&error, &["oldstyle", "\"disk\""]);
        }
    });
}

#[test]
fn a_newstyle_server_that_is_not_fixed_is_asked_by_name() {
    run(|| {
        let Some(server) = memory().mask_handshake(0).start() else {
            return;
        };
        let client = connect(&server, "disk");
        assert_eq!(client.mode(), HeaderStyle::Simple);
        let _copy = exercise(&client);
        client.disconnect().unwrap();

        let Greeted::Newstyle(by_name) = options().start(&uri(&server.uri(""))).unwrap() else {
            panic!("the server is not fixed");
        };
        let client = by_name.export_name(&name("disk")).unwrap();
        assert_eq!(client.size(), MIB);
        client.disconnect().unwrap();

        // Such a server refuses a name by closing the connection.
        let strict = memory()
            .filter("exportname")
            .param("exportname=disk")
            .param("exportname-strict=true")
            .mask_handshake(0);
        let Some(server) = strict.start() else { return };
        connect(&server, "disk").disconnect().unwrap();
        let error = options().connect(&server.uri("other")).unwrap_err();
        assert_names(&error, &["no export \"other\""]);
    });
}

#[test]
fn a_fixed_server_that_sends_124_zeroes_stays_in_step() {
    // C-099: only NBD_OPT_EXPORT_NAME has them.
    run(|| {
        let Some(server) = memory().mask_handshake(1).start() else {
            return;
        };
        let client = connect(&server, "");
        let _copy = exercise(&client);
        client.disconnect().unwrap();

        for structured in [false, true] {
            let mut negotiation = options()
                .start(&uri(&server.uri("")))
                .unwrap()
                .negotiation()
                .unwrap();
            if structured {
                negotiation.structured_reply().unwrap();
            }
            let client = negotiation.export_name(&name("")).unwrap();
            let _copy = exercise(&client);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn several_exports_are_listed_with_their_descriptions() {
    run(|| {
        // A script, so that it shows descriptions too.
        let server = Nbdkit::new("eval")
            .param("list_exports=echo INTERLEAVED; echo one; echo the first; echo two; echo the second")
            .param("open=echo $3")
            .param("get_size=case $2 in one) echo 1M;; two) echo 2M;; *) echo 512;; esac")
            .param("pread=dd if=/dev/zero count=$3 iflag=count_bytes 2>/dev/null")
            .param("export_description=echo about $2");
        let Some(server) = server.start() else { return };
        let mut negotiation = options()
            .start(&uri(&server.uri("")))
            .unwrap()
            .negotiation()
            .unwrap();
        let list = negotiation.list().unwrap();
        assert_eq!(names(&list), [("one", "the first"), ("two", "the second")]);
        for (export, size) in [("one", MIB), ("two", 2 * MIB)] {
            let info = negotiation.info(go(export)).unwrap();
            assert_eq!(info.size, size);
        }
        negotiation.abort();

        let client = options().connect(&server.uri("two")).unwrap();
        assert_eq!(client.size(), 2 * MIB);
        assert_eq!(
            client
                .export()
                .description
                .as_ref()
                .map(|text| text.as_str()),
            Some("about two")
        );
        assert!(client.export().is_read_only());
        assert_has(&client, 512, &[0; 4096]);
        client.disconnect().unwrap();
    });
}

#[test]
fn a_server_that_ends_with_its_client_is_left_alone() {
    run(|| {
        let Some(server) = memory().filter("exitlast").start() else {
            return;
        };
        let client = connect(&server, "");
        client.write_all_at(b"last words", 0).unwrap();
        // C-187
        client.disconnect().unwrap();
        let start = Instant::now();
        while server.ended().is_none() {
            assert!(start.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        let error = options().connect(&server.uri("")).unwrap_err();
        assert_names(&error, &["cannot connect to"]);
    });
}

#[test]
fn a_file_keeps_written_data() {
    run(|| {
        let image = Image::raw(2 * MIB);
        let Some(mut server) = Nbdkit::file(image.clone()).start() else {
            return;
        };
        let client = connect(&server, "");
        let copy = exercise(&client);
        client.disconnect().unwrap();
        server.kill();
        assert!(std::fs::read(image.path()).unwrap() == copy);
        server.restart();
        assert_has(&connect(&server, ""), 0, &copy);
    });
}

#[test]
fn a_huge_export_is_no_negative_one() {
    run(|| {
        // As large as nbdkit allows.
        let size = i64::MAX as u64 / 512 * 512;
        let Some(server) = Nbdkit::new("null").param(format!("size={size}")).start() else {
            return;
        };
        let client = ConnectOptions::new().connect(&server.uri("")).unwrap();
        assert_eq!(client.size(), size);
        assert_has(&client, size - 512, &[0; 512]);
        if let Some(theirs) = info(&server.uri("")) {
            assert_eq!(theirs["export-size"].as_u64(), Some(size));
        }
    });
}
