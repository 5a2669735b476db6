//! `nbd-blocking`.

use crate::{
    BLOCK, Operation, Result, Work,
    asynchronous::{data, stops_after, uri},
};
use nbd_blocking::{Client, CommandFlags, ConnectOptions, Server, Threads};
use std::os::unix::net::UnixListener;

pub(crate) fn client(work: &Work) -> Result<()> {
    let options = ConnectOptions::new();
    let uri = uri(work)?;
    for _ in 0..work.connections() {
        let client = options.connect_uri(&uri)?;
        match work.depth {
            // Buffers would be counted with the connection.
            _ if work.operation == Operation::Connect => {}
            1 => one_at_a_time(work, &client)?,
            _ => several(work, &client)?,
        }
        client.disconnect()?;
    }
    Ok(())
}

fn one_at_a_time(work: &Work, client: &Client) -> Result<()> {
    let mut block = [7; BLOCK];
    for offset in work.offsets() {
        match work.operation {
            Operation::Write => client.write_all_at(&block, offset)?,
            _ => client.read_exact_at(&mut block, offset)?,
        }
    }
    Ok(())
}

fn several(work: &Work, client: &Client) -> Result<()> {
    let mut queue = client.queue();
    let payload = bytes::Bytes::from(vec![7; BLOCK]);
    let mut buffers = vec![vec![0; BLOCK]; work.depth];
    let mut offsets = work.offsets();
    loop {
        while queue.outstanding() < work.depth
            && let Some(offset) = offsets.next()
        {
            match work.operation {
                Operation::Write => queue.write(payload.clone(), offset, CommandFlags::NONE)?,
                _ => queue.read(buffers.pop().ok_or("a buffer is missing")?, offset)?,
            };
        }
        let Some(completion) = queue.complete()? else {
            return Ok(());
        };
        completion.result?;
        buffers.extend(completion.buffer);
    }
}

pub(crate) fn server(work: &Work, listener: UnixListener) -> Result<()> {
    let server = nbd_io::server::Server::<Threads>::single(data(work)?);
    if work.operation == Operation::Connect {
        let server = Server::from(stops_after(server, work.count));
        return Ok(server.serve(nbd_blocking::Listener::from_std(listener)?)?);
    }
    let server = Server::from(server);
    let (stream, _) = listener.accept()?;
    server.serve_over(stream)?;
    Ok(())
}
