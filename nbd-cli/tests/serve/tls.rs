//! TLS: foreign clients, disks for TLS only, and clients that are let in or refused.

use crate::support::{Serving, failed, image, run_nbd, succeeded};
use interop::{Certificates, Endpoint, MIB, Peer, pattern, require, run};
use std::fs;

const SIZE: u64 = 4 * MIB;

/// A server with TLS at a TCP port, and where that is.
fn serve(certificates: &Certificates, args: &str) -> (Serving, Endpoint) {
    let mut serving = Serving::prepared(
        |dir| image(dir, "disk.img", 1, SIZE),
        |command, _| {
            command.args(["--listen", "127.0.0.1:0", "disk.img"]);
            command.args(args.split_whitespace());
            if !args.contains("--tls-cert") {
                command.arg("--tls-dir").arg(certificates.dir());
            }
        },
    );
    let uri = serving.line();
    let (_, place) = uri.split_once("://").unwrap();
    let (address, _) = place.split_once('/').unwrap();
    let endpoint = Endpoint::Tcp(address.parse().unwrap());
    (serving, endpoint)
}

#[test]
fn foreign_clients_use_a_disk_served_over_tls() {
    run(|| {
        let certificates = Certificates::new();
        let (serving, endpoint) = serve(&certificates, "");
        let uri = endpoint.tls_uri("disk.img", &certificates);
        let copy = serving.path("copy");
        let copy = copy.to_str().unwrap();
        assert_eq!(
            succeeded(&run_nbd(["info", "--size", &uri])),
            format!("{SIZE}\n")
        );
        if let Some(nbdinfo) = require(Peer::NbdInfo) {
            let said = nbdinfo.run(["--list", &uri]).expect_success();
            assert!(
                said.contains("with TLS") && said.contains("export=\"disk.img\""),
                "{said}"
            );
            nbdinfo.run([&endpoint.uri("disk.img")]).expect_failure();
        }
        if let Some(nbdcopy) = require(Peer::NbdCopy) {
            nbdcopy.run([&uri, copy]).expect_success();
            assert!(fs::read(copy).unwrap() == pattern(1, SIZE));
        }
        let dir = certificates.dir().display();
        let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={dir}");
        let address = endpoint.address();
        let options = format!(
            "driver=nbd,export=disk.img,tls-creds=tls,host={},port={}",
            address.ip(),
            address.port()
        );
        if let Some(qemu_img) = require(Peer::QemuImg) {
            let args = [
                "convert",
                "--object",
                &credentials,
                "--image-opts",
                &options,
            ];
            qemu_img
                .run(args.iter().chain(&["-O", "raw", copy]))
                .expect_success();
            assert!(fs::read(copy).unwrap() == pattern(1, SIZE));
        }
        if let Some(qemu_io) = require(Peer::QemuIo) {
            let args = ["--object", &credentials, "--image-opts", &options];
            let commands = ["-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k"];
            let said = qemu_io.run(args.iter().chain(&commands)).expect_success();
            assert!(said.contains("read 65536/65536 bytes"), "{said}");
        }
        if let Some(nbd_client) = require(Peer::NbdClient) {
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let authority = certificates.ca_certificate();
            let tls = ["-enable-tls", "-tlshostname", "localhost", "-cacertfile"];
            let args = ["-l", &host, &port].into_iter().chain(tls);
            let said = nbd_client
                .run(args.chain([authority.to_str().unwrap()]))
                .expect_success();
            assert!(said.contains("disk.img"), "{said}");
        }
        serving.stop();
    });
}

