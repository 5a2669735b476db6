//! Features of qemu-nbd alone: several contexts, extended headers and filters.

use std::thread;

use interop::{Image, Peer, QemuNbd, Server, require};
use serde_json::Value;

use crate::{
    driver::{
        Client, CommandFlags, ConnectOptions, Error, HeaderStyle, Misuse,
        meta::{Allocation, AllocationDepth, DirtyBitmap},
    },
    peers::exercise,
    support::{
        KIB, MIB, assert_has, assert_names, connect, context, extents, go, info, map, name, names,
        options, pattern, run, uri,
    },
};

const ALLOCATION: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
const BITMAP: &str = "qemu:dirty-bitmap:day";

/// A qcow2 image above another one, with holes, zeroes and a bitmap.
fn layers() -> Option<Image> {
    let base = Image::qcow2(4 * MIB)?
        .io("write -P 1 0 1M")
        .io("write -P 2 2M 512k");
    let top = base
        .overlay()?
        .io("write -P 3 512k 256k")
        .bitmap("day")
        .io("write -P 4 1M 128k")
        .io("write -z 2M 128k");
    Some(top.stop_bitmap("day"))
}

fn serve_layers() -> Option<Server> {
    QemuNbd::new(layers()?)
        .read_only()
        .allocation_depth()
        .bitmap("day")
        .description("yesterday's state")
        .start()
}

fn with_contexts(options: ConnectOptions, contexts: &[&str]) -> ConnectOptions {
    contexts
        .iter()
        .fold(options, |options, name| options.context(context(name)))
}

#[test]
fn several_contexts_are_walked_in_step() {
    run(|| {
        let Some(server) = serve_layers() else { return };
        let uri = server.uri("");
        for extended in [false, true] {
            let options = options().extended_headers(extended);
            let client = with_contexts(options, &[BITMAP, ALLOCATION, DEPTH])
                .connect(&uri)
                .unwrap();
            let mode = if extended {
                HeaderStyle::Extended
            } else {
                HeaderStyle::Structured
            };
            assert_eq!(client.mode(), mode);
            let selected: Vec<_> = client
                .contexts()
                .iter()
                .map(|context| context.name.as_ref().unwrap().as_str())
                .collect();
            assert_eq!(selected.len(), 3);

            let runs: Vec<_> = client
                .extents(0..client.size())
                .map(Result::unwrap)
                .collect();
            for (index, context) in selected.iter().enumerate() {
                // Together the contexts change more often than each alone.
                let mut ours: Vec<(u64, u64, u64)> = Vec::new();
                for run in &runs {
                    assert_eq!(run.status.len(), 3);
                    match ours.last_mut() {
                        Some(last) if last.2 == run.status[index] => last.1 += run.len,
                        _ => ours.push((run.offset, run.len, run.status[index])),
                    }
                }
                let Some(theirs) = map(&uri, context) else {
                    return;
                };
                assert_eq!(ours, theirs, "{context}");
            }

            // The meaning of the numbers, at places that were written below, above and after the
            // bitmap.
            let at = |offset: u64| {
                let run = runs.iter().rfind(|run| run.offset <= offset).unwrap();
                let of = |context| {
                    run.status[selected.iter().position(|name| *name == context).unwrap()]
                };
                (
                    Allocation::new(of(ALLOCATION)).is_allocated(),
                    AllocationDepth::new(of(DEPTH)).depth(),
                    DirtyBitmap::new(of(BITMAP)).is_dirty(),
                )
            };
            assert_eq!(at(0), (true, 2, false));
            assert_eq!(at(512 * KIB), (true, 1, false));
            assert_eq!(at(MIB), (true, 1, true));
            assert_eq!(at(3 * MIB), (false, 0, false));
            client.disconnect().unwrap();
        }
    });
}

#[test]
fn allocation_agrees_with_qemu_img_map() {
    run(|| {
        let Some(qemu_img) = require(Peer::QemuImg) else {
            return;
        };
        let Some(image) = layers() else { return };
        let said = qemu_img
            .run([
                "map".as_ref(),
                "--output=json".as_ref(),
                image.path().as_os_str(),
            ])
            .expect_success();
        let said: Value = serde_json::from_str(&said).unwrap();
        let mut theirs: Vec<(u64, u64, u64)> = Vec::new();
        for extent in said.as_array().unwrap() {
            let number = |field: &str| extent[field].as_u64().unwrap();
            let flag = |field: &str| u64::from(extent[field].as_bool().unwrap());
            // The context calls every range without data a hole, known zeroes among them.
            let hole = 1 - flag("data");
            let status = hole | flag("zero") << 1;
            match theirs.last_mut() {
                Some(last) if last.2 == status => last.1 += number("length"),
                _ => theirs.push((number("start"), number("length"), status)),
            }
        }

        let Some(server) = QemuNbd::new(image).read_only().start() else {
            return;
        };
        assert_eq!(extents(&connect(&server, "")), theirs);
    });
}

