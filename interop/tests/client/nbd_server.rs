//! Features and bugs of nbd-server alone.

use interop::{Certificates, Image, Listen, NbdServer};

use crate::{
    driver::{CommandFlags, ConnectOptions, Errno, Error, HeaderStyle, Misuse, Tolerance},
    peers::Who,
    support::{
        MIB, assert_has, assert_names, connect, go, name, names, options, pattern, run, secure_uri,
        uri,
    },
};

#[test]
fn only_commands_that_its_options_allow_are_offered() {
    run(|| {
        let offers = [
            ("", ""),
            ("flush = true", "flush"),
            ("fua = true", "fua"),
            ("trim = true", "trim"),
            ("rotational = true", "rotational"),
            ("readonly = true", "readonly"),
            ("copyonwrite = true", "copyonwrite"),
        ];
        for (line, what) in offers {
            let server = NbdServer::new("disk", Image::raw(MIB)).option(line);
            let Some(server) = server.start() else { return };
            let client = connect(&server, "disk");
            let export = client.export();
            assert_eq!(export.can_flush(), what == "flush");
            assert_eq!(export.can_fua(), what == "fua");
            assert_eq!(export.can_trim(), what == "trim");
            assert_eq!(export.is_rotational(), what == "rotational");
            assert_eq!(export.is_read_only(), what == "readonly");
            assert_eq!(export.can_multi_conn(), what != "copyonwrite");

            let flush = client.flush();
            assert_eq!(flush.is_ok(), what == "flush", "{flush:?}");
            let fua = client.write_all_at_with(&[1; 512], 0, CommandFlags::FUA);
            assert_eq!(fua.is_ok(), what == "fua", "{fua:?}");
            let trim = client.trim(0, 512, CommandFlags::NONE);
            assert_eq!(trim.is_ok(), what == "trim", "{trim:?}");
            let write = client.write_all_at(&[1; 512], 0);
            if what == "readonly" {
                let error = write.unwrap_err();
                assert!(
                    matches!(error, Error::Misuse(Misuse::ReadOnly { .. })),
                    "{error:?}"
                );
            } else {
                write.unwrap();
                assert_has(&client, 0, &[1; 512]);
            }
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn exports_are_listed_if_that_is_allowed() {
    run(|| {
        for listed in [true, false] {
            let mut server =
                NbdServer::new("one", Image::raw(MIB)).export("two", Image::raw(2 * MIB));
            if listed {
                server = server.list();
            }
            let Some(server) = server.start() else { return };
            let mut negotiation = options()
                .start(&uri(&server.uri("")))
                .unwrap()
                .negotiation()
                .unwrap();
            let list = negotiation.list();
            if listed {
                assert_eq!(names(&list.unwrap()), [("one", ""), ("two", "")]);
            } else {
                assert_names(&list.unwrap_err(), &["NBD_OPT_LIST", "NBD_REP_ERR_POLICY"]);
            }
            // A refusal leaves the connection as it was.
            let refused = negotiation
                .go(go("three"))
                .unwrap()
                .into_result()
                .unwrap_err();
            let client = refused.handle.go(go("two")).unwrap().into_result().unwrap();
            assert_eq!(client.size(), 2 * MIB);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn a_guarded_export_wants_tls_and_another_does_not() {
    // C-060, C-065
    run(|| {
        let certificates = Certificates::new();
        let server = NbdServer::new("open", Image::raw(MIB))
            .tls_offered(&certificates)
            .export("guarded", Image::raw(2 * MIB))
            .tls_selective(&certificates);
        let Some(server) = server.listen(Listen::Tcp4).start() else {
            return;
        };
        connect(&server, "open").disconnect().unwrap();

        let error = options().connect(&server.uri("guarded")).unwrap_err();
        assert_names(&error, &["the server requires TLS", "NBD_REP_ERR_TLS_REQD"]);

        let negotiation = options()
            .start(&uri(&server.uri("")))
            .unwrap()
            .negotiation()
            .unwrap();
        let refused = negotiation
            .go(go("guarded"))
            .unwrap()
            .into_result()
            .unwrap_err();
        assert_eq!(refused.error.code.to_string(), "NBD_REP_ERR_TLS_REQD");
        let client = refused
            .handle
            .go(go("open"))
            .unwrap()
            .into_result()
            .unwrap();
        assert_eq!(client.size(), MIB);
        client.disconnect().unwrap();

        let client = options()
            .connect(&secure_uri(&server, "guarded", &certificates))
            .unwrap();
        assert!(client.is_encrypted());
        assert_eq!(client.size(), 2 * MIB);
        client.disconnect().unwrap();
    });
}

#[test]
fn reads_that_are_not_to_be_fragmented_are_refused() {
    // From version 3.26 on it offers NBD_CMD_FLAG_DF and refuses every request that has it, by a
    // simple reply, which no read may have; and its chunks with errors have a length in the wrong
    // order.
    run(|| {
        let Some(server) = Who::NbdServer.start(&Image::raw(MIB)) else {
            return;
        };
        let client = ConnectOptions::new()
            .tolerance(Tolerance::LENIENT)
            .connect(&server.uri("disk"))
            .unwrap();
        let mut buf = [0; 512];
        let read = client.read_exact_at_with(&mut buf, 0, CommandFlags::DF);
        if client.mode() == HeaderStyle::Simple {
            let error = read.unwrap_err();
            assert!(
                matches!(error, Error::Misuse(Misuse::Flags { .. })),
                "{error:?}"
            );
        } else if let Err(error) = read {
            assert_eq!(error.errno(), Some(Errno::Inval), "{error:?}");
        }
        client.write_all_at(&[5; 512], 0).unwrap();
        assert_has(&client, 0, &[5; 512]);
        client.disconnect().unwrap();
    });
}

#[test]
fn an_export_that_shrank_fails_single_requests() {
    run(|| {
        let image = Image::raw(MIB);
        let Some(server) = Who::NbdServer.start(&image) else {
            return;
        };
        let client = ConnectOptions::new()
            .tolerance(Tolerance::LENIENT)
            .connect(&server.uri("disk"))
            .unwrap();
        let file = std::fs::File::options()
            .write(true)
            .open(image.path())
            .unwrap();
        file.set_len(4096).unwrap();
        let mut buf = [0; 4096];
        let error = client.read_exact_at(&mut buf, 8192).unwrap_err();
        assert!(error.errno().is_some(), "{error:?}");
        // Existing data can still be read.
        client.write_all_at(&pattern(1, 4096), 0).unwrap();
        assert_has(&client, 0, &pattern(1, 4096));
        client.disconnect().unwrap();
    });
}

#[test]
fn without_block_sizes_the_usual_ones_hold() {
    // C-119
    run(|| {
        let Some(server) = Who::NbdServer.start(&Image::raw(40 * MIB)) else {
            return;
        };
        let client = options().connect(&server.uri("disk")).unwrap();
        assert_eq!(client.export().block_sizes, None);
        assert_eq!(client.block_sizes().maximum(), 32 << 20);
        let data = pattern(2, (32 << 20) + 1);
        let mut buf = vec![0; data.len()];
        let error = client
            .read_exact_at_with(&mut buf, 0, CommandFlags::NONE)
            .unwrap_err();
        assert!(
            matches!(error, Error::Misuse(Misuse::TooLong { .. })),
            "{error:?}"
        );
        client.write_all_at(&data, 0).unwrap();
        assert_has(&client, 0, &data);
        client.disconnect().unwrap();
    });
}

#[test]
fn an_empty_name_is_refused() {
    run(|| {
        let Some(server) = Who::NbdServer.start(&Image::raw(MIB)) else {
            return;
        };
        let error = options().connect(&server.uri("")).unwrap_err();
        assert_names(&error, &["NBD_OPT_GO"]);
        let negotiation = options()
            .start(&uri(&server.uri("")))
            .unwrap()
            .negotiation()
            .unwrap();
        let error = negotiation.export_name(&name("")).unwrap_err();
        assert_names(&error, &["closed the connection"]);
    });
}