#[test]
fn clients_choose_whether_to_use_tls_that_is_offered() {
    run(|| {
        let certificates = Certificates::new();
        let authority = certificates.ca_certificate();
        let authority = authority.to_str().unwrap();
        let (_offering, offered) = serve(&certificates, "--tls offered");
        let (_plain, off) = serve(&certificates, "--tls off");
        let size = format!("{SIZE}\n");
        let info = |when: &str, uri: &str| {
            let tls = ["--tls", when, "--tls-ca", authority];
            run_nbd(["info", uri].iter().chain(&tls))
        };
        let uses_tls = |when: &str, uri: &str| {
            let said = succeeded(&info(when, uri));
            assert!(said.contains(&format!("size: {SIZE} bytes")), "{said}");
            said.contains(", TLS 1.3 (")
        };
        let (plain, secure) = (
            offered.uri("disk.img"),
            offered.tls_uri("disk.img", &certificates),
        );
        assert!(!uses_tls("never", &plain));
        assert!(uses_tls("if-offered", &plain));
        assert!(uses_tls("always", &plain));
        assert!(uses_tls("never", &secure));
        // A server that refuses TLS gets no client that requires it, not even the name of an export.
        let (refused, required) = (off.uri("disk.img"), off.tls_uri("disk.img", &certificates));
        assert!(!uses_tls("never", &refused));
        assert!(!uses_tls("if-offered", &refused));
        for output in [info("always", &refused), info("never", &required)] {
            let said = failed(&output);
            assert!(said.contains("TLS") && output.stdout.is_empty(), "{said}");
        }
        for command in ["list", "map", "dump", "ping"] {
            failed(&run_nbd([command, &required]));
        }
        // Nor does a certificate that is not trusted make it one without TLS.
        let untrusted = run_nbd(["info", "--tls", "if-offered", &plain]);
        assert!(failed(&untrusted).contains("certificate"));
        if let Some(nbdinfo) = require(Peer::NbdInfo) {
            let said = nbdinfo.run([&plain]).expect_success();
            assert!(said.contains("without TLS"), "{said}");
            let said = nbdinfo.run([&secure]).expect_success();
            assert!(said.contains("with TLS"), "{said}");
            let said = nbdinfo.run(["--size", &refused]).expect_success();
            assert_eq!(said, size);
            nbdinfo.run([&required]).expect_failure();
        }
    });
}

#[test]
fn disks_for_tls_only_are_not_there_without() {
    run(|| {
        let certificates = Certificates::new();
        let pem = format!(
            "--tls-cert {} --tls-key {}",
            certificates.server_certificate().display(),
            certificates.server_key().display()
        );
        let args = format!("{pem} --memory secret=2M --tls-only secret");
        let (_serving, endpoint) = serve(&certificates, &args);
        let names = |uri: &str| succeeded(&run_nbd(["list", "--names", uri]));
        assert_eq!(names(&endpoint.uri("")), "disk.img\n");
        let encrypted = endpoint.tls_uri("", &certificates);
        assert_eq!(names(&encrypted), "disk.img\nsecret\n");
        let said = failed(&run_nbd(["info", "--size", &endpoint.uri("secret")]));
        assert!(said.contains("TLS"), "{said}");
        let secret = endpoint.tls_uri("secret", &certificates);
        assert_eq!(
            succeeded(&run_nbd(["info", "--size", &secret])),
            "2097152\n"
        );
    });
}

#[test]
fn a_client_without_a_certificate_that_is_allowed_is_refused() {
    run(|| {
        let certificates = Certificates::new();
        let uri = |endpoint: &Endpoint| endpoint.tls_uri("disk.img", &certificates);
        for (args, is_let_in) in [
            ("--tls-verify-clients", true),
            ("--allow-name client.example", true),
            ("--allow-name CN=client --allow-name other.example", true),
            ("--allow-name other.example", false),
        ] {
            let (_serving, endpoint) = serve(&certificates, args);
            let output = run_nbd(["info", "--size", &uri(&endpoint)]);
            if is_let_in {
                assert_eq!(succeeded(&output), format!("{SIZE}\n"));
            } else {
                let said = failed(&output);
                assert!(said.contains("disk.img"), "{said}");
            }
            // Without any certificate.
            let anonymous = tempfile::tempdir().unwrap();
            let authority = anonymous.path().join("ca-cert.pem");
            fs::copy(certificates.ca_certificate(), authority).unwrap();
            let anonymous = format!(
                "nbds://{}/disk.img?tls-certificates={}",
                endpoint.address(),
                anonymous.path().display()
            );
            failed(&run_nbd(["info", "--size", &anonymous]));
        }
    });
}

#[test]
fn options_of_tls_without_a_certificate_are_errors() {
    run(|| {
        for option in ["--tls=required", "--tls-verify-clients", "--allow-name=x"] {
            let said = failed(&run_nbd(["serve", "--memory", "1M", option]));
            assert!(
                said.contains("give --tls-cert and --tls-key, or --tls-dir"),
                "{said}"
            );
        }
        let missing = [
            "serve",
            "--memory=1M",
            "--tls-cert=missing",
            "--tls-key=missing",
        ];
        let said = failed(&run_nbd(missing));
        assert!(said.contains("missing"), "{said}");
    });
}
