//! The commands of docs/certificates.md.

use nbd_blocking::{
    ClientTls, ConnectOptions, Server, ServerTls, TlsPolicy, exports::Memory, server::CloseReason,
};
use std::{os::unix::net::UnixStream, process::Command, sync::Arc, thread, time::Duration};

#[test]
fn the_documented_commands_make_certificates_that_both_sides_take() {
    let version = Command::new("openssl").arg("version").output();
    if !version.is_ok_and(|version| !version.stdout.starts_with(b"OpenSSL 1")) {
        eprintln!("skipped: OpenSSL 3 is not installed");
        return;
    }
    interop::deadline(Duration::from_secs(60), || {
        let page = include_str!("../../docs/certificates.md");
        let (_, commands) = page.split_once("```sh\n").unwrap();
        let (commands, _) = commands.split_once("```\n").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let made = Command::new("sh")
            .args(["-e", "-c", commands])
            .current_dir(&directory)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");

        let tls = ServerTls::from_directory(directory.path()).unwrap();
        let server = Server::single(Arc::new(Memory::new(4096)))
            .require_tls(&tls.require_client_certificates(true))
            .unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = thread::spawn(move || server.serve_over(theirs));
        let tls = ClientTls::new().directory(directory.path()).unwrap();
        let options = ConnectOptions::new().tls(tls).tls_policy(TlsPolicy::Always);
        let client = options.connect_over(ours, Some("localhost")).unwrap();
        assert!(client.is_encrypted());
        client.disconnect().unwrap();
        let ending = serving.join().unwrap().unwrap();
        assert!(matches!(ending, CloseReason::Disconnected), "{ending}");
    });
}
