use super::*;
use crate::model::read;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

fn name(name: &str) -> ExportName {
    ExportName::new(name).unwrap()
}

fn images(names: &[&str]) -> (TempDir, Directory) {
    let directory = tempfile::tempdir().unwrap();
    for name in names {
        fs::write(directory.path().join(name), name).unwrap();
    }
    let exports = Directory::open(directory.path()).unwrap();
    (directory, exports)
}

fn listed(exports: &Directory) -> Vec<String> {
    let list = exports.list().into_iter();
    list.map(|listing| listing.name.as_str().to_owned())
        .collect()
}

#[test]
fn a_file_is_an_export_of_its_name_as_long_as_it_is_there() {
    let (directory, exports) = images(&["b", "a"]);
    let exports = exports.with_description("an image");
    let offer = exports.lookup(&name("a")).unwrap();
    assert!(exports.may_block() && !offer.private);
    let export = offer.export.into_sync().unwrap();
    assert_eq!(read(&*export, 0, 1), b"a");
    assert_eq!(export.description(), "an image");
    export.write(0, b"x", true).unwrap();
    assert_eq!(fs::read(directory.path().join("a")).unwrap(), b"x");
    assert_eq!(listed(&exports), ["a", "b"]);
    assert_eq!(exports.list()[0].description.as_str(), "an image");
    fs::rename(directory.path().join("a"), directory.path().join("c")).unwrap();
    assert_eq!(listed(&exports), ["b", "c"]);
    assert_eq!(
        exports.find(&name("a")).unwrap_err(),
        Unavailable::unknown()
    );
    assert!(exports.find(&name("c")).is_ok());
}

#[test]
fn no_name_leads_out_of_the_directory_or_to_anything_but_a_file() {
    let (outer, _) = images(&["secret"]);
    let inner = outer.path().join("images");
    fs::create_dir_all(inner.join("below")).unwrap();
    for file in ["images/plain", "images/.hidden", "images/below/deep"] {
        fs::write(outer.path().join(file), "x").unwrap();
    }
    symlink("../secret", inner.join("out")).unwrap();
    symlink("plain", inner.join("alias")).unwrap();
    symlink("/dev/zero", inner.join("device")).unwrap();
    let fifo = (inner.join("pipe"), Mode::RUSR | Mode::WUSR);
    rustix::fs::mknodat(CWD, &fifo.0, FileType::Fifo, fifo.1, 0).unwrap();
    let secret = outer.path().join("secret");
    let exports = Directory::open(&inner).unwrap();
    for bad in [
        "",
        ".",
        "..",
        "../secret",
        "below/../../secret",
        "./plain",
        "/plain",
        "plain/",
        secret.to_str().unwrap(),
        "below",
        "below/deep",
        ".hidden",
        "out",
        "alias",
        "device",
        "pipe",
        "plain\u{2028}",
        &"x".repeat(4096),
    ] {
        let found = exports.find(&name(bad));
        assert_eq!(found.unwrap_err(), Unavailable::unknown(), "{bad:?}");
    }
    assert_eq!(listed(&exports), ["plain"]);
    assert!(exports.find(&name("plain")).is_ok());
}

#[test]
fn clients_of_a_file_share_it() {
    let (directory, exports) = images(&["a", "b"]);
    fs::hard_link(directory.path().join("a"), directory.path().join("same")).unwrap();
    let export = |file| {
        exports
            .find(&name(file))
            .unwrap()
            .export
            .into_sync()
            .unwrap()
    };
    let first = export("a");
    assert!(Arc::ptr_eq(&first, &export("a")) && Arc::ptr_eq(&first, &export("same")));
    assert!(!Arc::ptr_eq(&first, &export("b")));
    // Another file of the same name is another export.
    fs::remove_file(directory.path().join("a")).unwrap();
    fs::write(directory.path().join("a"), "new").unwrap();
    assert_eq!((export("a").size(), first.size()), (3, 1));
    drop(first);
    drop(export("b"));
    assert_eq!(exports.used.lock().unwrap().len(), 1);
}

#[test]
fn threads_that_open_a_file_at_once_share_it() {
    let (_directory, exports) = images(&["a"]);
    for _ in 0..50 {
        let open = || {
            exports
                .find(&name("a"))
                .unwrap()
                .export
                .into_sync()
                .unwrap()
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "the threads of a server stand for themselves"
        )]
        let [one, other] = std::thread::scope(|scope| {
            [scope.spawn(open), scope.spawn(open)].map(|thread| thread.join().unwrap())
        });
        assert!(Arc::ptr_eq(&one, &other));
    }
}

#[test]
fn files_are_read_only_where_the_directory_says_so() {
    let (_directory, exports) = images(&["a"]);
    assert!(
        !exports
            .lookup(&name("a"))
            .unwrap()
            .export
            .info()
            .is_read_only()
    );
    let exports = exports.read_only();
    let export = exports.lookup(&name("a")).unwrap().export;
    assert!(export.info().is_read_only());
    assert!(export.into_sync().unwrap().write(0, b"x", false).is_err());
}

#[test]
fn a_file_that_is_there_and_cannot_be_opened_is_refused_with_the_reason() {
    for (kind, expected) in [
        (ErrorKind::PermissionDenied, Refusal::Policy),
        (ErrorKind::ReadOnlyFilesystem, Refusal::Policy),
        (ErrorKind::NotFound, Refusal::Unknown),
        (ErrorKind::InvalidFilename, Refusal::Unknown),
    ] {
        assert_eq!(unavailable(&kind.into()).refusal, expected, "{kind}");
    }
    // Not even root may write to this one.
    if let Ok(system) = Directory::open("/sys/kernel")
        && system
            .list()
            .iter()
            .any(|file| file.name == name("uevent_seqnum"))
    {
        let why = system.find(&name("uevent_seqnum")).unwrap_err();
        assert_eq!(why.refusal, Refusal::Policy);
        assert!(
            why.message.as_str().contains("cannot be opened: "),
            "{why:?}"
        );
        assert!(system.lookup(&name("uevent_seqnum")).is_none());
    }
}

#[test]
fn a_list_is_sorted_and_bounded() {
    let files: Vec<String> = (0..5000).map(|n| format!("{n:04}")).collect();
    let files: Vec<&str> = files.iter().rev().map(String::as_str).collect();
    let (_directory, exports) = images(&files);
    let all = listed(&exports);
    assert!(all.len() == 5000 && all.is_sorted());
    let exports = exports.with_max_listed(3);
    assert_eq!(listed(&exports), ["0000", "0001", "0002"]);
    assert!(exports.find(&name("4999")).is_ok());
}
