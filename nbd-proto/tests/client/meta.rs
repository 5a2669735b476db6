//! Negotiating meta contexts.

use crate::common::{
    bytes::*,
    session::{DEFAULT, PROFILES, contexts, export, granted, negotiate, negotiate_with, profile},
    wire::Wire,
};
use nbd_proto::{
    ContextName, Error, Misuse, NameError,
    client::{Context, Go, GoOutcome, MetaContextEntry, Options, Plain, Tolerance},
    wire::{OptionCode, OptionReplyCode},
};

fn structured(wire: &mut Wire, options: Options<Plain>) -> Options<Plain> {
    let pending = options.structured_reply(&mut wire.out).expect("asked once");
    granted(wire.answer(pending, ack(8)))
}

/// Selects `base:allocation` for the export `a`, answered by `replies` and an ACK.
fn set(tolerance: Tolerance, replies: &[u8]) -> Result<Vec<Context>, Error> {
    negotiate_with(profile(tolerance), |wire, options| {
        let options = structured(wire, options);
        let asked = contexts(&["base:allocation", "qemu:allocation-depth"]);
        let pending = options
            .set_meta_context(&export("a"), &asked, &mut wire.out)
            .expect("chunks were agreed on");
        match wire.says(replies).says(ack(10)).run(pending)? {
            nbd_proto::Step::Done(settled) => Ok(settled.result.expect("an ACK is no refusal")),
            nbd_proto::Step::More(_) => panic!("an ACK ends the option"),
        }
    })
}

fn context(id: u32, name: &str) -> Context {
    let name = ContextName::new(name).ok();
    Context { id, name }
}

/// The contexts that a transmission of `name` starts with.
fn entered(wire: &mut Wire, options: Options<Plain>, name: &str) -> Vec<Context> {
    let pending = options.go(Go::new(export(name)), &mut wire.out);
    wire.says(iexp(7, 1 << 20, 1));
    let Ok(GoOutcome::Accepted(mut transmission)) = wire.answer(pending, ack(7)) else {
        panic!("the export is entered");
    };
    let status = transmission.block_status(0, 512, Default::default());
    let refused = status.err();
    let contexts = transmission.contexts().to_vec();
    assert_eq!(refused, contexts.is_empty().then_some(Misuse::NoContext));
    contexts
}

#[test]
fn contexts_hold_for_the_export_they_were_set_for() {
    // C-148, C-182
    let set_for_a = |entered_name: &'static str| {
        negotiate(move |wire, options| {
            let options = structured(wire, options);
            let asked = contexts(&["base:allocation"]);
            let pending = options
                .set_meta_context(&export("a"), &asked, &mut wire.out)
                .unwrap();
            wire.says(meta(10, 7, "base:allocation"));
            let options = granted(wire.answer(pending, ack(10)));
            entered(wire, options, entered_name)
        })
    };
    assert_eq!(set_for_a("a"), [context(7, "base:allocation")]);
    assert_eq!(set_for_a("A"), []);
    assert_eq!(set_for_a(""), []);
    // A refusal of another export does not lose them.
    let kept = negotiate(|wire, options| {
        let options = structured(wire, options);
        let asked = contexts(&["base:allocation"]);
        let pending = options
            .set_meta_context(&export("a"), &asked, &mut wire.out)
            .unwrap();
        wire.says(meta(10, 7, "base:allocation"));
        let options = granted(wire.answer(pending, ack(10)));
        let pending = options.go(Go::new(export("b")), &mut wire.out);
        let Ok(GoOutcome::Refused(options, _)) = wire.answer(pending, err(7, 6, "")) else {
            panic!("there is no b");
        };
        entered(wire, options, "a")
    });
    assert_eq!(kept.len(), 1);
}

#[test]
fn contexts_are_not_set_before_there_are_chunks_to_report_them() {
    // C-135, C-149
    negotiate(|wire, options| {
        let _ = wire.sent();
        let asked = contexts(&["base:allocation"]);
        let rejected = options
            .set_meta_context(&export(""), &asked, &mut wire.out)
            .unwrap_err();
        assert!(matches!(rejected.misuse, Misuse::Option { .. }));
        assert_eq!(wire.sent(), []);
        entered(wire, rejected.options, "").len()
    });
}

