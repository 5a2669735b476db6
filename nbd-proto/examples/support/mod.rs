//! The other end for the examples of clients: a server with a thread of its own, a disk in memory
//! and a blocking socket.

use bytes::{Buf, BytesMut};
use nbd_proto::{
    Errno, ExportInfo, Frame, Phase, Step, TransmissionFlags,
    server::{
        Config, Event, Fill, Handshake, Options, Plain, Refusal, Request, Requested, Transmission,
    },
};
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    ops::Range,
    thread::{self, JoinHandle},
};

/// Serves one client, and ends with it.
pub(crate) fn serve_once(size: usize) -> io::Result<(SocketAddr, JoinHandle<io::Result<()>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        serve(socket, vec![0; size])
    });
    Ok((address, server))
}

fn serve(mut socket: TcpStream, mut disk: Vec<u8>) -> io::Result<()> {
    let mut out = BytesMut::new();
    let handshake = Handshake::new(Config::default(), &mut out);
    let mut options: Options<Plain> = drive(&mut socket, handshake, &mut out)?;
    let mut transmission = loop {
        options = match drive(&mut socket, options, &mut out)? {
            Requested::Go(go) => {
                let size = disk.len().try_into().expect("a usize fits");
                let export = ExportInfo::new(size, TransmissionFlags::SEND_FLUSH);
                break go.accept(&export, &mut out);
            }
            Requested::Abort(_) => return socket.write_all(&out),
            Requested::Info(info) => info.refuse(Refusal::Policy, "", &mut out),
            Requested::List(list) => list.done(&mut out),
            Requested::ListMetaContext(list) => list.done(&mut out),
            Requested::SetMetaContext(set) => set.done(&mut out),
            Requested::ExportName(name) => return Err(broken(name.refuse("use NBD_OPT_GO"))),
            Requested::StartTls(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
    };
    socket.write_all(&out)?;
    transmit(&mut socket, &mut transmission, &mut disk)
}

/// Writes pending bytes and reads into lent space, until the phase ends.
fn drive<P: Phase>(
    socket: &mut TcpStream,
    mut phase: P,
    out: &mut BytesMut,
) -> io::Result<P::Next> {
    loop {
        socket.write_all(&out.split())?;
        let n = read(socket, phase.space())?;
        phase = match phase.filled(n, out).map_err(broken)? {
            Step::More(phase) => phase,
            Step::Done(next) => return Ok(next),
        };
    }
}

fn transmit(
    socket: &mut TcpStream,
    transmission: &mut Transmission,
    disk: &mut [u8],
) -> io::Result<()> {
    let mut payload = Vec::new();
    let mut nowhere = [0; 4096];
    loop {
        let n = match transmission.fill() {
            Fill::Control(space) => read(socket, space)?,
            Fill::Payload { range, len } => {
                payload.resize(len, 0);
                read(socket, &mut payload[range])?
            }
            Fill::Discard(len) => {
                let most = len.min(nowhere.len());
                read(socket, &mut nowhere[..most])?
            }
            // Every request is answered before the next one is read.
            Fill::Blocked => unreachable!("nothing is in flight"),
            Fill::Finished => return Ok(()),
        };
        let reply = match transmission.filled(n).map_err(broken)? {
            None | Some(Event::Disconnect) => continue,
            Some(Event::Answered(reply)) => *reply,
            Some(Event::Request(Request::Read {
                offset,
                len,
                ticket,
            })) => {
                let reply = ticket.data(&disk[range(offset, len)]);
                send(socket, reply.frame)?;
                transmission.retire(reply.receipt);
                continue;
            }
            Some(Event::Request(Request::Write {
                offset,
                len,
                ticket,
                ..
            })) => {
                disk[range(offset, len)].copy_from_slice(&payload);
                ticket.done()
            }
            Some(Event::Request(Request::Flush { ticket })) => ticket.done(),
            Some(Event::Request(other)) => other.fail(Errno::Inval, "this was not offered"),
        };
        send(socket, reply.frame)?;
        transmission.retire(reply.receipt);
    }
}

fn read(socket: &mut TcpStream, space: &mut [u8]) -> io::Result<usize> {
    match socket.read(space)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => Ok(n),
    }
}

/// Header and payload by one vectored write, as a rule.
fn send<P: Buf>(socket: &mut TcpStream, mut frame: Frame<P>) -> io::Result<()> {
    while frame.has_remaining() {
        let mut slices = [io::IoSlice::new(&[]); 2];
        let used = frame.chunks_vectored(&mut slices);
        let n = socket.write_vectored(&slices[..used])?;
        frame.advance(n);
    }
    Ok(())
}

fn range(offset: u64, len: u32) -> Range<usize> {
    let start = usize::try_from(offset).expect("the disk is in memory");
    start..start + usize::try_from(len).expect("the disk is in memory")
}

/// The other side broke the protocol.
pub(crate) fn broken(error: nbd_proto::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
