//! Options, step by step.

use crate::{
    clients::{Disk, Kind, Negotiation, Wanted, context},
    exports::PARITY,
    servers::{SIZE, Serving, name},
};
use nbd_io::client::Error;
use nbd_proto::HeaderStyle;

/// Asks for every option once, and returns the number of aborted negotiations.
pub(super) fn every_option_is_asked_for<K: Kind>(client: &K, serving: &Serving) -> usize {
    let uri = serving.plain_uri("disk");
    let Some(certificates) = &serving.certificates else {
        asks(client.start(&uri, None));
        return 1;
    };
    // Nothing works without TLS, with or without a way to start it.
    let mut plain = client.start(&uri, Some(certificates.dir()));
    assert_refused(plain.list().unwrap_err(), "NBD_REP_ERR_TLS_REQD");
    let (plain, error) = plain.go("disk").err().unwrap();
    assert_eq!(error.code.to_string(), "NBD_REP_ERR_TLS_REQD");
    asks(K::start_tls(plain));
    asks(client.start_secure(&serving.parsed_uri("disk")));
    2
}

fn asks<H: Negotiation>(mut negotiation: H) {
    assert_eq!(negotiation.mode(), HeaderStyle::Simple);
    let list = negotiation.list().unwrap();
    let mut list: Vec<_> = list
        .iter()
        .map(|entry| entry.name.as_ref().unwrap().as_str())
        .collect();
    list.sort_unstable();
    assert_eq!(list, ["bare", "disk", "quick"]);

    let info = negotiation.info("disk").unwrap();
    assert_eq!(info.size, SIZE);
    assert!(info.can_multi_conn() && info.is_rotational());
    assert_refused(
        negotiation.info("other").unwrap_err(),
        "NBD_REP_ERR_UNKNOWN",
    );

    // No contexts without structured replies.
    let disk = name("disk");
    negotiation.set_meta_context(&disk, &[]).unwrap_err();
    negotiation.structured_reply().unwrap();
    assert_eq!(negotiation.mode(), HeaderStyle::Structured);
    negotiation.extended_headers().unwrap();
    assert_eq!(negotiation.mode(), HeaderStyle::Extended);
    negotiation.structured_reply().unwrap_err();

    let every = negotiation.list_meta_context(&disk, &[]).unwrap();
    assert_eq!(every.len(), 2);
    let some = negotiation
        .list_meta_context(&disk, &[context("x-spy:")])
        .unwrap();
    assert_eq!(some.len(), 1);
    assert_eq!(some[0].name.as_ref().unwrap().as_str(), PARITY);
    let queries = [context(PARITY), context("other:context")];
    let selected = negotiation.set_meta_context(&disk, &queries).unwrap();
    assert_eq!(selected.len(), 1);

    let (negotiation, error) = negotiation.go("other").err().unwrap();
    assert_eq!(error.code.to_string(), "NBD_REP_ERR_UNKNOWN");
    negotiation.abort();
}

fn assert_refused(error: Error, code: &str) {
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    let mut text = String::new();
    while let Some(cause) = source {
        text = format!("{text}{cause}: ");
        source = cause.source();
    }
    assert!(text.contains(code), "{text}");
}

/// Enters exports by both options, and at once. Returns the number of connections.
pub(super) fn exports_are_entered<K: Kind>(client: &K, serving: &Serving) -> usize {
    match &serving.certificates {
        None => {
            let start = || client.start(&serving.plain_uri("disk"), None);
            enters(start(), start());
        }
        Some(_) => {
            let start = || client.start_secure(&serving.parsed_uri("disk"));
            enters(start(), start());
        }
    }
    let mode = HeaderStyle::Structured;
    let connections = 1;
    let wanted = Wanted { mode, connections };
    let bare = client.connect(&serving.uri("bare"), wanted).unwrap();
    assert!(bare.export().is_read_only() && !bare.export().can_multi_conn());
    assert_eq!(bare.read(12_000, 345).unwrap(), [b'x'; 345]);
    assert!(matches!(
        bare.write(0, &[0], nbd_proto::CommandFlags::NONE)
            .unwrap_err(),
        Error::Misuse(nbd_proto::Misuse::ReadOnly { .. })
    ));
    bare.disconnect().unwrap();
    3
}

fn enters<H: Negotiation<Disk: Disk>>(mut first: H, mut second: H) {
    first.extended_headers().unwrap();
    let queries = [context("base:allocation"), context(PARITY)];
    first.set_meta_context(&name("disk"), &queries).unwrap();
    let disk = first.go("disk").ok().unwrap();
    assert_eq!(disk.mode(), HeaderStyle::Extended);
    assert_eq!(disk.contexts().len(), 2);
    assert_eq!(disk.extents(0..SIZE).unwrap().len(), 8);

    second.structured_reply().unwrap();
    let quick = second.export_name(&name("quick")).unwrap();
    assert_eq!(quick.mode(), HeaderStyle::Structured);
    assert_eq!(quick.export().size, SIZE);
    assert_eq!(quick.export().block_sizes, None);
    assert_eq!(quick.read(SIZE - 512, 512).unwrap(), [0; 512]);
    for disk in [disk, quick] {
        disk.disconnect().unwrap();
    }
}
