//! Names of every kind, in certificates that another library makes.

use super::*;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, KeyPair, SanType,
};

fn certificate(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().to_vec()
}

#[test]
fn the_subject_is_written_with_its_last_part_first() {
    let certificate = certificate(|params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::CountryName, "DE");
        name.push(DnType::OrganizationName, "Example");
        name.push(DnType::OrganizationalUnitName, "Storage");
        name.push(DnType::CommonName, "backup");
    });
    let names = PeerNames::of(&certificate).unwrap();
    let expected = PeerNames {
        subject: "CN=backup,OU=Storage,O=Example,C=DE".into(),
        ..PeerNames::default()
    };
    assert_eq!(names, expected);
}

#[test]
fn no_part_of_a_name_passes_for_another_part() {
    // RFC 4514, 2.4: separators are escaped inside of parts.
    let certificate = certificate(|params| {
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "guest,CN=backup+O=Example");
    });
    let names = PeerNames::of(&certificate).unwrap();
    assert_eq!(names.subject, r"CN=guest\,CN=backup\+O=Example");
}

#[test]
fn a_string_of_a_kind_that_is_no_longer_used_is_shown_as_it_is_encoded() {
    for (value, expected) in [
        (DnValue::Utf8String("Käse".into()), "CN=Käse"),
        (
            DnValue::PrintableString("cheese".try_into().unwrap()),
            "CN=cheese",
        ),
        (
            DnValue::TeletexString("cheese".try_into().unwrap()),
            "CN=cheese",
        ),
        // RFC 4514, 2.4: with its type as numbers.
        (
            DnValue::BmpString("Kä".try_into().unwrap()),
            "2.5.4.3=#1e04004b00e4",
        ),
    ] {
        let certificate = certificate(|params| {
            params.distinguished_name.push(DnType::CommonName, value);
        });
        assert_eq!(PeerNames::of(&certificate).unwrap().subject, expected);
    }
}

#[test]
fn each_alternative_name_is_found_under_its_kind() {
    let certificate = certificate(|params| {
        params.subject_alt_names = vec![
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::URI("spiffe://example/backup".try_into().unwrap()),
            SanType::Rfc822Name("root@a.example".try_into().unwrap()),
            SanType::DnsName("*.b.example".try_into().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
            SanType::OtherName((vec![1, 3, 6, 1, 4], "of no interest".into())),
        ];
    });
    let names = PeerNames::of(&certificate).unwrap();
    let expected = PeerNames {
        subject: String::new(),
        dns: vec!["a.example".into(), "*.b.example".into()],
        ip: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        email: vec!["root@a.example".into()],
        uri: vec!["spiffe://example/backup".into()],
    };
    assert_eq!(names, expected);
}

#[test]
fn a_certificate_without_names_has_none() {
    let names = PeerNames::of(&certificate(|_| {})).unwrap();
    assert_eq!(names, PeerNames::default());
}

#[test]
fn an_address_of_another_length_is_no_address() {
    // The form for name constraints, which have a mask: eight bytes.
    let extension = |len: u8| {
        let mut content = vec![0x30, len + 2, 0x87, len];
        content.resize(content.len() + usize::from(len), 7);
        CustomExtension::from_oid_content(&[2, 5, 29, 17], content)
    };
    for (len, found) in [(0, 0), (4, 1), (5, 0), (8, 0), (16, 1), (32, 0)] {
        let certificate = certificate(|params| params.custom_extensions.push(extension(len)));
        assert_eq!(PeerNames::of(&certificate).unwrap().ip.len(), found);
    }
}

#[test]
fn a_malformed_certificate_is_an_error() {
    let good = certificate(|params| {
        params.subject_alt_names = vec![SanType::DnsName("a.example".try_into().unwrap())];
    });
    assert!(PeerNames::of(&[]).is_err());
    for end in 0..good.len() {
        assert!(PeerNames::of(&good[..end]).is_err());
    }
    let broken = certificate(|params| {
        let content = vec![0x30, 2, 0x82, 9];
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], content);
        params.custom_extensions.push(extension);
    });
    assert!(PeerNames::of(&broken).is_err());
}
