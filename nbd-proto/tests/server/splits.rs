//! Any bytes, arriving in any pieces.

use crate::support::*;
use proptest::prelude::*;

/// A client that tries everything.
fn busy(mode: Enter) -> Vec<u8> {
    let mut parts = vec![
        opt(99, &[1; 50]),
        opt(3, b""),
        mode.mode(),
        info("disk", &[1, 2, 3]),
        list_meta("disk", &["qemu:"]),
        set_meta("disk", &["base:allocation", "qemu:dirty-bitmap:b"]),
        go("nope", &[]),
        go("disk", &[3]),
    ];
    if mode == Enter::Extended {
        let mut filter = 4096u64.to_be_bytes().to_vec();
        filter.extend(1u32.to_be_bytes());
        parts.push(xreq(0x20, 7, 20, 0, 12, &filter));
        parts.push(xreq(0x20, 0, 21, 0, 100, &[0x21; 100]));
    }
    parts.extend([
        mode.req(0, 0, 1, 512, 100, b""),
        mode.req(0, 1, 2, 0, 100, &[0x25; 100]),
        mode.req(8, 1, 3, 0, 100, &[0x25; 100]),
        mode.req(0, 7, 4, 0, 4096, b""),
        mode.req(0, 99, 5, 0, 4096, b""),
        mode.req(0, 3, 6, 0, 0, b""),
        mode.req(1, 1, 7, u64::MAX, 3, b"abc"),
        mode.req(0, 2, 8, 0, 0, b""),
    ]);
    options(&parts)
}

fn any_mode() -> impl Strategy<Value = Enter> {
    prop::sample::select(HEADER_STYLES.to_vec())
}

proptest! {
    #[test]
    fn the_outcome_does_not_depend_on_how_bytes_arrive(
        mode in any_mode(),
        sizes in prop::collection::vec(1usize..80, 1..20),
        feed: bool,
        keep_back in 0usize..4,
    ) {
        let server = Server { keep_back, ..Server::default() };
        let script = busy(mode);
        let all = run_in(&server, &script, Way::new(true, &[script.len()]));
        prop_assert_eq!(&all.end, &End::Disconnected);
        let other = run_in(&server, &script, Way::new(feed, &sizes));
        prop_assert_eq!(all.asked, other.asked);
        prop_assert_eq!(all.said, other.said);
    }

    #[test]
    fn any_bytes_get_only_legal_replies(
        flags in 0u32..4,
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        feed: bool,
    ) {
        for server in [Server::default(), Server::selective(), Server::forced()] {
            let script = [&flags.to_be_bytes()[..], &garbage].concat();
            let _ = run_in(&server, &script, Way::new(feed, &[7]));
        }
    }

    #[test]
    fn any_options_get_only_legal_replies(
        parts in prop::collection::vec(
            (0u32..14, prop::collection::vec(any::<u8>(), 0..60)), 0..12),
        forced: bool,
    ) {
        let server = if forced { Server::forced() } else { Server::selective() };
        let parts: Vec<_> = parts.iter().map(|(code, data)| opt(*code, data)).collect();
        let _ = run_in(&server, &options(&parts), Way::new(true, &[5, 100]));
    }

    #[test]
    fn any_requests_get_only_legal_replies(
        mode in any_mode(),
        parts in prop::collection::vec(
            (any::<u16>(), 0u16..10, any::<u64>(), any::<u64>(), 0u64..70_000), 0..12),
        small: bool,
    ) {
        let server = Server::with(Export::new("disk").sizes(512, 512, 32768));
        let mut script = mode.with_contexts(&["base:allocation", "qemu:dirty-bitmap:a"]);
        for (flags, command, cookie, offset, len) in parts {
            let (offset, len) = if small {
                (offset % (1 << 20) / 512 * 512, len / 512 * 512)
            } else {
                (offset, len)
            };
            let flags = if small { flags & 0x3f } else { flags };
            let follows = match mode {
                Enter::Extended => flags & 0x20 != 0 || command == 1,
                _ => command == 1,
            };
            let payload = if follows { vec![0; usize::try_from(len).unwrap()] } else { vec![] };
            script.extend(mode.req(flags, command, cookie, offset, len, &payload));
        }
        let _ = run_in(&server, &script, Way::new(true, &[1000, 1]));
    }

    #[test]
    fn any_extents_are_made_to_obey_the_rules(
        extended: bool,
        one: bool,
        minimum in prop::sample::select(vec![1u32, 512, 4096]),
        blocks in (0u64..100, 1u64..100),
        list in prop::collection::vec((0u64..20_000, 0u64..4), 0..40),
    ) {
        let mode = if extended { Enter::Extended } else { Enter::Structured };
        let server = Server::with(Export::new("disk").sizes(minimum, 4096, 65536));
        let (offset, len) = (blocks.0 * 4096, blocks.1 * 4096);
        crate::status::checked(&server, mode, u16::from(one) * 8, (offset, len), list);
    }
}

#[test]
fn the_decoder_that_checks_everything_notices_mistakes() {
    for mode in HEADER_STYLES {
        let server = Server::default();
        let script = busy(mode);
        let sent = run_in(&server, &script, Way::new(true, &[script.len()])).sent;
        let before = mode.options();
        let data = run_in(&server, &before, Way::new(true, &[before.len()])).sent;
        let checks = |sent: &[u8]| {
            std::panic::catch_unwind(|| crate::val::check(&script, sent, &server.config.limits))
        };
        assert!(checks(&sent).is_ok());
        assert!(checks(&sent[..sent.len() - 1]).is_err());
        assert!(checks(&[&sent[..], &[0]].concat()).is_err());
        // The first bytes are all magic numbers, codes and lengths.
        for at in 0..18 + 20 {
            let mut bad = sent.clone();
            bad[at] ^= 0x40;
            assert!(checks(&bad).is_err(), "byte {at}");
        }
        // So is a reply to a write.
        let ran = serve_in(&server, mode, &[mode.req(0, 1, 1, 0, 4, b"data")]);
        let script = [before, mode.req(0, 1, 1, 0, 4, b"data")].concat();
        for at in 0..ran.sent.len() {
            let mut bad = [&data[..], &ran.sent].concat();
            bad[data.len() + at] ^= 2;
            let checked = std::panic::catch_unwind(|| {
                crate::val::check(&script, &bad, &server.config.limits)
            });
            assert!(checked.is_err(), "{mode:?} byte {at}");
        }
    }
}