#[test]
fn a_query_has_a_namespace_and_a_leaf() {
    // C-001, C-151
    for bad in ["alloc", ":x", "b b:x", "a\tb:x", ""] {
        assert_eq!(
            ContextName::new(bad),
            Err(NameError::NotAContext),
            "{bad:?}"
        );
    }
    assert_eq!(ContextName::new("a:\0"), Err(NameError::Nul { at: 2 }));
    let long = format!("x-a:{}", "l".repeat(4093));
    assert_eq!(
        ContextName::new(long),
        Err(NameError::TooLong { len: 4097 })
    );
    let sent = negotiate(|wire, options| {
        let options = structured(wire, options);
        let _ = wire.sent();
        let asked = contexts(&["x-own:a b:c", "base:"]);
        let _pending = options.set_meta_context(&export("é"), &asked, &mut wire.out);
        wire.sent()
    });
    assert_eq!(sent, opt(10, meta_data("é", &["x-own:a b:c", "base:"])));
}

#[test]
fn the_last_selection_counts_and_a_failed_one_leaves_none() {
    // C-154, C-155, C-158, C-164
    let after = |second: Vec<u8>| {
        negotiate(move |wire, options| {
            let options = structured(wire, options);
            let asked = contexts(&["base:allocation"]);
            let pending = options
                .set_meta_context(&export("a"), &asked, &mut wire.out)
                .unwrap();
            wire.says(meta(10, 1, "base:allocation"));
            let options = granted(wire.answer(pending, ack(10)));
            let asked = contexts(&["base:", "qemu:allocation-depth"]);
            let pending = options
                .set_meta_context(&export("a"), &asked, &mut wire.out)
                .unwrap();
            let options = wire.answer(pending, &second).unwrap().options;
            entered(wire, options, "a")
        })
    };
    let depth = meta(10, 2, "qemu:allocation-depth");
    let second = [depth.clone(), ack(10)].concat();
    assert_eq!(after(second), [context(2, "qemu:allocation-depth")]);
    assert_eq!(after(ack(10)), []);
    assert_eq!(after(err(10, 1, "")), []);
    assert_eq!(after([depth, err(10, 9, "")].concat()), []);
}

#[test]
fn a_context_has_any_number_and_comes_in_any_order() {
    // C-156, C-159
    let (base, depth) = ("base:allocation", "qemu:allocation-depth");
    for (_, tolerance) in PROFILES {
        let replies = [meta(10, u32::MAX, depth), meta(10, 0, base)].concat();
        let expected = vec![context(u32::MAX, depth), context(0, base)];
        assert_eq!(set(tolerance, &replies), Ok(expected));
    }
}

#[test]
fn a_context_without_a_name_ends_the_session() {
    // C-161, B-009
    for (_, tolerance) in PROFILES {
        for len in [0, 3, 4] {
            let malformed = Error::MalformedOptionReply {
                option: OptionCode::SetMetaContext,
                reply: OptionReplyCode::MetaContext,
                len,
            };
            let reply = rep(10, 4, &[0; 4][..usize::try_from(len).unwrap()]);
            assert_eq!(set(tolerance, &reply), Err(malformed));
        }
        let too_long = Error::OptionReplyTooLong {
            option: OptionCode::SetMetaContext,
            reply: OptionReplyCode::MetaContext,
            len: 4101,
            limit: 4100,
        };
        assert_eq!(set(tolerance, &rep_header(10, 4, 4101)), Err(too_long));
    }
}

#[test]
fn two_contexts_share_neither_a_number_nor_a_name() {
    // C-162, H-005
    let (base, depth) = ("base:allocation", "qemu:allocation-depth");
    for (_, tolerance) in PROFILES {
        let same_id = [meta(10, 1, base), meta(10, 1, depth)].concat();
        assert_eq!(
            set(tolerance, &same_id),
            Err(Error::DuplicateContext { id: 1 })
        );
        let same_name = [meta(10, 1, base), meta(10, 2, base)].concat();
        assert_eq!(
            set(tolerance, &same_name),
            Err(Error::DuplicateContext { id: 2 })
        );
    }
    for unasked in [&b"x-other:a"[..], b"\xff"] {
        let same_name = [meta(10, 1, unasked), meta(10, 2, unasked)].concat();
        assert_eq!(
            set(DEFAULT, &same_name),
            Err(Error::DuplicateContext { id: 2 })
        );
    }
}

