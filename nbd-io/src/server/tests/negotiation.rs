use super::loopback::{HEADER_STYLES, Session, pipe, serve, target, together};
use crate::{
    Export, Exports, ExportsByName, Memory, MetaContext, NamedExports, Offer, Unavailable,
    client::{
        self, NegotiationConfig, NegotiationError as ClientError, TlsPolicy,
        exchange::{Greeted, OptionExchange},
    },
    server::{Ended, NegotiationError, ServerOptions, TlsMode, negotiate},
};
use nbd_proto::{
    BlockSizes, ContextName, ExportName, Failure, HeaderStyle,
    client::{Config, Go, InfoSet, Plain},
    server::Refusal,
    wire::OptionReplyCode,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

fn name(name: &str) -> ExportName {
    ExportName::new(name).unwrap()
}

fn context(name: &str) -> ContextName {
    ContextName::new(name).unwrap()
}

fn exports() -> NamedExports {
    let sizes = BlockSizes::new(4096, 65_536, 1 << 20).unwrap();
    NamedExports::new()
        .with(
            name("a"),
            Arc::new(Memory::new(1 << 20).with_description("the first")),
        )
        .with(
            name("coarse"),
            Arc::new(Memory::new((1 << 20) + 7).with_block_sizes(sizes)),
        )
        .with_tls_only(name("secret"), Arc::new(Memory::new(1 << 20)))
        .with_default(name("a"))
}

fn with_tls(tls: TlsMode) -> ServerOptions {
    ServerOptions {
        tls,
        ..ServerOptions::default()
    }
}

async fn options_of<T: crate::transport::Transport>(transport: T) -> OptionExchange<T, Plain> {
    match client::exchange::greet(transport, Config::default())
        .await
        .unwrap()
    {
        Greeted::FixedNewstyle(negotiation) => negotiation,
        Greeted::Newstyle(..) | Greeted::Oldstyle(..) => panic!("the server is fixed newstyle"),
    }
}

fn code<R>(result: Result<R, ClientError>) -> OptionReplyCode {
    match result {
        Err(ClientError::Refused(error)) => error.code,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was granted"),
    }
}

#[test]
fn an_export_is_entered_in_every_mode() {
    for mode in HEADER_STYLES {
        let session = Session::new(&exports(), &target("a", mode));
        assert_eq!(session.client.mode(), mode);
        let info = session.client.export();
        assert_eq!(info.size, 1 << 20);
        assert_eq!(info.description.as_ref().unwrap().as_str(), "the first");
        assert_eq!(
            session.client.contexts().len(),
            usize::from(mode != HeaderStyle::Simple)
        );
    }
}

#[test]
fn after_an_unknown_export_a_client_may_look_for_another() {
    // S-077, S-082
    let (served, ()) = serve(&exports(), &ServerOptions::default(), async |pipe| {
        let negotiation = options_of(pipe).await;
        let go = |export| Go {
            name: name(export),
            infos: InfoSet::ALL,
        };
        let refused = negotiation.go(go("nope")).await.unwrap().unwrap_err();
        assert_eq!(refused.error.code, OptionReplyCode::ErrUnknown);
        let entered = refused.handle.go(go("")).await.unwrap().unwrap();
        let transmission = entered.transmission;
        assert_eq!(transmission.export().name, Some(name("a")));
    });
    assert!(served.unwrap().unwrap().name.is_default());
}

#[test]
fn a_client_gets_the_reason_why_an_export_is_unavailable() {
    struct Broken;
    impl Exports for Broken {
        fn lookup(&self, _: &ExportName) -> Option<Offer> {
            None
        }

        fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
            Err(match name.as_str() {
                "locked" => Unavailable::new(Refusal::Policy, "another client uses it"),
                _ => Unavailable::unknown(),
            })
        }
    }
    let _ = serve(&Broken, &ServerOptions::default(), async |pipe| {
        let mut negotiation = options_of(pipe).await;
        negotiation.structured_reply().await.unwrap();
        let refused = |result: Result<(), ClientError>| match result {
            Err(ClientError::Refused(error)) => (error.code, error.message.as_str().to_owned()),
            other => panic!("{other:?}"),
        };
        let locked = (OptionReplyCode::ErrPolicy, "another client uses it".into());
        let contexts = [context("base:allocation")];
        let set = negotiation
            .set_meta_context(&name("locked"), &contexts)
            .await;
        assert_eq!(refused(set.map(drop)), locked);
        let ask = |export| Go {
            name: name(export),
            infos: InfoSet::ALL,
        };
        let info = negotiation.info(ask("locked")).await;
        assert_eq!(refused(info.map(drop)), locked);
        let info = negotiation.info(ask("other")).await;
        let unknown = "no export is named \"other\"".into();
        assert_eq!(
            refused(info.map(drop)),
            (OptionReplyCode::ErrUnknown, unknown)
        );
        negotiation.abort().await;
    });
}

