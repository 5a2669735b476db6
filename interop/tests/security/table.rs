//! Holds `docs/security.md` and the tests of this program together.

use std::collections::BTreeMap;

const SOURCES: [&str; 4] = [
    include_str!("clients.rs"),
    include_str!("servers.rs"),
    include_str!("extents.rs"),
    include_str!("tls.rs"),
];

const DOCUMENT: &str = include_str!("../../../docs/security.md");

/// The published vulnerabilities: of libnbd 8, of nbdkit 5, of QEMU 6, of nbd-server 7.
const PUBLISHED: usize = 26;

#[test]
fn every_published_vulnerability_is_listed_with_its_test() {
    let mut listed = BTreeMap::new();
    for line in DOCUMENT.lines() {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, bug, resists, test] = cells[..] else {
            continue;
        };
        if !id.starts_with("CVE-") && !id.starts_with("libnbd ") {
            continue;
        }
        assert!(!bug.is_empty() && !resists.is_empty(), "{id}");
        let test = test.trim_matches('`').to_owned();
        let prefix = id.to_lowercase().replace(['-', ' '], "_");
        assert!(test.starts_with(&format!("{prefix}_")), "{id}: {test}");
        assert!(listed.insert(test, id).is_none(), "{id} is listed twice");
    }
    assert_eq!(listed.len(), PUBLISHED);
    let tests: Vec<_> = SOURCES
        .iter()
        .flat_map(|source| source.split("#[test]\nfn ").skip(1))
        .filter_map(|source| source.split("()").next())
        .filter(|name| name.starts_with("cve_") || name.starts_with("libnbd_"))
        .collect();
    for test in &tests {
        assert!(listed.contains_key(*test), "{test} is not listed");
    }
    assert_eq!(tests.len(), PUBLISHED, "a listed test does not exist");
}
