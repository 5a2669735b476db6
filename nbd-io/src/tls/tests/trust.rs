//! Certificates that are accepted, and those that are not.

use super::*;
use crate::tls::Pin;
use rustls::{CertificateError, Error};

/// A root authority, an intermediate one, and a certificate of that for either side.
fn chain() -> (Authority, Authority, Leaf) {
    let root = authority("root");
    let between = intermediate("between", &root);
    let leaf = Leaf::new(7, &between, &[&between]);
    (root, between, leaf)
}

/// A handshake in which the client has these lists, and one in which the server has them.
fn with_lists(root: &Authority, leaf: &Leaf, lists: &str, strict: bool) -> [bool; 2] {
    let (root, lists) = (root.pem(), lists.as_bytes());
    let client = ClientTls::new().roots_pem(root.as_bytes()).unwrap();
    let wary = client.clone().revoked_pem(lists).unwrap();
    let wary = wary.require_revocation_lists(strict);
    let server = leaf.server().client_roots_pem(root.as_bytes()).unwrap();
    let server = server.require_client_certificates(true);
    let asking = server.revoked_pem(lists).unwrap();
    let asking = asking.require_revocation_lists(strict);
    let known = leaf.client().roots_pem(root.as_bytes()).unwrap();
    [
        shake(&wary, &leaf.server()).is_ok(),
        shake(&known, &asking).is_ok(),
    ]
}

#[test]
fn a_list_of_one_authority_says_nothing_about_the_others() {
    let (root, between, leaf) = chain();
    for (lists, accepted) in [
        (list(&root, &[]), true),
        (list(&between, &[]), true),
        (list(&between, &[7]), false),
        (list(&root, &[]) + &list(&between, &[7]), false),
    ] {
        assert_eq!(with_lists(&root, &leaf, &lists, false), [accepted; 2]);
    }
}

#[test]
fn lists_of_all_authorities_can_be_required() {
    let (root, between, leaf) = chain();
    for (lists, accepted) in [
        (list(&root, &[]), false),
        (list(&between, &[]), false),
        (list(&root, &[]) + &list(&between, &[]), true),
        (list(&root, &[]) + &list(&between, &[7]), false),
    ] {
        assert_eq!(with_lists(&root, &leaf, &lists, true), [accepted; 2]);
    }
}

#[test]
fn a_self_signed_authority_that_is_given_may_be_the_peer_itself() {
    let own = Leaf::self_signed(|_| {});
    let client = ClientTls::new().roots_pem(own.pem.as_bytes()).unwrap();
    shake(&client, &own.server()).unwrap();
    // The same name and another key.
    let other = Leaf::self_signed(|_| {});
    let refused = shake(&client, &other.server()).unwrap_err();
    assert!(matches!(refused, Error::InvalidCertificate(_)), "{refused}");

    let server = other.server().client_roots_pem(own.pem.as_bytes()).unwrap();
    let trusting = |identity: &Leaf| identity.client().roots_pem(other.pem.as_bytes()).unwrap();
    shake(&trusting(&own), &server).unwrap();
    shake(&trusting(&other), &server).unwrap_err();
}

#[test]
fn a_self_signed_peer_needs_the_right_name_and_time() {
    let elsewhere = Leaf::self_signed(|params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName(
            "elsewhere.example".try_into().unwrap(),
        )];
    });
    // Without alternative names its subject counts, as `-subj /CN=disks.example` has it.
    let in_subject = Leaf::self_signed(|params| params.subject_alt_names.clear());
    let expired = Leaf::self_signed(|params| params.not_after = date_time_ymd(2020, 1, 1));
    let early = Leaf::self_signed(|params| params.not_before = date_time_ymd(2900, 1, 1));
    let result = |own: &Leaf| {
        let client = ClientTls::new().roots_pem(own.pem.as_bytes()).unwrap();
        shake(&client, &own.server())
    };
    let why = |own: &Leaf| match result(own) {
        Err(Error::InvalidCertificate(why)) => why,
        other => panic!("{other:?}"),
    };
    result(&in_subject).unwrap();
    assert!(matches!(
        why(&elsewhere),
        CertificateError::NotValidForNameContext { .. }
    ));
    assert!(matches!(
        why(&expired),
        CertificateError::ExpiredContext { .. }
    ));
    assert!(matches!(
        why(&early),
        CertificateError::NotValidYetContext { .. }
    ));
}

/// The pins that a refusal names.
fn pins_of(leaf: &Leaf) -> [Pin; 2] {
    let client = ClientTls::new().pin(Pin::Certificate([0; 32]));
    let refused = shake(&client, &leaf.server()).unwrap_err().to_string();
    let mut hashes = refused
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| word.len() == 64)
        .map(|word| match word.parse() {
            Ok(Pin::Certificate(hash)) => hash,
            other => panic!("{other:?}"),
        });
    [
        Pin::Certificate(hashes.next().unwrap()),
        Pin::PublicKey(hashes.next().unwrap()),
    ]
}

#[test]
fn a_pinned_certificate_or_key_is_enough() {
    let strangers = authority("stranger");
    let (leaf, other) = (Leaf::new(1, &strangers, &[]), Leaf::new(2, &strangers, &[]));
    for pin in pins_of(&leaf) {
        let client = ClientTls::new().pin(pin).server_name("any.example");
        shake(&client, &leaf.server()).unwrap();
        shake(&client, &other.server()).unwrap_err();
        // Over a Unix socket the server has no name.
        let nameless = ClientTls::new().pin(pin);
        nameless.client(None).unwrap();

        let server = other.server().pin_client(pin);
        shake(&leaf.client().pin(pins_of(&other)[0]), &server).unwrap();
        shake(&other.client().pin(pins_of(&other)[0]), &server).unwrap_err();
        let anonymous = ClientTls::new().pin(pins_of(&other)[0]);
        shake(&anonymous, &server).unwrap();
        shake(&anonymous, &server.require_client_certificates(true)).unwrap_err();
    }
}

#[test]
fn a_pin_beside_authorities_is_one_condition_more() {
    let (root, _, leaf) = chain();
    let trusting = ClientTls::new().roots_pem(root.pem().as_bytes()).unwrap();
    let [pin, _] = pins_of(&leaf);
    shake(&trusting.clone().pin(pin), &leaf.server()).unwrap();
    let wrong = Pin::Certificate([1; 32]);
    shake(&trusting.clone().pin(wrong), &leaf.server()).unwrap_err();
    shake(&trusting.clone().pin(wrong).pin(pin), &leaf.server()).unwrap();
    let elsewhere = trusting.pin(pin).server_name("elsewhere.example");
    shake(&elsewhere, &leaf.server()).unwrap_err();

    let unseen = ClientTls::new().dangerous_accept_any_certificate();
    shake(&unseen.clone().pin(pin), &leaf.server()).unwrap();
    shake(&unseen.pin(wrong), &leaf.server()).unwrap_err();
}
