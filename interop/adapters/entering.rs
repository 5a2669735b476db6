//! Entering exports over TLS, and those of foreign servers.

use super::*;

/// Serves one connection that has to start TLS.
fn serve_tls(certificates: &Certificates) -> (TcpServing, String) {
    let tls = ServerTls::from_directory(certificates.dir())
        .unwrap()
        .require_client_certificates(true);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("nbd://{}", listener.local_addr().unwrap());
    let server = server().require_tls(&tls).unwrap();
    let serving = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        server.serve_over(stream).map(drop)
    });
    (serving, address)
}

type TcpServing = thread::JoinHandle<io::Result<()>>;

#[test]
fn an_export_is_entered_over_tls() {
    limited(|| {
        let certificates = Certificates::new();
        let (serving, address) = serve_tls(&certificates);
        on_runtime(async |network| {
            let socket = network
                .connect(uri(&address).address(), &DialOptions::default())
                .await
                .unwrap();
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let mut target = NegotiationConfig::new(uri(&address).export().clone());
            target.tls = TlsPolicy::Always;
            target.extended_headers = false;
            let mut connected = enter(socket, &target, &tls).await.unwrap();
            assert!(connected.encrypted);
            assert_eq!(connected.transmission.export().size, SIZE);
            let Layered::Tls(inside) = &connected.transport else {
                panic!("this is in the clear: {:?}", connected.transport);
            };
            assert_eq!(inside.peer_certificates().unwrap().len(), 1);

            // `NBD_CMD_READ` with a cookie to recognise, which is at the same place in every reply.
            let mut request = [0; 28];
            request[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
            request[8..16].fill(0xc0);
            request[27] = 8;
            write(&mut connected.transport, &request).await;
            let mut reply = [0; 16];
            let mut got = 0;
            while got < reply.len() {
                let n = read(&mut connected.transport, &mut reply[got..]).await;
                got += n.unwrap();
            }
            assert_eq!(reply[8..], [0xc0; 8]);
            poll_fn(|cx| connected.transport.poll_shutdown(cx))
                .await
                .unwrap();
        });
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn a_server_leaves_a_client_that_breaks_the_protocol_with_the_end_of_tls() {
    // S-023
    limited(|| {
        let certificates = Certificates::new();
        let (serving, address) = serve_tls(&certificates);
        on_runtime(async |network| {
            let socket = network
                .connect(uri(&address).address(), &DialOptions::default())
                .await
                .unwrap();
            let tls = ClientTls::new().directory(certificates.dir()).unwrap();
            let mut target = NegotiationConfig::new(ExportName::default());
            target.tls = TlsPolicy::Always;
            let mut connected = enter(socket, &target, &tls).await.unwrap();
            write(&mut connected.transport, &[0xff; 28]).await;
            let end = read(&mut connected.transport, &mut [0; 16]).await;
            assert_eq!(end.unwrap(), 0);
        });
        serving.join().unwrap().unwrap();
    });
}

#[test]
fn a_server_with_the_wrong_certificate_is_not_believed() {
    limited(|| {
        for flaw in [Flaw::Expired, Flaw::OtherAuthority, Flaw::WrongName] {
            let certificates = Certificates::with_server(flaw);
            let (serving, address) = serve_tls(&certificates);
            on_runtime(async |network| {
                let socket = network
                    .connect(uri(&address).address(), &DialOptions::default())
                    .await
                    .unwrap();
                let tls = ClientTls::new().directory(certificates.dir()).unwrap();
                let mut target = NegotiationConfig::new(uri(&address).export().clone());
                target.tls = TlsPolicy::Always;
                let error = enter(socket, &target, &tls).await.unwrap_err();
                let NegotiationError::Tls(source) = &error else {
                    panic!("{error:?}");
                };
                let source = source.downcast_ref::<TlsError>();
                assert!(
                    matches!(source, Some(TlsError::Certificate { .. })),
                    "{error:?}"
                );
            });
            serving.join().unwrap().unwrap();
        }
    });
}

#[test]
fn servers_of_others_are_entered_with_and_without_tls() {
    limited(|| {
        let certificates = Certificates::new();
        let nbdkit = || Nbdkit::new("memory").param("1M");
        let qemu = || QemuNbd::new(Image::raw(SIZE));
        let servers = [
            (TlsPolicy::Never, nbdkit().start()),
            (TlsPolicy::Never, qemu().listen(Listen::Tcp6).start()),
            (
                TlsPolicy::IfOffered,
                nbdkit().tls_offered(&certificates).start(),
            ),
            (
                TlsPolicy::Always,
                nbdkit().tls_required(&certificates).start(),
            ),
            (
                TlsPolicy::Always,
                qemu().tls_required(&certificates).start(),
            ),
        ];
        on_runtime(async |network| {
            for (policy, server) in &servers {
                let Some(server) = server else { continue };
                let address = uri(&server.uri(""));
                let socket = network
                    .connect(address.address(), &DialOptions::default())
                    .await
                    .unwrap();
                let tls = ClientTls::new().directory(certificates.dir()).unwrap();
                let mut target = NegotiationConfig::new(ExportName::default());
                target.tls = *policy;
                let connected = enter(socket, &target, &tls).await.unwrap();
                assert_eq!(connected.encrypted, *policy != TlsPolicy::Never);
                assert_eq!(connected.transmission.export().size, SIZE);
            }
        });
    });
}
