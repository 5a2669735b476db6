//! Negotiation step by step with every server, in the clear and inside TLS.

use interop::{Certificates, Image};

use crate::{
    driver::{Greeted, HeaderStyle, MetaContextEntry},
    peers::{Who, exercise},
    support::{
        MIB, assert_has, assert_names, connect, context, go, name, names, options, pattern, run,
        uri,
    },
    tls::{Offer, serve},
};

#[test]
fn an_export_is_entered_step_by_step() {
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let at = uri(&server.uri("disk"));
            let mut negotiation = options().start(&at).unwrap().negotiation().unwrap();
            assert_eq!(negotiation.mode(), HeaderStyle::Simple);

            let list = negotiation.list().unwrap();
            match who {
                // A plugin that serves any export name lists the default one.
                Who::Nbdkit => assert_eq!(names(&list), [("", "")]),
                Who::Qemu | Who::NbdServer => assert_eq!(names(&list), [("disk", "")]),
            }

            let extended = negotiation.extended_headers();
            if let Err(error) = &extended {
                // C-137
                assert_names(error, &["NBD_OPT_EXTENDED_HEADERS", "NBD_REP_ERR_UNSUP"]);
                let structured = negotiation.structured_reply();
                assert_eq!(structured.is_ok(), who.has_structured_replies());
                assert_eq!(negotiation.mode(), who.plain_mode());
            } else {
                assert_eq!(negotiation.mode(), HeaderStyle::Extended);
            }
            assert_eq!(extended.is_ok(), who == Who::Qemu);

            let every = negotiation.list_meta_context(&name("disk"), &[]);
            let selected =
                negotiation.set_meta_context(&name("disk"), &[context("base:allocation")]);
            match who {
                Who::NbdServer => {
                    assert_names(&every.unwrap_err(), &["NBD_REP_ERR_UNSUP"]);
                    assert!(selected.is_err());
                }
                Who::Qemu | Who::Nbdkit => {
                    let every = every.unwrap();
                    let found = |entry: &MetaContextEntry| {
                        entry.name.as_ref().unwrap().as_str() == "base:allocation"
                    };
                    assert!(every.iter().any(found));
                    assert_eq!(selected.unwrap().len(), 1);
                }
            }

            // C-078
            if who != Who::NbdServer {
                let info = negotiation.info(go("disk")).unwrap();
                assert_eq!(info.size, MIB);
            }

            if who != Who::Nbdkit {
                // C-076: a refusal is final for the name and for nothing else.
                let refused = negotiation
                    .go(go("no such disk"))
                    .unwrap()
                    .into_result()
                    .unwrap_err();
                assert_eq!(refused.error.code.to_string(), "NBD_REP_ERR_UNKNOWN");
                negotiation = refused.handle;
                // The contexts were selected for the other name, and are gone with it.
                if who == Who::Qemu {
                    negotiation
                        .set_meta_context(&name("disk"), &[context("base:allocation")])
                        .unwrap();
                }
            }
            let client = negotiation.go(go("disk")).unwrap().into_result().unwrap();
            assert_eq!(client.size(), MIB);
            assert_eq!(client.contexts().len(), usize::from(who != Who::NbdServer));
            let _copy = exercise(&client);
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn a_negotiation_ends_without_entering_an_export() {
    // C-035
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let at = uri(&server.uri("disk"));
            let Greeted::FixedNewstyle(mut negotiation) = options().start(&at).unwrap() else {
                panic!("{who:?} speaks fixed newstyle");
            };
            negotiation.list().unwrap();
            negotiation.abort();
            // The server goes on.
            connect(&server, "disk").disconnect().unwrap();
        }
    });
}

#[test]
fn a_name_alone_enters_an_export() {
    // C-099
    run(|| {
        for who in Who::ALL {
            let Some(server) = who.start(&Image::raw(MIB)) else {
                continue;
            };
            let at = uri(&server.uri("disk"));
            for structured in [false, who.has_structured_replies()] {
                let mut negotiation = options().start(&at).unwrap().negotiation().unwrap();
                if structured {
                    negotiation.structured_reply().unwrap();
                }
                let client = negotiation.export_name(&name("disk")).unwrap();
                assert_eq!(client.export().block_sizes, None);
                let data = pattern(9, 100_000);
                client.write_all_at(&data, 1).unwrap();
                assert_has(&client, 1, &data);
                client.disconnect().unwrap();
            }
            if who != Who::Nbdkit {
                let negotiation = options().start(&at).unwrap().negotiation().unwrap();
                let error = negotiation.export_name(&name("no such disk")).unwrap_err();
                assert_names(&error, &["no export \"no such disk\""]);
            }
        }
    });
}

#[test]
fn an_export_is_entered_step_by_step_inside_tls() {
    run(|| {
        let certificates = Certificates::new();
        for who in Who::ALL {
            let Some(server) = serve(who, Offer::OnlyTls, &certificates) else {
                continue;
            };
            let at = uri(&server.tls_uri("disk", &certificates));
            let mut negotiation = options().start_secure(&at).unwrap();
            let _list = negotiation.list().unwrap();
            let negotiation = if who == Who::Nbdkit {
                negotiation
            } else {
                negotiation
                    .go(go("nothing"))
                    .unwrap()
                    .into_result()
                    .unwrap_err()
                    .handle
            };
            let client = negotiation.go(go("disk")).unwrap().into_result().unwrap();
            assert!(client.is_encrypted());
            client.disconnect().unwrap();

            let client = options()
                .start_secure(&at)
                .unwrap()
                .export_name(&name("disk"))
                .unwrap();
            client.disconnect().unwrap();
            options().start_secure(&at).unwrap().abort();

            // Such a URI does not allow a start in the clear.
            let error = options().start(&at).unwrap_err();
            assert_names(&error, &["start_secure"]);

            // This server allows nothing before TLS.
            let mut negotiation = options()
                .start(&uri(&server.uri("disk")))
                .unwrap()
                .negotiation()
                .unwrap();
            assert_names(&negotiation.list().unwrap_err(), &["NBD_REP_ERR_TLS_REQD"]);
            negotiation.abort();
        }
    });
}

#[test]
fn a_greeting_in_steps_shows_the_style_of_the_server() {
    run(|| {
        let certificates = Certificates::new();
        let Some(server) = serve(Who::Nbdkit, Offer::Nothing, &certificates) else {
            return;
        };
        let Greeted::FixedNewstyle(negotiation) =
            options().start(&uri(&server.uri("disk"))).unwrap()
        else {
            panic!("the server speaks fixed newstyle");
        };
        // STARTTLS that is refused leaves the connection as it was.
        let refused = negotiation.start_tls().unwrap().into_result().unwrap_err();
        assert_eq!(refused.error.option.to_string(), "NBD_OPT_STARTTLS");
        let client = refused
            .handle
            .go(go("disk"))
            .unwrap()
            .into_result()
            .unwrap();
        assert!(!client.is_encrypted());
        client.disconnect().unwrap();
    });
}
