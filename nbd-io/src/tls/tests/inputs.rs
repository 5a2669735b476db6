//! Certificates and keys that cannot be used are named when they are given.

use super::*;
use crate::tls::Pin;
use std::fs;

/// The errors of a chain and a key, for both roles, from memory and from files.
fn errors(chain: &str, key: &str) -> Vec<TlsError> {
    let directory = tempfile::tempdir().unwrap();
    let (chain_file, key_file) = (directory.path().join("chain"), directory.path().join("key"));
    fs::write(&chain_file, chain).unwrap();
    fs::write(&key_file, key).unwrap();
    let (chain, key) = (chain.as_bytes(), key.as_bytes());
    vec![
        ClientTls::new().identity_pem(chain, key).unwrap_err(),
        ClientTls::new()
            .identity_files(&chain_file, &key_file)
            .unwrap_err(),
        ServerTls::from_pem(chain, key).unwrap_err(),
        ServerTls::from_files(&chain_file, &key_file).unwrap_err(),
    ]
}

#[test]
fn an_encrypted_key_is_called_so() {
    let leaf = Leaf::self_signed(|_| {});
    for key in [
        include_str!("encrypted-pkcs8.pem"),
        include_str!("encrypted-sec1.pem"),
    ] {
        for error in errors(&leaf.pem, key) {
            assert!(matches!(error, TlsError::EncryptedKey { .. }), "{error:?}");
            assert!(error.to_string().contains("is encrypted"), "{error}");
        }
    }
}

#[test]
fn a_key_of_another_certificate_is_noticed_when_it_is_given() {
    let (leaf, other) = (Leaf::self_signed(|_| {}), Leaf::self_signed(|_| {}));
    for error in errors(&leaf.pem, &other.key) {
        assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error:?}");
    }
}

#[test]
fn an_error_names_the_kind_of_pem_that_was_found() {
    let leaf = Leaf::self_signed(|_| {});
    for (chain, key, expected) in [
        (
            &*leaf.pem,
            &*leaf.pem,
            "expected a private key in memory, found CERTIFICATE",
        ),
        (
            &*leaf.key,
            &*leaf.key,
            "expected certificates in memory, found PRIVATE KEY",
        ),
        (
            &*leaf.pem,
            "nothing of the kind",
            "expected a private key in memory, found no PEM text at all",
        ),
    ] {
        let error = &errors(chain, key)[0];
        assert_eq!(error.to_string(), expected);
    }
    let error = ClientTls::new().roots_file("/nowhere/ca.pem").unwrap_err();
    let text = causes(&error);
    assert!(
        text.contains("/nowhere/ca.pem") && text.contains("No such file"),
        "{text}"
    );
}

#[test]
fn pins_are_read_as_openssl_prints_them() {
    let printed = ["AB"; 32].join(":");
    assert_eq!(printed.parse(), Ok(Pin::Certificate([0xab; 32])));
    for wrong in ["", "ab", &"a".repeat(63), &"g".repeat(64), &"a".repeat(65)] {
        let error = wrong.parse::<Pin>().unwrap_err();
        assert!(error.to_string().contains("64 hexadecimal digits"));
    }
}

#[test]
fn a_server_that_requires_certificates_has_to_know_some() {
    let server = Leaf::self_signed(|_| {}).server();
    let error = server.require_client_certificates(true).server();
    assert!(matches!(error, Err(TlsError::NoAuthorities)), "{error:?}");
}
