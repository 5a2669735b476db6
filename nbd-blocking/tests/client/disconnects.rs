//! The end of a negotiation, from either side.

use crate::support::{
    bytes::{ack, err, hello, oldstyle},
    says,
    script::{Peer, play, refused_with},
    within,
};
use nbd_blocking::{ConnectOptions, Error, ExportName, Uri, negotiation::NegotiationError};
use std::{os::unix::net::UnixListener, thread, time::Instant};

const ABORT: u32 = 2;
const GO: u32 = 7;

/// Refuses the export, and receives the client's NBD_OPT_ABORT.
fn refuse(peer: &mut Peer) {
    peer.says(hello());
    assert_eq!(peer.hears(4), [0, 0, 0, 3]);
    loop {
        let (option, data) = peer.option();
        match option {
            ABORT => {
                assert!(data.is_empty(), "NBD_OPT_ABORT has no data");
                return;
            }
            GO => peer.says(err(GO, 6, "no such export")),
            other => peer.says(err(other, 1, "")),
        }
    }
}

#[test]
fn any_reply_to_an_abort_is_fine() {
    // C-038
    within(20, || {
        let answers: [fn(&mut Peer); 5] = [
            |peer| peer.says(ack(ABORT)),
            |peer| peer.says(err(ABORT, 5, "TLS first")),
            |_| {},
            |peer| peer.says(&ack(ABORT)[..7]),
            |peer| {
                // No reply at all; the client leaves all the same.
                assert!(peer.rest().is_empty());
            },
        ];
        for answer in answers {
            let start = Instant::now();
            let error = refused_with(&ConnectOptions::new(), move |peer| {
                refuse(peer);
                answer(peer);
            });
            says(&error, &["NBD_REP_ERR_UNKNOWN", "no such export"]);
            assert!(start.elapsed().as_secs() < 10, "the wait is bounded");
        }
    });
}

#[test]
fn an_export_that_is_refused_by_closing_is_reported_with_a_hint() {
    // C-068, C-100
    within(10, || {
        let (stream, server) = play(|peer: &mut Peer| {
            // Newstyle that is not fixed.
            peer.says([b"NBDMAGICIHAVEOPT".as_slice(), &[0, 2]].concat());
            assert_eq!(peer.hears(4), [0, 0, 0, 2]);
            let (option, name) = peer.option();
            assert_eq!((option, name.as_slice()), (1, b"disk".as_slice()));
        });
        let error = ConnectOptions::new()
            .export(ExportName::new("disk").expect("a legal name"))
            .connect_over(stream, None)
            .unwrap_err();
        server.join().expect("the script ends");
        let Error::Negotiation { source: cause, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(matches!(
            **cause,
            NegotiationError::ExportNameRefused { .. }
        ));
        says(&error, &["no export \"disk\"", "TLS"]);
    });
}

#[test]
fn a_uri_that_names_an_export_does_not_go_with_an_oldstyle_server() {
    // U-030
    within(10, || {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).expect("a socket can be made");
        let server = thread::spawn(move || {
            for name in ["/disk", "/"] {
                let (mut stream, _) = listener.accept().expect("the client comes");
                std::io::Write::write_all(&mut stream, &oldstyle(1 << 20, 3)).expect("it listens");
                let mut said = Vec::new();
                std::io::Read::read_to_end(&mut stream, &mut said).expect("it closes");
                let expected = if name == "/" { 28 } else { 0 };
                assert_eq!(said.len(), expected, "NBD_CMD_DISC, or nothing at all");
            }
        });
        let socket = path.display();
        let error = ConnectOptions::new()
            .connect(&format!("nbd+unix:///disk?socket={socket}"))
            .unwrap_err();
        says(&error, &["oldstyle", "\"disk\""]);
        let uri: Uri = format!("nbd+unix:///?socket={socket}")
            .parse()
            .expect("a legal URI");
        let client = ConnectOptions::new().connect_uri(&uri).expect("entered");
        assert_eq!(client.size(), 1 << 20);
        drop(client);
        server.join().expect("the script ends");
    });
}