#[test]
fn a_client_that_leaves_is_no_error() {
    // S-013, S-031
    let options = ServerOptions::default();
    let (served, ()) = serve(&exports(), &options, async |pipe| {
        options_of(pipe).await.abort().await;
    });
    assert_eq!(served.unwrap().unwrap_err(), Ended::Aborted);
    for tls in [TlsMode::Off, TlsMode::Selective, TlsMode::Forced] {
        let (served, ()) = serve(&exports(), &with_tls(tls), async |pipe| drop(pipe));
        assert_eq!(served.unwrap().unwrap_err(), Ended::Closed);
    }
    let (served, ()) = serve(&exports(), &options, async |mut pipe| {
        let mut out = bytes::BytesMut::from(&b"\0\0\0\x03IHAVE"[..]);
        crate::transport::write_all(&mut pipe, &mut out)
            .await
            .unwrap();
    });
    assert!(matches!(served, Err(NegotiationError::Closed)));
}

#[test]
fn the_old_option_cannot_be_refused_with_a_reply() {
    // S-085
    let target = target("a", HeaderStyle::Extended);
    let (served, ()) = serve(&exports(), &ServerOptions::default(), async |pipe| {
        assert!(
            options_of(pipe)
                .await
                .export_name(&name("nope"))
                .await
                .is_err()
        );
    });
    assert!(matches!(
        served,
        Err(NegotiationError::ExportNameRefused { .. })
    ));
    let (served, ()) = serve(&exports(), &ServerOptions::default(), async |pipe| {
        let transmission = options_of(pipe)
            .await
            .export_name(&target.export)
            .await
            .unwrap()
            .transmission;
        assert_eq!(transmission.export().size, 1 << 20);
    });
    assert!(served.unwrap().is_ok());
}

#[test]
fn contexts_are_listed_by_wildcards() {
    let (_, ()) = serve(&exports(), &ServerOptions::default(), async |pipe| {
        let mut negotiation = options_of(pipe).await;
        let a = name("a");
        for (queries, expected) in [
            (&[][..], 1),
            (&[context("base:")], 1),
            (&[context("base:allocation")], 1),
            (&[context("qemu:")], 0),
            (&[context("base:other")], 0),
        ] {
            let found = negotiation.list_meta_context(&a, queries).await.unwrap();
            assert_eq!(found.len(), expected, "{queries:?}");
        }
        let unknown = negotiation.list_meta_context(&name("nope"), &[]).await;
        assert_eq!(code(unknown), OptionReplyCode::ErrUnknown);
        // S-064
        let hidden = negotiation.list_meta_context(&name("secret"), &[]).await;
        assert_eq!(code(hidden), OptionReplyCode::ErrUnknown);
        negotiation.abort().await;
    });
}