#[test]
fn a_filter_asks_for_some_of_the_contexts() {
    run(|| {
        let Some(server) = serve_layers() else { return };
        let all = [ALLOCATION, DEPTH, BITMAP];
        let client = with_contexts(options(), &all)
            .connect(&server.uri(""))
            .unwrap();
        assert!(client.export().can_filter_block_status());
        let id = |wanted: &str| {
            client
                .contexts()
                .iter()
                .find(|context| context.name.as_ref().unwrap().as_str() == wanted)
                .unwrap()
                .id
        };
        for wanted in [&[BITMAP][..], &[DEPTH, ALLOCATION], &all] {
            let ids: Vec<u32> = wanted.iter().map(|wanted| id(wanted)).collect();
            let found = client
                .block_status_of(&ids, 0, 4 * MIB, CommandFlags::NONE)
                .unwrap();
            let mut found: Vec<u32> = found.iter().map(|context| context.id).collect();
            found.sort_unstable();
            let mut ids = ids;
            ids.sort_unstable();
            assert_eq!(found, ids);
        }
        for wrong in [&[][..], &[4711], &[id(DEPTH), id(DEPTH)]] {
            let error = client
                .block_status_of(wrong, 0, 4 * MIB, CommandFlags::NONE)
                .unwrap_err();
            assert!(matches!(error, Error::Misuse(Misuse::Filter)), "{error:?}");
        }
        let one = client
            .block_status(0, 4 * MIB, CommandFlags::REQ_ONE)
            .unwrap();
        assert!(one.iter().all(|context| context.extents.len() == 1));
        client.disconnect().unwrap();

        let client = with_contexts(options().extended_headers(false), &all)
            .connect(&server.uri(""))
            .unwrap();
        assert!(!client.export().can_filter_block_status());
        let error = client
            .block_status_of(&[0], 0, MIB, CommandFlags::NONE)
            .unwrap_err();
        assert!(matches!(error, Error::Misuse(_)), "{error:?}");
    });
}

#[test]
fn requests_with_a_payload_of_their_own_stay_in_one_piece() {
    run(|| {
        let Some(server) = serve_layers() else { return };
        let client = with_contexts(options(), &[ALLOCATION, BITMAP])
            .connect(&server.uri(""))
            .unwrap();
        let id = client.contexts()[0].id;
        thread::scope(|scope| {
            for thread in 0..8 {
                let client = client.clone();
                scope.spawn(move || {
                    for round in 0..400 {
                        if (thread + round) % 2 == 0 {
                            let found = client
                                .block_status_of(&[id], 0, 4 * MIB, CommandFlags::NONE)
                                .unwrap();
                            assert_eq!(found.len(), 1);
                        } else {
                            assert_has(&client, 512 * KIB, &[3; 512]);
                        }
                    }
                });
            }
        });
        client.disconnect().unwrap();
    });
}

#[test]
fn extended_headers_carry_every_command() {
    // C-138, C-140
    run(|| {
        let Some(image) = Image::qcow2(2 * MIB) else {
            return;
        };
        let Some(server) = QemuNbd::new(image).discard().start() else {
            return;
        };
        let client = connect(&server, "");
        assert_eq!(client.mode(), HeaderStyle::Extended);
        let copy = exercise(&client);
        client.disconnect().unwrap();
        // The other order is legal too.
        let mut negotiation = options()
            .start(&uri(&server.uri("")))
            .unwrap()
            .negotiation()
            .unwrap();
        negotiation.structured_reply().unwrap();
        negotiation.extended_headers().unwrap();
        // C-139
        let again = negotiation.structured_reply().unwrap_err();
        assert_names(&again, &["NBD_OPT_STRUCTURED_REPLY"]);
        let client = negotiation.go(go("")).unwrap().into_result().unwrap();
        assert_eq!(client.mode(), HeaderStyle::Extended);
        assert_has(&client, 0, &copy);
        client.disconnect().unwrap();
    });
}

