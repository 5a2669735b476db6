//! Listening sockets that take more than a call of the standard library.

use std::{
    io,
    net::TcpListener,
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
};

/// Listens on a Unix socket, in place of one that a server has left behind.
///
/// A socket that still answers, and a file that is no socket, are not touched.
///
/// # Errors
///
/// Of the kind [`io::ErrorKind::AddrInUse`] if there is something that is in use; whatever else
/// keeps the socket from being made.
pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<UnixListener> {
    let path = path.as_ref();
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Whether it is a socket to which nobody listens.
fn is_stale(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// A listening socket that the process was started with.
#[derive(Debug)]
#[non_exhaustive]
pub enum Inherited {
    /// Of TCP.
    Tcp(TcpListener),
    /// Of a Unix socket.
    Unix(UnixListener),
}

/// Takes the listening sockets that the process was started with, as `systemd` and others hand
/// them over by `LISTEN_FDS` (socket activation). There are none if it was not started so.
///
/// To be called once, early: the sockets are given away, and the variables are taken out of the
/// environment so that no other process takes them for its own.
///
/// # Errors
///
/// When a descriptor is no listening stream socket of TCP or of the file system.
pub fn inherited_listeners() -> io::Result<Vec<Inherited>> {
    let mut inherited = listenfd::ListenFd::from_env();
    let mut listeners = Vec::with_capacity(inherited.len());
    for at in 0..inherited.len() {
        // What is of another kind stays where it is.
        let listener = match inherited.take_unix_listener(at) {
            Ok(Some(listener)) => Inherited::Unix(listener),
            Ok(None) => continue,
            Err(_) => match inherited.take_tcp_listener(at)? {
                Some(listener) => Inherited::Tcp(listener),
                None => continue,
            },
        };
        listeners.push(listener);
    }
    Ok(listeners)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_nobody_listens_to_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let first = bind_unix(&path).unwrap();
        let error = bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let second = bind_unix(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(second);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "no socket").unwrap();
        let error = bind_unix(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"no socket");
    }
}
