//! `nbd object`, and the commands that look at and copy disks on object storage.

use crate::support::nbd;
use interop::{MIB, pattern, run};
use serde_json::json;
use std::{fs, path::Path};
use tempfile::TempDir;

/// A directory with an image of 9 MiB, of which 2 MiB are data, and the URI of a disk there.
fn place() -> (TempDir, String, String) {
    let dir = tempfile::Builder::new().prefix("nbd-").tempdir();
    let dir = dir.expect("a directory can be made");
    let mut data = vec![0; 9 << 20];
    data[3 << 20..5 << 20].copy_from_slice(&pattern(1, 2 * MIB));
    let image = dir.path().join("image");
    fs::write(&image, data).expect("there is room for a file");
    let uri = format!("file://{}/disk", dir.path().display());
    let image = image.to_str().expect("our own paths are text").to_owned();
    (dir, image, uri)
}

/// Flips a byte in the first segment of a disk.
fn damage(dir: &Path) {
    let mut pending = vec![dir.join("disk/seg")];
    while let Some(path) = pending.pop() {
        if path.is_file() {
            let mut data = fs::read(&path).expect("our own files can be read");
            let middle = data.len() / 2;
            data[middle] ^= 1;
            fs::write(&path, data).expect("our own files can be written");
            return;
        }
        let entries = fs::read_dir(path).expect("our own directories can be read");
        pending.extend(entries.map(|entry| entry.expect("it is there").path()));
    }
    panic!("there is no segment");
}

#[test]
fn disks_are_copied_to_and_from_object_storage_with_their_holes() {
    run(|| {
        let (dir, image, uri) = place();
        nbd(["copy", &image, &uri]).expect(0);
        nbd(["compare", &image, &uri]).expect(0);
        let map = nbd(["map", "--json", &uri]).json();
        let extents = map["contexts"][0]["extents"].as_array().map(Vec::len);
        assert_eq!(extents, Some(3), "{map}");
        assert_eq!(nbd(["info", "--size", &uri]).expect(0), "9437184\n");
        let back = dir.path().join("back");
        let back = back.to_str().expect("our own paths are text");
        nbd(["copy", "--verify", &uri, back]).expect(0);
        nbd(["compare", &image, back]).expect(0);
        // From one store to another.
        let other = format!("{uri}2");
        nbd(["copy", &uri, &other]).expect(0);
        nbd(["compare", &other, &image]).expect(0);
        // A destination that is too small stays as it is.
        let small = format!("{uri}3");
        nbd(["object", "create", &small, "1M"]).expect(0);
        let refused = nbd(["copy", &image, &small]);
        assert!(refused.stderr.contains("is too small"), "{refused:?}");
    });
}

#[test]
fn disks_are_made_looked_at_checked_and_deleted() {
    run(|| {
        let (dir, image, uri) = place();
        nbd(["object", "create", &uri, "1T"]).expect(0);
        let again = nbd(["object", "create", &uri, "1T"]);
        assert!(again.stderr.contains("`nbd object delete "), "{again:?}");
        nbd(["copy", &image, &uri]).expect(0);
        let snapshot = format!("{uri}@one");
        nbd(["object", "snapshot", &snapshot]).expect(0);
        assert_eq!(nbd(["object", "list", &uri]).expect(0), "one\n");
        let info = nbd(["object", "info", "--json", &uri]).json();
        assert_eq!(info["export-size"], json!(1_u64 << 40));
        assert_eq!(info["snapshots"], json!(["one"]));
        let listed = nbd(["object", "list", "--json", &uri]).json();
        assert_eq!(listed["snapshots"][0]["name"], json!("one"));
        let checked = nbd(["object", "check", "--json", &snapshot]).json();
        assert_eq!(
            (&checked["damaged"], &checked["records"]),
            (&json!(0), &json!(32))
        );
        let collected = nbd(["object", "gc", "--json", "--age", "0.001", &uri]).json();
        assert!(collected["live-objects"].as_u64() > Some(0), "{collected}");
        nbd(["object", "check", &uri]).expect(0);

        damage(dir.path());
        let said = nbd(["object", "check", &uri]).expect(1);
        assert!(
            said.contains("damaged: seg/") || said.contains("/seg/"),
            "{said}"
        );

        nbd(["object", "delete", &snapshot]).expect(0);
        nbd(["object", "delete", &uri]).expect(0);
        let gone = nbd(["object", "info", &uri]);
        assert!(
            gone.stderr.starts_with("error: there is no disk at "),
            "{gone:?}"
        );
    });
}

#[test]
fn wrong_addresses_are_refused_with_a_remedy() {
    let said = nbd(["info", "file://here"]).stderr;
    assert!(said.contains("file:///DIRECTORY"), "{said}");
    let said = nbd(["object", "snapshot", "file:///tmp/disk"]).stderr;
    assert!(said.contains("file:///tmp/disk@NAME"), "{said}");
    let said = nbd(["object", "create", "file:///tmp/disk@a", "1M"]).stderr;
    assert!(said.contains("leave out \"@a\""), "{said}");
    if !cfg!(feature = "cloud") {
        let said = nbd(["info", "s3://bucket/disk"]).stderr;
        assert!(said.contains("--features cloud"), "{said}");
    }
}