#[test]
fn an_unrequested_context_is_hidden_or_refused() {
    // C-003, C-161, C-163
    for name in [&b"qemu:dirty-bitmap:x"[..], b"x:\xff", b"nocolon", b"a:\0"] {
        let replies = [meta(10, 1, "base:allocation"), meta(10, 9, name)].concat();
        let strict = set(Tolerance::STRICT, &replies);
        assert_eq!(strict, Err(Error::UnknownContext { id: 9 }));
        let hidden = vec![context(1, "base:allocation"), Context { id: 9, name: None }];
        assert_eq!(set(DEFAULT, &replies), Ok(hidden.clone()));
        assert_eq!(set(Tolerance::LENIENT, &replies), Ok(hidden));
    }
}

fn listed(replies: &[u8]) -> Vec<MetaContextEntry> {
    negotiate(|wire, options| {
        let options = structured(wire, options);
        let pending = options.list_meta_context(&export(""), &[], &mut wire.out);
        let settled = wire.says(replies).answer(pending, ack(9)).expect("a list");
        let entries = settled.result.expect("an ACK is no refusal");
        assert_eq!(
            entered(wire, settled.options, ""),
            [],
            "listing selects nothing"
        );
        entries
    })
}

#[test]
fn a_list_of_contexts_may_have_patterns_and_its_numbers_mean_nothing() {
    // C-157, C-160, C-161
    let replies = [
        meta(9, 77, "base:allocation"),
        meta(9, 77, "qemu:"),
        meta(9, 0, "x-Foo:"),
        meta(9, 0, b"x:\xff"),
    ];
    let names: Vec<_> = listed(&replies.concat())
        .into_iter()
        .map(|entry| entry.name)
        .collect();
    let expected = contexts(&["base:allocation", "qemu:", "x-Foo:"]);
    assert_eq!(names[..3], expected.into_iter().map(Ok).collect::<Vec<_>>());
    assert_eq!(names[3], Err(NameError::NotUtf8 { at: 2 }));
}

#[test]
fn a_list_of_contexts_that_ends_in_an_error_has_failed() {
    // C-158, C-165
    negotiate(|wire, options| {
        let options = structured(wire, options);
        let many = contexts(&["base:allocation"; 50]);
        let pending = options.list_meta_context(&export(""), &many, &mut wire.out);
        wire.says(meta(9, 0, "base:allocation"));
        let settled = wire.answer(pending, err(9, 9, "")).unwrap();
        assert_eq!(settled.result.unwrap_err().code, OptionReplyCode::ErrTooBig);
        let pending = settled
            .options
            .list_meta_context(&export(""), &many[..1], &mut wire.out);
        wire.says(meta(9, 0, "base:allocation"));
        let found = wire.answer(pending, ack(9)).unwrap().result.unwrap();
        assert_eq!(found.len(), 1);
    });
}

#[test]
fn both_orders_of_chunk_options_are_legal() {
    // C-133, C-134, C-138
    use nbd_proto::HeaderStyle;
    let mode = negotiate(|wire, options| {
        let options = structured(wire, options);
        let pending = options.extended_headers(&mut wire.out).unwrap();
        granted(wire.answer(pending, ack(11))).mode()
    });
    assert_eq!(mode, HeaderStyle::Extended);
    for code in [1, 2, 3, 4] {
        let mode = negotiate(|wire, options| {
            let pending = options.extended_headers(&mut wire.out).unwrap();
            let options = wire.answer(pending, err(11, code, "")).unwrap().options;
            let pending = options.structured_reply(&mut wire.out).unwrap();
            let options = wire.answer(pending, err(8, code, "")).unwrap().options;
            let mode = options.mode();
            assert_eq!(entered(wire, options, ""), []);
            mode
        });
        assert_eq!(mode, HeaderStyle::Simple);
    }
}
