//! Connections over `tokio::net`, with the same options as the clients send: the part of their costs
//! that is the runtime's.

use crate::{
    Result, Work,
    asynchronous::one_thread,
    peer::{self, OPT_GO, OPT_STRUCTURED_REPLY, REP_ACK},
};
use std::{future::poll_fn, io, path::Path, pin::Pin, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::timeout,
};

const OPT_EXTENDED_HEADERS: u32 = 11;

/// An empty name, and no requests for information.
const GO: [u8; 6] = [0; 6];

const TIME: Duration = Duration::from_secs(2);

/// The exchange alone.
pub(crate) fn bare(work: &Work) -> Result<()> {
    let work = work.clone();
    one_thread()?.block_on(async {
        let task = tokio::spawn(async move {
            for _ in 0..work.connections() {
                leave(enter(&work.path).await?).await?;
            }
            Ok(())
        });
        task.await?
    })
}

/// The exchange within a time, and with a task for the connection, as a client has them.
pub(crate) fn in_time(work: &Work) -> Result<()> {
    let work = work.clone();
    one_thread()?.block_on(async {
        let task = tokio::spawn(async move {
            for _ in 0..work.connections() {
                let stream = timeout(TIME, enter(&work.path)).await??;
                let leaving = async { timeout(TIME, leave(stream)).await? };
                tokio::spawn(leaving).await??;
            }
            Ok(())
        });
        task.await?
    })
}

async fn enter(path: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    // The greeting of this server comes at once.
    read(&mut stream, &mut [0; 18]).await?;
    let mut out = Vec::from(3_u32.to_be_bytes());
    for (option, data) in [
        (OPT_EXTENDED_HEADERS, &[][..]),
        (OPT_STRUCTURED_REPLY, &[]),
        (OPT_GO, &GO),
    ] {
        peer::option(&mut out, option, data);
        write(&mut stream, &out).await?;
        out.clear();
        let is_accepted = answer(&mut stream).await?;
        if option == OPT_GO && !is_accepted {
            return Err("the server refuses".into());
        }
    }
    Ok(stream)
}

/// Reads all replies to an option. Whether the last one is a good one.
async fn answer(stream: &mut UnixStream) -> Result<bool> {
    let mut room = [0; 512];
    let mut end = 0;
    loop {
        match read(stream, &mut room[end..]).await? {
            0 => return Err("the server left".into()),
            n => end += n,
        }
        let mut replies = &room[..end];
        while let Some((kind, rest)) = peer::option_reply_of(replies) {
            replies = rest;
            if kind == REP_ACK || kind >> 31 == 1 {
                return Ok(kind == REP_ACK);
            }
        }
    }
}

async fn leave(mut stream: UnixStream) -> Result<()> {
    let mut last = Vec::new();
    peer::disconnect(&mut last);
    write(&mut stream, &last).await?;
    poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await?;
    match read(&mut stream, &mut [0; 16]).await? {
        0 => Ok(()),
        _ => Err("the server says something after the end".into()),
    }
}

async fn read(stream: &mut UnixStream, room: &mut [u8]) -> io::Result<usize> {
    let mut room = ReadBuf::new(room);
    poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut room)).await?;
    Ok(room.filled().len())
}

/// Such short messages are always taken whole.
async fn write(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    let n = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
    if n < bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}
