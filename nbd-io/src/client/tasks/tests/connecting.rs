//! Connecting, at once and step by step.

use super::{
    api::{SIZE, host, memory, options},
    pipe::Cut,
    server::{Behaviour, serve},
    sim::Sim,
};
use crate::{
    Export, Memory, NamedExports, ReadOnly,
    client::{Error, Greeted, Lost, Reconnect},
    runtime::{Runtime, Tasks},
    transport::write_all,
};
use bytes::BytesMut;
use nbd_proto::{ContextName, ExportName, HeaderStyle, Uri, client::Go};
use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

#[test]
fn a_meta_context_that_is_required_and_not_there_is_an_error_at_connecting() {
    let sim = Sim::new(8);
    host(&sim, Arc::new(memory(512)), Cut::Random, false);
    sim.run(async {
        let base = ContextName::base_allocation();
        let bitmap = ContextName::dirty_bitmap("b").unwrap();
        let wished = options(&sim).context(bitmap.clone());
        let client = wished.connect("nbd://localhost").await.unwrap();
        assert!(client.has_context(&base) && !client.has_context(&bitmap));
        assert_eq!(client.context_id(&base), Some(client.contexts()[0].id));
        let required = options(&sim).require_context(base.clone());
        assert!(required.connect("nbd://localhost").await.is_ok());
        for (options, why) in [
            (
                required.clone().require_context(bitmap),
                "the export does not have it",
            ),
            (
                required.extended_headers(false).structured_replies(false),
                "there are no structured replies",
            ),
        ] {
            let error = options.connect("nbd://localhost").await.unwrap_err();
            assert!(error.to_string().ends_with(why), "{error}");
        }
    });
}

#[test]
fn another_connection_to_another_export_is_refused() {
    // C-190, H-039
    let others: [(Arc<dyn Export>, &str); 3] = [
        (Arc::new(Memory::new(SIZE + 512)), "its size"),
        (
            Arc::new(ReadOnly::new(Arc::new(Memory::new(SIZE)))),
            "its flags",
        ),
        (Arc::new(memory(512)), "its block sizes"),
    ];
    for (other, expected) in others {
        let sim = Sim::new(8);
        let server = sim.clone();
        let count = std::sync::atomic::AtomicUsize::new(0);
        let first: Arc<dyn Export> = Arc::new(Memory::new(SIZE));
        let both = [first, other];
        sim.on_connect(move |pipe| {
            let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let exports = Arc::new(NamedExports::single(both[n].clone()));
            serve(&server, pipe, exports, Behaviour::default());
            Ok(())
        });
        sim.run(async {
            let options = options(&sim).connections(2);
            let error = options.connect("nbd://localhost").await.unwrap_err();
            let Error::Lost(lost) = &error else {
                panic!("{error:?}");
            };
            assert!(matches!(**lost, Lost::Changed { what } if what == expected));
            sim.sleep(Duration::from_secs(10)).await;
        });
        assert_eq!(sim.tasks(), 0, "both connections were closed");
    }
}

#[test]
fn steps_can_be_taken_one_by_one() {
    let sim = Sim::new(8);
    host(&sim, Arc::new(memory(1)), Cut::Bytes, false);
    sim.run(async {
        let uri = Uri::tcp("localhost", 10_809).unwrap();
        let greeted = options(&sim).start(&uri).await.unwrap();
        let Greeted::FixedNewstyle(mut negotiation) = greeted else {
            panic!("{greeted:?}");
        };
        assert_eq!(negotiation.list().await.unwrap().len(), 1);
        negotiation.structured_reply().await.unwrap();
        assert_eq!(negotiation.mode(), HeaderStyle::Structured);
        let unknown = Go::new(ExportName::new("nothing").unwrap());
        let refused = negotiation
            .go(unknown)
            .await
            .unwrap()
            .into_result()
            .unwrap_err();
        let negotiation = refused.handle;
        let refused = negotiation
            .start_tls()
            .await
            .unwrap()
            .into_result()
            .unwrap_err();
        let go = Go::new(ExportName::default());
        let client = refused.handle.go(go).await.unwrap().into_result().unwrap();
        client.write(&b"hello"[..], 5).await.unwrap();
        assert_eq!(&client.read(5, 5).await.unwrap()[..], b"hello");
        // The deadline of the negotiation ended with it.
        sim.sleep(Duration::from_secs(100)).await;
        assert_eq!(&client.read(5, 5).await.unwrap()[..], b"hello");
    });
}