#[test]
fn contexts_hold_for_an_export_under_any_of_its_names() {
    // S-088, A-025
    for (entered, holds) in [("a", true), ("", true), ("coarse", false)] {
        let (served, ()) = serve(&exports(), &ServerOptions::default(), async |pipe| {
            let mut negotiation = options_of(pipe).await;
            negotiation.structured_reply().await.unwrap();
            let wanted = [context("base:allocation"), context("x:y")];
            let selected = negotiation.set_meta_context(&name("a"), &wanted).await;
            assert_eq!(selected.unwrap().len(), 1);
            let go = Go {
                name: name(entered),
                infos: InfoSet::ALL,
            };
            negotiation.go(go).await.unwrap().unwrap();
        });
        let entered = served.unwrap().unwrap();
        assert_eq!(!entered.transmission.contexts().is_empty(), holds);
    }
}

/// Has a context of 64 bits beside the usual one.
struct Wide;

impl Export for Wide {
    fn size(&self) -> u64 {
        512
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Ok(())
    }

    fn contexts(&self) -> Vec<MetaContext> {
        vec![
            MetaContext::new(ContextName::base_allocation()),
            MetaContext::wide(context("x:wide")),
        ]
    }
}

#[test]
fn a_wide_context_needs_extended_headers() {
    let exports = NamedExports::single(Arc::new(Wide));
    for (mode, expected) in [(HeaderStyle::Structured, 1), (HeaderStyle::Extended, 2)] {
        let mut target = target("", mode);
        target.contexts.push(context("x:wide"));
        let session = Session::new(&exports, &target);
        assert_eq!(session.client.contexts().len(), expected);
    }
    let (served, ()) = serve(&exports, &ServerOptions::default(), async |pipe| {
        let mut negotiation = options_of(pipe).await;
        let narrow = negotiation.list_meta_context(&name(""), &[]).await;
        assert_eq!(narrow.unwrap().len(), 1);
        let wide = negotiation
            .list_meta_context(&name(""), &[context("x:")])
            .await;
        assert_eq!(code(wide), OptionReplyCode::ErrExtHeaderReqd);
        negotiation.extended_headers().await.unwrap();
        let all = negotiation.list_meta_context(&name(""), &[]).await;
        assert_eq!(all.unwrap().len(), 2);
        negotiation.abort().await;
    });
    assert_eq!(served.unwrap().unwrap_err(), Ended::Aborted);
}

#[test]
fn large_blocks_are_for_clients_that_ask() {
    // S-079, S-086
    let (served, ()) = serve(&exports(), &ServerOptions::default(), async |pipe| {
        let negotiation = options_of(pipe).await;
        let go = |infos| Go {
            name: name("coarse"),
            infos,
        };
        let refused = negotiation
            .go(go(InfoSet::NONE))
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(refused.error.code, OptionReplyCode::ErrBlockSizeReqd);
        let entered = refused.handle.go(go(InfoSet::BLOCK_SIZE)).await.unwrap();
        let transmission = entered.unwrap().transmission;
        assert_eq!(transmission.export().size, 1 << 20);
    });
    assert!(served.unwrap().is_ok());
}

#[test]
fn exports_for_tls_only_are_not_there_without() {
    // S-037, S-058, S-061
    let list = async |pipe| {
        let mut negotiation = options_of(pipe).await;
        let listed = negotiation.list().await.unwrap();
        let info = Go {
            name: name("secret"),
            infos: InfoSet::ALL,
        };
        let secret = code(negotiation.info(info.clone()).await);
        let Ok(mut secured) = negotiation.start_tls(async |pipe| Ok(pipe)).await.unwrap() else {
            panic!("TLS is there to be started");
        };
        let all = secured.list().await.unwrap();
        assert!(secured.info(info).await.is_ok());
        secured.abort().await;
        (listed.len(), secret, all.len())
    };
    let (served, said) = serve(&exports(), &with_tls(TlsMode::Selective), list);
    assert_eq!(served.unwrap().unwrap_err(), Ended::Aborted);
    assert_eq!(said, (2, OptionReplyCode::ErrTlsReqd, 3));
}

