//! The other end of a measured process: as little of the protocol as will do.
//!
//! Both ends here are measured themselves, too, to see how little that is.

use crate::{BLOCK, Operation, Result, Work};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
};

const GREETING: u64 = 0x4e42_444d_4147_4943; // NBDMAGIC
const OPTION: u64 = 0x4948_4156_454f_5054; // IHAVEOPT
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;

/// `NBD_FLAG_FIXED_NEWSTYLE` and `NBD_FLAG_NO_ZEROES`.
const FLAGS: u16 = 3;
const OPT_ABORT: u32 = 2;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const SIZE: u64 = 1 << 30;
/// `NBD_FLAG_HAS_FLAGS`.
const TRANSMISSION_FLAGS: u16 = 1;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;

const REQUEST_LEN: usize = 28;
const SIMPLE_REPLY_LEN: usize = 16;

/// The most that is read at once.
const ROOM: usize = 512 << 10;

/// Serves as many connections as there is work for. Structured replies are granted, nothing else.
pub(crate) fn server(work: &Work, listener: UnixListener) -> Result<()> {
    let mut room = vec![0; ROOM];
    for _ in 0..work.connections() {
        let (stream, _) = listener.accept()?;
        serve(stream, &mut room)?;
    }
    Ok(())
}

fn serve(mut stream: UnixStream, room: &mut [u8]) -> Result<()> {
    let mut greeting = Vec::new();
    greeting.extend(GREETING.to_be_bytes());
    greeting.extend(OPTION.to_be_bytes());
    greeting.extend(FLAGS.to_be_bytes());
    stream.write_all(&greeting)?;
    let mut structured = false;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let (option, len) = (be32(&header[8..]), be32(&header[12..]) as usize);
        stream.read_exact(&mut room[..len])?;
        let mut answer = Vec::new();
        match option {
            OPT_GO => {
                let mut info = vec![0, 0];
                info.extend(SIZE.to_be_bytes());
                info.extend(TRANSMISSION_FLAGS.to_be_bytes());
                option_reply(&mut answer, option, REP_INFO, &info);
                option_reply(&mut answer, option, REP_ACK, &[]);
            }
            OPT_STRUCTURED_REPLY | OPT_ABORT => {
                structured |= option == OPT_STRUCTURED_REPLY;
                option_reply(&mut answer, option, REP_ACK, &[]);
            }
            _ => option_reply(&mut answer, option, REP_ERR_UNSUP, &[]),
        }
        stream.write_all(&answer)?;
        match option {
            OPT_ABORT => return Ok(()),
            OPT_GO => return transmit(stream, structured, room),
            _ => {}
        }
    }
}

fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    out.extend(OPTION_REPLY.to_be_bytes());
    for number in [option, kind, short(payload.len())] {
        out.extend(number.to_be_bytes());
    }
    out.extend(payload);
}

/// Answers all requests that came together in one go.
fn transmit(mut stream: UnixStream, structured: bool, room: &mut [u8]) -> Result<()> {
    let (mut start, mut end) = (0, 0);
    let mut out = Vec::new();
    // Unknown to the compiler, which would fill memory instead of copying.
    let block = std::hint::black_box([7; BLOCK]);
    loop {
        while let Some(request) = room[start..end].first_chunk::<REQUEST_LEN>() {
            let (command, cookie) = (be16(&request[6..]), be64(&request[8..]));
            let (offset, len) = (be64(&request[16..]), be32(&request[24..]) as usize);
            let payload = if command == CMD_WRITE { len } else { 0 };
            if end - start < REQUEST_LEN + payload {
                break;
            }
            start += REQUEST_LEN + payload;
            match command {
                CMD_DISC => return Ok(()),
                CMD_READ if structured => {
                    out.extend(CHUNK.to_be_bytes());
                    // `NBD_REPLY_FLAG_DONE` and `NBD_REPLY_TYPE_OFFSET_DATA`.
                    out.extend([0, 1, 0, 1]);
                    out.extend(cookie.to_be_bytes());
                    out.extend((short(len) + 8).to_be_bytes());
                    out.extend(offset.to_be_bytes());
                    out.extend(&block[..len]);
                }
                CMD_WRITE if structured => {
                    out.extend(CHUNK.to_be_bytes());
                    // `NBD_REPLY_FLAG_DONE` and `NBD_REPLY_TYPE_NONE`.
                    out.extend([0, 1, 0, 0]);
                    out.extend(cookie.to_be_bytes());
                    out.extend(0_u32.to_be_bytes());
                }
                _ => {
                    simple_reply(&mut out, cookie);
                    if command == CMD_READ {
                        out.extend(&block[..len]);
                    }
                }
            }
        }
        if !out.is_empty() {
            stream.write_all(&out)?;
            out.clear();
        }
        room.copy_within(start..end, 0);
        (start, end) = (0, end - start);
        match stream.read(&mut room[end..]) {
            Ok(0) => return Ok(()),
            // A client that closes with unread bytes resets the connection.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            read => end += read?,
        }
    }
}