#[test]
fn a_failed_step_names_the_step_and_the_server() {
    let sim = Sim::new(8);
    host(&sim, Arc::new(memory(1)), Cut::Whole, false);
    sim.run(async {
        let uri = Uri::tcp("localhost", 10_809).unwrap();
        let greeted = options(&sim).start(&uri).await.unwrap();
        let mut negotiation = greeted.negotiation().unwrap();
        let unknown = Go::new(ExportName::new("nothing").unwrap());
        let error = negotiation.info(unknown).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with(
                "cannot ask about export \"nothing\" of localhost:10809: the server refused \
                 NBD_OPT_INFO with NBD_REP_ERR_UNKNOWN"
            ),
            "{text}"
        );
        negotiation.structured_reply().await.unwrap();
        let text = negotiation
            .structured_reply()
            .await
            .unwrap_err()
            .to_string();
        let step = "cannot agree on structured replies with localhost:10809: ";
        assert!(text.starts_with(step), "{text}");
        negotiation.abort().await;
    });
}

#[test]
fn steps_are_refused_with_options_that_would_have_to_repeat_them() {
    // Another connection would ask for the export of the URI, and not for the one that was entered.
    let sim = Sim::new(8);
    sim.on_connect(|_| panic!("nothing is dialed"));
    sim.run(async {
        let uri = Uri::tcp("localhost", 10_809).unwrap();
        let several = options(&sim).connections(2);
        let policy = options(&sim).reconnect(Some(Reconnect::new()));
        for (options, what) in [(several, "`connections`"), (policy, "`reconnect`")] {
            let error = options.start(&uri).await.unwrap_err();
            assert!(error.to_string().starts_with(what), "{error}");
            let error = options.start_secure(&uri).await.unwrap_err();
            assert!(error.to_string().starts_with(what), "{error}");
        }
    });
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    // B-007
    let sim = Sim::new(8);
    let kept = Arc::new(Mutex::new(Vec::new()));
    sim.on_connect(move |pipe| {
        kept.lock().unwrap().push(pipe);
        Ok(())
    });
    sim.run(async {
        let options = options(&sim).negotiation_timeout(Some(Duration::from_secs(7)));
        let error = options.connect("nbd://localhost").await.unwrap_err();
        assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
        assert_eq!(sim.now(), Duration::from_secs(7));
        // The time for connecting covers all of it.
        let whole = options.connect_timeout(Some(Duration::from_secs(5)));
        for negotiation in [None, Some(Duration::from_secs(7))] {
            let (start, whole) = (sim.now(), whole.clone().negotiation_timeout(negotiation));
            let error = whole.connect("nbd://localhost").await.unwrap_err();
            assert!(matches!(error, Error::Negotiation { .. }), "{error:?}");
            assert_eq!(sim.now() - start, Duration::from_secs(5));
        }
    });
    sim.on_connect(|_| Err(io::ErrorKind::ConnectionRefused.into()));
    sim.run(async {
        let error = options(&sim).connect("nbd://localhost").await.unwrap_err();
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    });
}

#[test]
fn the_answer_to_an_abort_is_waited_for_two_seconds() {
    let sim = Sim::new(8);
    let kept = Arc::new(Mutex::new(Vec::new()));
    let tasks = sim.clone();
    sim.on_connect(move |mut pipe| {
        let kept = kept.clone();
        tasks.spawn(async move {
            let mut greeting = BytesMut::from(&b"NBDMAGICIHAVEOPT\0\x03"[..]);
            write_all(&mut pipe, &mut greeting).await.unwrap();
            kept.lock().unwrap().push(pipe);
        });
        Ok(())
    });
    sim.run(async {
        let uri = Uri::tcp("localhost", 10_809).unwrap();
        for timeout in [None, Some(Duration::from_secs(10))] {
            let options = options(&sim).connect_timeout(timeout);
            let greeted = options.negotiation_timeout(None).start(&uri).await.unwrap();
            let start = sim.now();
            greeted.negotiation().unwrap().abort().await;
            assert_eq!(sim.now() - start, Duration::from_secs(2), "{timeout:?}");
        }
    });
}
