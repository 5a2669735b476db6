//! Listing and selecting meta contexts.

use crate::support::*;
use bytes::BytesMut;
use nbd_proto::{
    ContextName, ExportName, Phase, Step,
    server::{Refusal, Requested},
    wire::InfoType,
};

fn said(server: &Server, parts: &[Vec<u8>]) -> Vec<String> {
    let ran = run(server, &options(parts));
    assert!(matches!(ran.end, End::Idle | End::Aborted), "{:?}", ran.end);
    ran.said
}

fn listed(queries: &[&str]) -> Vec<String> {
    said(&Server::default(), &[list_meta("disk", queries)])
}

fn set(queries: &[&str]) -> Vec<String> {
    let mut said = said(
        &Server::default(),
        &[opt(8, b""), set_meta("disk", queries)],
    );
    said.remove(0);
    said
}

#[test]
fn contexts_are_selected_byte_for_byte() {
    // S-016, S-125, S-130
    let mut client = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0".to_vec();
    client.extend(b"IHAVEOPT\0\0\0\x0a\0\0\0\x1f\0\0\0\x04disk\0\0\0\x01");
    client.extend(b"\0\0\0\x0fbase:allocation");
    let ran = run(&Server::default(), &client);
    let mut expected = b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x04\0\0\0\x13".to_vec();
    expected.extend(b"\0\0\0\x01base:allocation");
    expected.extend(b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x0a\0\0\0\x01\0\0\0\0");
    assert_eq!(ran.sent[38..], expected);
}

#[test]
fn lengths_that_point_past_the_data_are_invalid() {
    // S-119, H-047
    let good = meta_data(b"disk", &[b"base:allocation", b""]);
    let mut bad = vec![b"".to_vec(), b"\0\0\0".to_vec(), vec![0xff; 8]];
    bad.push([&good[..], b"x"].concat());
    bad.push(good[..good.len() - 1].to_vec());
    for (at, value) in [
        (3, 3),
        (3, 5),
        (0, 0xff),
        (11, 1),
        (11, 3),
        (8, 0xff),
        (15, 14),
        (15, 16),
        (12, 0xff),
    ] {
        let mut data = good.clone();
        data[at] = value;
        bad.push(data);
    }
    for data in bad {
        let parts = [opt(8, b""), opt(9, &data), opt(10, &data), opt(2, b"")];
        let said = said(&Server::default(), &parts);
        assert_eq!(
            said[1..],
            ["9: INVALID", "10: INVALID", "2: ACK"],
            "{data:?}"
        );
    }
}

#[test]
fn a_malformed_query_is_ignored() {
    // S-120, S-121, S-122, H-047
    let expected = ["10: CONTEXT 1 \"base:allocation\"", "10: ACK"];
    assert_eq!(
        set(&["alloc", "", ":", "b b:x", "base:allocation"]),
        expected
    );
    for nothing in ["zz:foo", "qemu:nope", "alloc", "base:x", ""] {
        assert_eq!(set(&[nothing]), ["10: ACK"]);
        assert_eq!(listed(&[nothing]), ["9: ACK"]);
    }
}

#[test]
fn contexts_can_be_listed_before_chunks_are_agreed_on_but_not_selected() {
    // S-123, S-124, H-049
    assert_eq!(
        listed(&["base:"]),
        ["9: CONTEXT 0 \"base:allocation\"", "9: ACK"]
    );
    let parts = [set_meta("disk", &["base:allocation"]), opt(2, b"")];
    assert_eq!(said(&Server::default(), &parts), ["10: INVALID", "2: ACK"]);
}

const ALL: [&str; 4] = [
    "9: CONTEXT 0 \"base:allocation\"",
    "9: CONTEXT 0 \"qemu:dirty-bitmap:a\"",
    "9: CONTEXT 0 \"qemu:dirty-bitmap:b\"",
    "9: ACK",
];

#[test]
fn a_list_has_each_requested_context_once() {
    // S-126, S-127, S-129, S-133, S-134
    assert_eq!(listed(&[]), ALL);
    assert_eq!(listed(&["base:", "qemu:"]), ALL);
    assert_eq!(listed(&["qemu:"]), ALL[1..]);
    assert_eq!(listed(&["qemu:dirty-bitmap:"]), ALL[1..]);
    assert_eq!(
        listed(&["qemu:dirty-bitmap:b", "qemu:dirty-bitmap:b"]),
        ALL[2..]
    );
    assert_eq!(listed(&["base:allocation", "base:"]), [ALL[0], ALL[3]]);
    let bitmaps: Vec<&'static str> = (0..300)
        .map(|n| &*format!("qemu:dirty-bitmap:{n}").leak())
        .chain(["base:allocation", "base:allocation"])
        .collect();
    let many = Server::with(Export {
        contexts: bitmaps,
        ..Export::new("disk")
    });
    assert_eq!(said(&many, &[list_meta("disk", &[])]).len(), 302);
}

#[test]
fn a_selection_has_each_named_context_once_with_its_own_number() {
    // S-130, S-131, S-133, S-134, S-136, A-027, A-031
    assert_eq!(set(&[]), ["10: ACK"]);
    for wildcard in ["base:", "qemu:", "qemu:dirty-bitmap:"] {
        assert_eq!(set(&[wildcard]), ["10: ACK"]);
    }
    let expected = [
        "10: CONTEXT 1 \"base:allocation\"",
        "10: CONTEXT 2 \"qemu:dirty-bitmap:b\"",
        "10: ACK",
    ];
    let twice = ["qemu:dirty-bitmap:b", "base:allocation", "base:allocation"];
    assert_eq!(set(&twice), expected);
    let same = vec!["base:allocation"; 256];
    assert_eq!(set(&same).len(), 2);
}

#[test]
fn too_many_queries_are_too_big() {
    // B-004, H-047
    let parts = [
        opt(8, b""),
        list_meta("disk", &["a:b"; 257]),
        set_meta("disk", &["a:b"; 257]),
    ];
    assert_eq!(
        said(&Server::default(), &parts)[1..],
        ["9: TOO_BIG", "10: TOO_BIG"]
    );
    let mut absurd = meta_data(b"disk", &[]);
    absurd[8..].copy_from_slice(&[0xff; 4]);
    let parts = [opt(8, b""), opt(9, &absurd), opt(10, &absurd)];
    assert_eq!(
        said(&Server::default(), &parts)[1..],
        ["9: INVALID", "10: INVALID"]
    );
}

#[test]
fn a_selection_is_gone_when_another_is_tried() {
    // S-131, S-132, S-138
    let status = req(0, 7, 1, 0, 512, b"");
    let bad = vec![
        set_meta("nope", &["base:allocation"]),
        set_meta("disk", &[]),
        opt(10, b"x"),
        set_meta("disk", &["zz:z"]),
        opt(10, &vec![0; 70_000]),
        set_meta("disk", &["a:b"; 257]),
    ];
    for second in bad {
        let parts = options(&[
            opt(8, b""),
            set_meta("disk", &["base:allocation"]),
            second,
            go("disk", &[]),
        ]);
        let ran = serve_after(&Server::default(), &parts, std::slice::from_ref(&status));
        assert_eq!(ran.said, ["#1 error 22 done"]);
    }
    let said = said(
        &Server::default(),
        &[opt(8, b""), set_meta("nope", &[]), list_meta("nope", &[])],
    );
    assert_eq!(said[1..], ["10: UNKNOWN", "9: UNKNOWN"]);
}

#[test]
fn a_selection_outlives_the_step_to_extended_headers() {
    //
    let parts = options(&[
        opt(8, b""),
        set_meta("disk", &["base:allocation"]),
        opt(11, b""),
        go("disk", &[]),
    ]);
    let ran = serve_after(&Server::default(), &parts, &[xreq(0, 7, 1, 0, 512, b"")]);
    assert_eq!(ran.said, ["#1 status 1 512:1 done"]);
}

/// Reads one option.
#[test]
fn contexts_of_64_bits_are_listed_and_then_need_extended_headers() {
    // S-139, S-140, A-032
    let wide = ContextName::new("x-wide:stamp").unwrap();
    for (queries, extended, code) in [
        (&[][..], false, 10u32),
        (&["x-wide:stamp"], false, 10),
        (&["base:"], false, 2),
        (&["base:allocation"], false, 2),
        (&[], true, 2),
    ] {
        for option in [9u32, 10] {
            let mode = if extended {
                Enter::Extended
            } else {
                Enter::Structured
            };
            let data = if option == 9 {
                list_meta("d", queries)
            } else {
                set_meta("d", queries)
            };
            let mut out = BytesMut::new();
            let required = Refusal::ExtendedHeadersRequired;
            match ask(&[mode.mode(), data], &mut out) {
                Requested::ListMetaContext(mut list) => {
                    let wants = queries.is_empty() || queries[0] == wide.as_str();
                    assert_eq!(list.context(&wide, &mut out), wants);
                    assert!(!list.context(&wide, &mut out), "it is listed once");
                    out.clear();
                    let _ = list.refuse(required, "", &mut out);
                }
                Requested::SetMetaContext(set) => {
                    let _ = set.refuse(required, "", &mut out);
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(out[12..16], (0x8000_0000 | code).to_be_bytes());
        }
    }
}

#[test]
fn a_request_to_list_contexts_has_its_queries_and_its_export() {
    let mut out = BytesMut::new();
    let Requested::ListMetaContext(list) = ask(&[list_meta("d", &["a:", "a:b", "a:"])], &mut out)
    else {
        panic!();
    };
    let queries: Vec<_> = list.queries().map(ContextName::as_str).collect();
    assert_eq!(queries, ["a:", "a:b"]);
    assert!(!list.wants_all() && !list.is_secure());
    assert_eq!(list.name().as_str(), "d");
    // S-128: a wildcard is never listed as a context itself.
    let mut list = list;
    assert!(!list.context(&ContextName::new("a:").unwrap(), &mut out));
    assert!(list.context(&ContextName::new("a:c").unwrap(), &mut out));
}

#[test]
fn a_request_without_queries_is_for_all_contexts() {
    let mut out = BytesMut::new();
    let Requested::ListMetaContext(list) = ask(&[list_meta("d", &[])], &mut out) else {
        panic!();
    };
    assert!(list.wants_all() && list.queries().len() == 0);
    assert!(list.wants(&ContextName::base_allocation()));
}

#[test]
fn a_request_for_information_says_which() {
    let mut out = BytesMut::new();
    let Requested::Info(request) = ask(&[info("d", &[3])], &mut out) else {
        panic!();
    };
    assert!(request.wants(InfoType::BlockSize) && !request.wants(InfoType::Description));
    let Requested::Go(request) = ask(&[go("d", &[2])], &mut out) else {
        panic!();
    };
    assert!(!request.wants(InfoType::BlockSize) && request.wants(InfoType::Description));
}

#[test]
fn the_embedder_can_declare_two_names_one_export() {
    // S-088, A-025
    for same in [true, false] {
        let mut out = BytesMut::new();
        let parts = [opt(8, b""), set_meta("", &["base:allocation"])];
        let Requested::SetMetaContext(mut set) = ask(&parts, &mut out) else {
            panic!();
        };
        assert_eq!(
            set.select(&ContextName::base_allocation(), &mut out),
            Some(1)
        );
        assert_eq!(
            set.select(&ContextName::base_allocation(), &mut out),
            Some(1)
        );
        assert_eq!(
            set.select(&ContextName::new("a:b").unwrap(), &mut out),
            None
        );
        let options = set.done(&mut out);
        let (_, Step::Done(Requested::Go(go))) = options.feed(&go("disk", &[]), &mut out).unwrap()
        else {
            panic!();
        };
        assert_eq!(go.contexts_export().unwrap().as_str(), "");
        let transmission = go
            .same_export_as_contexts(same)
            .accept(&Export::new("disk").info, &mut out);
        assert_eq!(transmission.contexts().len(), usize::from(same));
    }
}

#[test]
fn the_embedder_learns_for_which_export_contexts_are_selected() {
    // S-088
    for asked in [info("disk", &[]), go("disk", &[]), opt(1, b"disk")] {
        for (selected, name) in [("b", Some("b")), ("", Some("")), ("nope", None)] {
            let mut out = BytesMut::new();
            let parts = [opt(8, b""), set_meta(selected, &["base:allocation"])];
            let Requested::SetMetaContext(mut set) = ask(&parts, &mut out) else {
                panic!();
            };
            let options = if name.is_some() {
                set.select(&ContextName::base_allocation(), &mut out);
                set.done(&mut out)
            } else {
                set.refuse(Refusal::Unknown, "", &mut out)
            };
            let (_, Step::Done(requested)) = options.feed(&asked, &mut out).unwrap() else {
                panic!();
            };
            let export = match &requested {
                Requested::Info(request) => request.contexts_export(),
                Requested::Go(request) => request.contexts_export(),
                Requested::ExportName(request) => request.contexts_export(),
                other => panic!("{other:?}"),
            };
            assert_eq!(export.map(ExportName::as_str), name);
        }
    }
}
