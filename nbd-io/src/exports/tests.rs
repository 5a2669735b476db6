use super::*;
use crate::Memory;
use nbd_proto::Failure;

fn name(name: &str) -> ExportName {
    ExportName::new(name).unwrap()
}

fn memory(size: u64) -> Arc<dyn Export> {
    Arc::new(Memory::new(size).with_description(format!("{size} bytes")))
}

#[test]
fn an_export_is_found_by_its_exact_name() {
    let exports: &dyn Exports = &NamedExports::new()
        .with(name("a"), memory(1))
        .with(name("a"), memory(2))
        .with(name("b"), memory(3));
    let offer = exports.lookup(&name("a")).unwrap();
    assert_eq!((offer.export.size(), offer.name), (2, None));
    for unknown in ["", "A", "a ", "c"] {
        assert!(exports.lookup(&name(unknown)).is_none(), "{unknown:?}");
    }
}

#[test]
fn the_default_export_has_a_name_of_its_own() {
    let exports = NamedExports::new()
        .with(name("a"), memory(1))
        .with_default(name("a"));
    let offer = exports.lookup(&ExportName::default()).unwrap();
    assert_eq!((offer.export.size(), offer.name), (1, Some(name("a"))));
    let exports = exports.with(ExportName::default(), memory(2));
    let offer = exports.lookup(&ExportName::default()).unwrap();
    assert_eq!((offer.export.size(), offer.name), (2, None));
    let dangling = NamedExports::new().with_default(name("a"));
    assert!(dangling.lookup(&ExportName::default()).is_none());
    let single = NamedExports::single(memory(4));
    assert!(single.lookup(&ExportName::default()).is_some());
    assert!(single.lookup(&name("a")).is_none());
}

#[test]
fn a_list_marks_exports_for_tls_only() {
    let exports = NamedExports::new()
        .with_tls_only(name("b"), memory(2))
        .with(name("a"), memory(1));
    assert_eq!(
        exports.list(),
        [
            Listing {
                name: name("a"),
                description: "1 bytes".into(),
                tls_only: false,
            },
            Listing {
                name: name("b"),
                description: "2 bytes".into(),
                tls_only: true,
            },
        ]
    );
    assert!(exports.lookup(&name("b")).unwrap().tls_only);
}

#[test]
fn a_function_finds_exports_without_listing_them() {
    let exports: Arc<dyn Exports> = Arc::new(ExportsByName::new(|name: &ExportName| {
        (name.as_str() == "x").then(|| Offer::new(memory(1)).tls_only())
    }));
    assert!(exports.lookup(&name("x")).unwrap().tls_only);
    assert!(exports.lookup(&name("y")).is_none());
    assert!(exports.list().is_empty());
}

/// An export that may wait; when it is described, if it says so.
struct Slow(bool);

impl Export for Slow {
    fn refresh_may_block(&self) -> bool {
        self.0
    }

    fn size(&self) -> u64 {
        1
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Ok(())
    }
}

#[test]
fn exports_that_wait_for_nothing_are_asked_for_in_place() {
    let offer = |_: &ExportName| Some(Offer::new(memory(1)));
    let one = NamedExports::single(memory(1));
    let described = one.clone().with(name("slow"), Arc::new(Slow(false)));
    let other = one.clone().with(name("slow"), Arc::new(Slow(true)));
    let secret = one
        .clone()
        .with_tls_only(name("slow"), Arc::new(Slow(true)));
    for (exports, may_block) in [
        (&NamedExports::new() as &dyn Exports, false),
        (&one, false),
        (&described, false),
        (&other, true),
        (&secret, true),
        // There is no telling of a function.
        (&ExportsByName::new(offer), true),
        (&ExportsByName::shared(offer), true),
        (&ExportsByName::new(offer).non_blocking(), false),
        (&ExportsByName::shared(offer).non_blocking(), false),
    ] {
        assert_eq!(exports.may_block(), may_block);
    }
}

#[test]
fn exports_of_a_function_are_private_unless_shared() {
    let offer = |_: &ExportName| Some(Offer::new(memory(1)));
    let private = |_: &ExportName| Some(Offer::new(memory(1)).private());
    for (exports, expected) in [
        (&ExportsByName::new(offer) as &dyn Exports, true),
        (&ExportsByName::shared(offer), false),
        (&ExportsByName::shared(private), true),
        (&NamedExports::single(memory(1)), false),
    ] {
        let offer = exports.lookup(&ExportName::default()).unwrap();
        assert_eq!(offer.private, expected);
    }
}