#[test]
fn tls_is_forced_where_it_has_to_be() {
    // S-053
    let mut target = target("secret", HeaderStyle::Extended);
    for (policy, enters) in [
        (TlsPolicy::Never, false),
        (TlsPolicy::IfOffered, true),
        (TlsPolicy::Always, true),
    ] {
        target.tls = policy;
        let (served, entered) = serve(&exports(), &with_tls(TlsMode::Forced), async |pipe| {
            client::negotiate(pipe, &target, async |pipe| Ok(pipe)).await
        });
        assert_eq!(entered.is_ok(), enters);
        match served.unwrap() {
            Ok(entered) => assert!(enters && entered.encrypted),
            Err(ended) => assert_eq!((ended, enters), (Ended::Aborted, false)),
        }
    }
    let (served, entered) = serve(&exports(), &with_tls(TlsMode::Off), async |pipe| {
        client::negotiate(pipe, &target, async |pipe| Ok(pipe)).await
    });
    assert!(matches!(entered, Err(ClientError::TlsRefused(_))));
    assert_eq!(served.unwrap().unwrap_err(), Ended::Aborted);
}

#[test]
fn a_failed_handshake_ends_the_connection() {
    // S-050
    let (ours, theirs) = pipe();
    let running = AtomicBool::new(false);
    let (options, exports) = (with_tls(TlsMode::Forced), exports());
    let served = negotiate(ours, &options, &exports, &running, async |_| {
        Err(NegotiationError::Tls("no common cipher".into()))
    });
    let mut target = NegotiationConfig::new(name("a"));
    target.tls = TlsPolicy::Always;
    let connecting = client::negotiate(theirs, &target, async |pipe| Ok(pipe));
    let (served, connected) = together(served, connecting);
    assert!(matches!(served, Err(NegotiationError::Tls(_))));
    assert!(connected.is_err());
}

#[test]
fn a_server_that_stops_refuses_every_option() {
    // S-024
    let (ours, theirs) = pipe();
    let stopping = AtomicBool::new(false);
    let (options, exports) = (ServerOptions::default(), exports());
    let served = negotiate(ours, &options, &exports, &stopping, async |pipe| Ok(pipe));
    let (served, ()) = together(served, async {
        let mut negotiation = options_of(theirs).await;
        assert_eq!(negotiation.list().await.unwrap().len(), 2);
        stopping.store(true, Ordering::Relaxed);
        assert_eq!(code(negotiation.list().await), OptionReplyCode::ErrShutdown);
        negotiation.abort().await;
    });
    assert_eq!(served.unwrap().unwrap_err(), Ended::Aborted);
}

#[test]
fn exports_can_be_made_by_name() {
    let exports: &dyn Exports = &ExportsByName::new(|name: &ExportName| {
        let size = name.as_str().parse().ok()?;
        Some(Offer::new(Arc::new(Memory::new(size))))
    });
    let session = Session::new(exports, &target("4096", HeaderStyle::Extended));
    assert_eq!(session.client.export().size, 4096);
    assert_eq!(session.client.contexts().len(), 1);
}

#[test]
fn multi_conn_is_not_advertised_for_exports_that_are_not_shared() {
    // S-095
    let make = |_: &ExportName| Some(Offer::new(Arc::new(Memory::new(1 << 20))));
    let disk: Arc<dyn Export> = Arc::new(Memory::new(1 << 20));
    let share = move |_: &ExportName| Some(Offer::new(Arc::clone(&disk)));
    for (exports, expected) in [
        (&ExportsByName::new(make) as &dyn Exports, false),
        (&ExportsByName::shared(share), true),
        (&exports(), true),
    ] {
        let session = Session::new(exports, &target("a", HeaderStyle::Extended));
        assert_eq!(session.client.export().can_multi_conn(), expected);
        let (served, ()) = serve(exports, &ServerOptions::default(), async |pipe| {
            let negotiation = options_of(pipe).await;
            let transmission = negotiation
                .export_name(&name("a"))
                .await
                .unwrap()
                .transmission;
            assert_eq!(transmission.export().can_multi_conn(), expected);
        });
        assert!(served.unwrap().is_ok());
    }
}