#[test]
fn a_single_request_may_be_longer_than_32_bits() {
    run(|| {
        const SIZE: u64 = 6 << 30;
        let Some(image) = Image::qcow2(SIZE) else {
            return;
        };
        let Some(server) = QemuNbd::new(image.io("write -P 9 5G 64k"))
            .discard()
            .start()
        else {
            return;
        };
        let client = connect(&server, "");
        let runs: Vec<_> = client.extents(0..SIZE).map(Result::unwrap).collect();
        assert_eq!(runs.len(), 3);
        assert_eq!(runs[0].len, 5 << 30);
        // This request is never split.
        let found = client.block_status(0, SIZE, CommandFlags::NONE).unwrap();
        assert_eq!(found[0].extents[0].len, 5 << 30);
        client.write_zeroes(0, SIZE, CommandFlags::NONE).unwrap();
        assert_has(&client, 5 << 30, &[0; 4096]);
        client.trim(0, SIZE, CommandFlags::NONE).unwrap();
        client.disconnect().unwrap();
    });
}

#[test]
fn reads_of_holes_come_as_holes() {
    run(|| {
        let Some(server) = QemuNbd::new(Image::raw(4 * MIB)).start() else {
            return;
        };
        let client = connect(&server, "");
        let data = pattern(1, 64 * KIB);
        client.write_all_at(&data, MIB).unwrap();
        let mut expected = vec![0; 4 << 20];
        expected[1 << 20..][..64 << 10].copy_from_slice(&data);
        assert_has(&client, 0, &expected);

        // In one piece, which extended headers allow.
        let mut buf = vec![1; 4 << 20];
        client
            .read_exact_at_with(&mut buf, 0, CommandFlags::DF)
            .unwrap();
        assert!(buf == expected);
    });
}

#[test]
fn an_export_is_described() {
    run(|| {
        let Some(server) = serve_layers() else { return };
        let client = connect(&server, "");
        let export = client.export();
        assert_eq!(
            export.description.as_ref().unwrap().as_str(),
            "yesterday's state"
        );
        assert_eq!(export.name.as_ref().unwrap().as_str(), "");
        assert!(export.is_read_only());
        let error = client.write_all_at(&[0; 512], 0).unwrap_err();
        assert!(
            matches!(error, Error::Misuse(Misuse::ReadOnly { .. })),
            "{error:?}"
        );
        let Some(theirs) = info(&server.uri("")) else {
            return;
        };
        assert_eq!(theirs["export-size"].as_u64(), Some(client.size()));

        let mut negotiation = options()
            .start(&uri(&server.uri("")))
            .unwrap()
            .negotiation()
            .unwrap();
        let list = negotiation.list().unwrap();
        assert_eq!(names(&list), [("", "yesterday's state")]);
        // Contexts can be looked for by a prefix.
        let found = negotiation
            .list_meta_context(&name(""), &[context("qemu:")])
            .unwrap();
        let mut found: Vec<_> = found
            .iter()
            .map(|entry| entry.name.as_ref().unwrap().as_str())
            .collect();
        found.sort_unstable();
        assert_eq!(found, [DEPTH, BITMAP]);
        // C-164
        negotiation.structured_reply().unwrap();
        let selected = negotiation
            .set_meta_context(&name(""), &[context("base:")])
            .unwrap();
        assert!(selected.is_empty());
        negotiation.abort();
    });
}

#[test]
fn contexts_that_are_missing_are_left_out() {
    run(|| {
        let Some(server) = QemuNbd::new(Image::raw(MIB)).start() else {
            return;
        };
        let asked = ["qemu:dirty-bitmap:none", ALLOCATION, "other:context"];
        let client = with_contexts(options(), &asked)
            .connect(&server.uri(""))
            .unwrap();
        let names: Vec<_> = client
            .contexts()
            .iter()
            .map(|context| context.name.as_ref().unwrap().as_str())
            .collect();
        assert_eq!(names, [ALLOCATION]);
    });
}

#[test]
fn a_failed_selection_leaves_none() {
    // C-154
    run(|| {
        let Some(server) = QemuNbd::new(Image::raw(MIB)).export_name("disk").start() else {
            return;
        };
        let mut negotiation = options()
            .start(&uri(&server.uri("disk")))
            .unwrap()
            .negotiation()
            .unwrap();
        negotiation.structured_reply().unwrap();
        negotiation
            .set_meta_context(&name("disk"), &[context(ALLOCATION)])
            .unwrap();
        negotiation
            .set_meta_context(&name("other"), &[context(ALLOCATION)])
            .unwrap_err();
        let client = negotiation.go(go("disk")).unwrap().into_result().unwrap();
        no_contexts(&client);
        client.disconnect().unwrap();
    });
}

fn no_contexts(client: &Client) {
    assert!(client.contexts().is_empty());
    let error = client.block_status(0, 512, CommandFlags::NONE).unwrap_err();
    assert!(
        matches!(error, Error::Misuse(Misuse::NoContext)),
        "{error:?}"
    );
}
