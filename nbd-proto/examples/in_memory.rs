//! A client and a server in one thread, with nothing between them but bytes.
//!
//! No socket, no thread, no runtime: the machines do not care how bytes travel. This is the whole
//! work of a driver, once for each side; `readiness.rs` and `completion.rs` do the same with I/O.
//!
//! ```text
//! cargo run -p nbd-proto --example in_memory
//! ```

use bytes::{Buf, BufMut, BytesMut};
use nbd_proto::{
    Error, ExportInfo, ExportName, HeaderStyle, Phase, Step, TransmissionFlags,
    client::{self, Go, GoOutcome, Greeted},
    server::{self, Request, Requested},
};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Bytes that one side has sent and the other has not read.
#[derive(Default)]
struct Wires {
    to_server: BytesMut,
    to_client: BytesMut,
}

fn main() -> Result<()> {
    let mut disk = vec![0; 1 << 20];
    let mut wires = Wires::default();

    let (mut client, mut server) = negotiate(&mut wires, disk.len().try_into()?)?;
    assert_eq!(
        (client.mode(), server.mode()),
        (HeaderStyle::Extended, HeaderStyle::Extended)
    );

    // Two requests at once: a command is a cookie that names its reply, and bytes to send.
    let (write, frame) = client.write(4096, &b"hello"[..], Default::default())?;
    wires.to_server.put(frame);
    let (read, frame) = client.read(4096, 5, Default::default())?;
    wires.to_server.put(frame);

    serve(&mut server, &mut disk, &mut wires)?;

    let mut buffer = [0; 5];
    let completed = receive(&mut client, &mut buffer, &mut wires.to_client)?;
    assert_eq!(completed, [write, read]);
    assert_eq!(&buffer, b"hello");

    wires.to_server.put(client.disconnect()?);
    serve(&mut server, &mut disk, &mut wires)?;
    assert!(client.may_end() && server.is_finished());
    Ok(())
}

/// Both sides of the negotiation in turn. Each phase is a value, and its end says which phase comes
/// next.
fn negotiate(wires: &mut Wires, size: u64) -> Result<(client::Transmission, server::Transmission)> {
    let Wires {
        to_server,
        to_client,
    } = wires;

    // The server greets, and the client answers with its flags.
    let server = server::Handshake::new(Default::default(), to_client);
    let client = client::Handshake::new(Default::default());
    let Greeted::FixedNewstyle(client) = finish(client, to_client, to_server)? else {
        return Err("the server speaks an old dialect".into());
    };

    // The client asks for extended headers. That needs no decision, so the server's phase grants
    // it on its way to the next question, which is below.
    let pending = client.extended_headers(to_server).map_err(|no| no.misuse)?;
    let server = finish(server, to_server, to_client)?;
    let server = match server.feed(&to_server.split(), to_client)? {
        (_, Step::More(server)) => server,
        (_, Step::Done(question)) => return Err(format!("{question:?} was not asked").into()),
    };
    let client = finish(pending, to_client, to_server)?.options;

    // The client asks to use an export, and the server lets it.
    let pending = client.go(Go::new(ExportName::new("disk")?), to_server);
    let server = match finish(server, to_server, to_client)? {
        Requested::Go(go) if go.name().as_str() == "disk" => {
            let export = ExportInfo::new(size, TransmissionFlags::SEND_FLUSH);
            go.accept(&export, to_client)
        }
        other => return Err(format!("{other:?} was not asked").into()),
    };
    match finish(pending, to_client, to_server)? {
        GoOutcome::Accepted(client) => Ok((client, server)),
        GoOutcome::Refused(_, why) => Err(why.into()),
    }
}

/// Goes through a phase with the bytes that are there.
fn finish<P: Phase>(phase: P, from: &mut BytesMut, to: &mut BytesMut) -> Result<P::Next> {
    match phase.feed(from, to)? {
        (used, Step::Done(next)) => {
            // The other bytes belong to the next phase.
            from.advance(used);
            Ok(next)
        }
        (_, Step::More(_)) => Err("the other side owes an answer".into()),
    }
}

/// The server's side: requests in, replies out.
fn serve(
    server: &mut server::Transmission,
    disk: &mut [u8],
    wires: &mut Wires,
) -> Result<(), Error> {
    let Wires {
        to_server,
        to_client,
    } = wires;
    let mut payload = Vec::new();
    while !to_server.is_empty() {
        let fed = server.feed(to_server)?;
        if let Some(range) = fed.payload {
            // A part of the payload of a write, which starts at 0.
            payload.truncate(range.start);
            payload.extend_from_slice(&to_server[..range.len()]);
        }
        to_server.advance(fed.used);
        let reply = match fed.event {
            None | Some(server::Event::Disconnect) => continue,
            // An illegal request is refused without us.
            Some(server::Event::Answered(reply)) => *reply,
            Some(server::Event::Request(Request::Read {
                offset,
                len,
                ticket,
            })) => {
                // Requests that get here are inside the export.
                let reply = ticket.data(&disk[range(offset, len)]);
                to_client.put(reply.frame);
                server.retire(reply.receipt);
                continue;
            }
            Some(server::Event::Request(Request::Write {
                offset,
                len,
                ticket,
                ..
            })) => {
                disk[range(offset, len)].copy_from_slice(&payload);
                ticket.done()
            }
            Some(server::Event::Request(Request::Flush { ticket })) => ticket.done(),
            Some(server::Event::Request(other)) => {
                other.fail(nbd_proto::Errno::Inval, "this was not offered")
            }
        };
        to_client.put(reply.frame);
        server.retire(reply.receipt);
    }
    Ok(())
}

/// The client's side: replies in. Returns the completed request.
fn receive(
    client: &mut client::Transmission,
    buffer: &mut [u8],
    from: &mut BytesMut,
) -> Result<Vec<client::Cookie>> {
    let mut completed = Vec::new();
    while !from.is_empty() {
        let fed = client.feed(from)?;
        if let Some(client::Payload { range, .. }) = fed.payload {
            let place = &mut buffer[range];
            place.copy_from_slice(&from[fed.used - place.len()..fed.used]);
        }
        from.advance(fed.used);
        match fed.event {
            None => {}
            // The server said that these bytes are zeroes, and sent none.
            Some(client::Event::Hole { payload, done }) => {
                buffer[payload.range].fill(0);
                completed.extend(done.then_some(payload.cookie));
            }
            Some(client::Event::Complete { cookie, outcome }) => match outcome {
                client::Outcome::Failed(failure) => return Err(failure.into()),
                _ => completed.push(cookie),
            },
        }
    }
    Ok(completed)
}

fn range(offset: u64, len: u32) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).expect("the disk is in memory");
    start..start + usize::try_from(len).expect("the disk is in memory")
}

#[test]
fn written_data_is_read_back() {
    main().expect("both sides agree");
}
