//! Accepting connections.

use super::{Event, Peer, Server, connection, registry::Refused};
use crate::{socket::Socket, stream::Stream};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::Duration,
};

/// How long to wait when there is no room for a connection: others have to end first.
const RETRY: Duration = Duration::from_millis(100);

/// Accepts connections until the server stops, and waits for them to end.
pub(super) fn serve<L: AsFd>(
    server: &Server,
    listener: L,
    accept: impl Fn(&L) -> io::Result<(OwnedFd, Peer)>,
) -> io::Result<()> {
    let wake = server.registry.wake()?;
    while !server.registry.is_stopping() {
        let mut fds = [
            PollFd::new(&listener, PollFlags::IN),
            PollFd::new(&wake, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) if !fds[1].revents().is_empty() => break,
            Ok(_) => {}
        }
        match accept(&listener) {
            Ok((fd, peer)) => {
                if let Err(error) = start(server, fd, peer) {
                    server.settings.tell(&Event::AcceptFailed { error: &error });
                }
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(errno) if is_passing(errno) => {}
                Some(errno) if is_shortage(errno) => {
                    server.settings.tell(&Event::AcceptFailed { error: &error });
                    thread::sleep(RETRY);
                }
                _ => return Err(error),
            },
        }
    }
    // Nobody can connect any more, and nobody waits to be accepted.
    drop(listener);
    server.registry.drain(server.settings.grace);
    Ok(())
}

/// Serves a connection in a thread of its own.
fn start(server: &Server, fd: OwnedFd, peer: Peer) -> io::Result<()> {
    let handle = Socket::new(fd.try_clone()?)?;
    let stream = Stream::Socket(Socket::new(fd)?);
    let settings = server.settings.clone();
    let place = match server
        .registry
        .enter(Some(handle), settings.max_connections)
    {
        Ok(place) => place,
        Err(Refused::Full | Refused::Stopping) => {
            settings.tell(&Event::Refused { peer: &peer });
            return Ok(());
        }
    };
    thread::Builder::new()
        .name(format!("nbd-{}", place.id()))
        .spawn(move || {
            connection::serve(&settings, stream, &peer, &place);
        })
        .map(drop)
}

/// The connection was gone before it was accepted, or the like.
fn is_passing(error: Errno) -> bool {
    matches!(
        error,
        Errno::INTR
            | Errno::AGAIN
            | Errno::CONNABORTED
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
            | Errno::PERM
            | Errno::TIMEDOUT
    )
}

fn is_shortage(error: Errno) -> bool {
    matches!(
        error,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM
    )
}