fn simple_reply(out: &mut Vec<u8>, cookie: u64) {
    out.extend(SIMPLE_REPLY.to_be_bytes());
    out.extend(0_u32.to_be_bytes());
    out.extend(cookie.to_be_bytes());
}

/// Does the work with simple replies.
pub(crate) fn client(work: &Work) -> Result<()> {
    let mut room = vec![0; ROOM];
    for _ in 0..work.connections() {
        let mut stream = UnixStream::connect(&work.path)?;
        enter(&mut stream)?;
        request_all(work, &mut stream, &mut room)?;
        let mut last = Vec::new();
        disconnect(&mut last);
        stream.write_all(&last)?;
        // The server has seen the end of the connection, so that connections do not overlap.
        if stream.read(&mut room)? != 0 {
            return Err("the server says something after the end".into());
        }
    }
    Ok(())
}

fn enter(stream: &mut UnixStream) -> Result<()> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if be64(&greeting) != GREETING || be64(&greeting[8..]) != OPTION {
        return Err("this is no server".into());
    }
    let mut out = Vec::new();
    out.extend(u32::from(be16(&greeting[16..]) & FLAGS).to_be_bytes());
    // An empty name, and no requests for information.
    option(&mut out, OPT_GO, &[0; 6]);
    stream.write_all(&out)?;
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header)?;
        let mut payload = vec![0; be32(&header[16..]) as usize];
        stream.read_exact(&mut payload)?;
        match be32(&header[12..]) {
            REP_ACK => return Ok(()),
            REP_INFO => {}
            other => return Err(format!("the server refuses: {other:#x}").into()),
        }
    }
}

/// Keeps as many requests in flight as the depth says, and pipelines them in as few writes as
/// possible.
fn request_all(work: &Work, stream: &mut UnixStream, room: &mut [u8]) -> Result<()> {
    let (command, reply_len) = match work.operation {
        Operation::Write => (CMD_WRITE, SIMPLE_REPLY_LEN),
        _ => (CMD_READ, SIMPLE_REPLY_LEN + BLOCK),
    };
    let mut offsets = work.offsets();
    let mut block = [7; BLOCK];
    let mut free: Vec<u64> = (0..work.depth as u64).collect();
    let (mut start, mut end) = (0, 0);
    let mut out = Vec::new();
    loop {
        while !free.is_empty()
            && let Some(offset) = offsets.next()
        {
            request(&mut out, command, free.pop().unwrap_or_default(), offset);
            if command == CMD_WRITE {
                out.extend(&block);
            }
        }
        if free.len() == work.depth {
            return Ok(());
        }
        stream.write_all(&out)?;
        out.clear();
        if room.len() - start < reply_len {
            room.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        match stream.read(&mut room[end..])? {
            0 => return Err("the server left".into()),
            n => end += n,
        }
        while let Some(reply) = room[start..end].get(..reply_len) {
            if be32(reply) != SIMPLE_REPLY || be32(&reply[4..]) != 0 {
                return Err("the server has failed".into());
            }
            free.push(be64(&reply[8..]));
            if command == CMD_READ {
                block.copy_from_slice(&reply[SIMPLE_REPLY_LEN..]);
                std::hint::black_box(&block);
            }
            start += reply_len;
        }
        if start == end {
            (start, end) = (0, 0);
        }
    }
}

pub(crate) fn option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.extend(OPTION.to_be_bytes());
    for number in [option, short(data.len())] {
        out.extend(number.to_be_bytes());
    }
    out.extend(data);
}

/// The kind of the first reply to an option, and the bytes behind it, once it is there.
pub(crate) fn option_reply_of(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<20>()?;
    let rest = rest.get(be32(&header[16..]) as usize..)?;
    Some((be32(&header[12..]), rest))
}

pub(crate) fn disconnect(out: &mut Vec<u8>) {
    request(out, CMD_DISC, 0, 0);
}

fn request(out: &mut Vec<u8>, command: u16, cookie: u64, offset: u64) {
    out.extend(REQUEST.to_be_bytes());
    out.extend([0, 0]);
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    let len = if command == CMD_DISC { 0 } else { short(BLOCK) };
    out.extend(len.to_be_bytes());
}

fn short(len: usize) -> u32 {
    len.try_into().unwrap_or(u32::MAX)
}

fn be16(bytes: &[u8]) -> u16 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

fn be32(bytes: &[u8]) -> u32 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

fn be64(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
