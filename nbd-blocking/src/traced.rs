//! Events and spans of clients and servers for `tracing`.

use crate::{ConnectOptions, Server};
use nbd_io::{Memory, server::Peer};
use std::{
    fmt::{self, Write as _},
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Writes down events and spans with their fields.
#[derive(Clone, Default)]
struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    spans: Arc<AtomicU64>,
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").expect("a string");
    }
}

impl Log {
    fn push(&self, line: Line) {
        self.lines.lock().expect("no panics").push(line.0);
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut line = Line(span.metadata().name().into());
        span.record(&mut line);
        self.push(line);
        span::Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.push(line);
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn connections_on_both_sides_have_spans_and_events() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let server = thread::spawn(|| {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let server = Server::single(Arc::new(Memory::new(4096)));
            let served = server.serve_over(theirs);
            assert!(served.expect("there is room").is_clean());
        });
        log.lines
    });
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        let client = ConnectOptions::new()
            .connect_over(ours, None)
            .expect("entered");
        client
            .read_exact_at(&mut [0; 512], 1024)
            .expect("the server reads");
        client.disconnect().expect("the session ends well");
    });
    let lines = log.lines.lock().expect("no panics").clone();
    let has = |text: &str| lines.iter().any(|line| line.contains(text));
    assert!(
        has("DEBUG message=the server has greeted handshake=fixed newstyle"),
        "{lines:?}"
    );
    for option in ["NBD_OPT_EXTENDED_HEADERS", "NBD_OPT_GO"] {
        assert!(
            has(&format!(
                "DEBUG message=a reply is received option={option} reply=NBD_REP_ACK"
            )),
            "{lines:?}"
        );
    }
    assert!(has("nbd_client server=the server export=\"\""), "{lines:?}");
    assert!(has("entered size=4096"), "{lines:?}");
    assert!(has("INFO message=connected (connections: 1)"), "{lines:?}");
    for message in [
        "the client's flags are sent flags=",
        "a request is sent command=NBD_CMD_READ flags=0x0 cookie=0x",
        "a chunk is received kind=NBD_REPLY_TYPE_OFFSET_HOLE flags=NBD_REPLY_FLAG_DONE cookie=0x",
        "a request is sent command=NBD_CMD_DISC",
    ] {
        assert!(has(message), "{message}: {lines:?}");
    }
    for event in ["submitted", "over"] {
        let event =
            format!("TRACE message=a request is {event} command=NBD_CMD_READ offset=1024 len=512");
        assert!(has(&event), "{lines:?}");
    }
    let lines = server.join().expect("no panics");
    let lines = lines.lock().expect("no panics").clone();
    let span = format!("nbd_connection connection=1 peer={}", Peer::Unix);
    assert!(lines.contains(&span), "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("a client entered an export"))
    );
    let closed = "a connection is closed: the client disconnected";
    assert!(lines.iter().any(|line| line.contains(closed)), "{lines:?}");
}

#[test]
fn a_deviation_that_is_overlooked_is_an_event_once() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let server = thread::spawn(move || {
        theirs.write_all(b"NBDMAGICIHAVEOPT\0\x03").expect("sent");
        theirs.read_exact(&mut [0; 4]).expect("flags");
        let mut header = [0; 16];
        while header[11] != 7 {
            theirs.read_exact(&mut header).expect("an option");
            let mut data = vec![0; usize::from(header[15])];
            theirs.read_exact(&mut data).expect("its data");
            let reply = |kind: u8, data: &[u8]| {
                let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
                let len = u8::try_from(data.len()).expect("short");
                [
                    &magic[..],
                    &header[8..12],
                    &[0, 0, 0, kind, 0, 0, 0, len],
                    data,
                ]
                .concat()
            };
            let mut answer = Vec::new();
            if header[11] == 7 {
                // NBD_INFO_EXPORT: 4096 bytes, NBD_FLAG_HAS_FLAGS.
                answer = reply(3, &[0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 1]);
            }
            answer.extend(reply(1, &[]));
            theirs.write_all(&answer).expect("sent");
        }
        for _ in 0..2 {
            let mut request = [0; 28];
            theirs.read_exact(&mut request).expect("a read");
            // An error of simple replies, although structured ones were agreed on.
            let reply = [
                &0x6744_6698_u32.to_be_bytes()[..],
                &[0, 0, 0, 5],
                &request[8..16],
            ];
            theirs.write_all(&reply.concat()).expect("sent");
        }
        theirs
    });
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        let client = ConnectOptions::new()
            .extended_headers(false)
            .connect_over(ours, None)
            .expect("entered");
        for _ in 0..2 {
            client
                .read_exact_at(&mut [0; 512], 0)
                .expect_err("it fails");
        }
        drop(client);
    });
    drop(server.join().expect("no panics"));
    let lines = log.lines.lock().expect("no panics").clone();
    let text =
        "WARN message=a deviation of the server is overlooked deviation=\"simple_error_to_read\"";
    let count = lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(count, 1, "{lines:?}");
}
