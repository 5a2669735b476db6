//! Clients that disconnect at any byte.

#[cfg(feature = "tls-base")]
use crate::serving::tls::{knowing, secure, shown};
use crate::support::{Running, eventually, modes, soon};
use crate::witness::{Witness, memory};
#[cfg(feature = "tls-base")]
use interop::Certificates;
use nbd_blocking::{CommandFlags, ConnectOptions};
use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// Relays both directions, at most `most` bytes from the client, and returns those.
fn relay(client: UnixStream, server: UnixStream, most: usize) -> Vec<u8> {
    let said = Arc::new(Mutex::new(Vec::new()));
    let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let back = thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut client, mut server) = (client, server);
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = client.read(&mut buffer) {
        let mut said = said.lock().unwrap();
        let n = n.min(most - said.len());
        said.extend(&buffer[..n]);
        if server.write_all(&buffer[..n]).is_err() || said.len() == most {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    back.join().unwrap();
    Arc::into_inner(said).unwrap().into_inner().unwrap()
}

/// Uses an export in every way, as far as the connection allows.
fn session(stream: UnixStream, options: &ConnectOptions) -> Result<(), nbd_blocking::Error> {
    let client = options.connect_over(stream, None)?;
    let none = CommandFlags::NONE;
    client.write_all_at(b"written", 70_000)?;
    client.read_exact_at(&mut [0; 7], 70_000)?;
    client.trim(131_072, 4096, none)?;
    client.write_zeroes(131_072, 4096, none)?;
    client.flush()?;
    if !client.contexts().is_empty() {
        client.block_status(0, 1 << 20, none)?;
    }
    client.disconnect()
}

/// The bytes of a client in a whole session, and how many of them come before it has entered the
/// export.
fn recorded(running: &Running, options: &ConnectOptions) -> (Vec<u8>, usize) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = running.raw();
    let relay = thread::spawn(move || relay(theirs, server, usize::MAX));
    session(ours, options).unwrap();
    let said = relay.join().unwrap();
    let magics = [*b"\x25\x60\x95\x13", *b"\x21\xe4\x1c\x71"];
    let is_request = |bytes: &[u8]| magics.iter().any(|magic| magic == bytes);
    let entered = said.windows(4).position(is_request).unwrap();
    (said, entered)
}

const LEFT: &str = "the client closed the connection";
const IN_OPTION: &str = "the client closed the connection in the middle of an option";
const IN_REQUEST: &str = "the client closed the connection in the middle of a request";
const NOT_NEGOTIATED: &str = "the connection failed while negotiating: ";
const BROKEN: &str = "the connection broke: ";

/// The way of a client to disconnect.
#[derive(Clone, Copy, Debug)]
enum Going {
    /// It reads all replies.
    Politely,
    /// It closes while replies are in flight.
    AtOnce,
    /// The same over TCP with a reset, which may lose sent bytes, too.
    ByReset,
}

impl Going {
    fn after(self, said: &[u8], running: &Running) {
        if matches!(self, Self::ByReset) {
            let mut raw = running.raw_tcp();
            let _ = raw.write_all(said);
            let linger = Some(Duration::ZERO);
            socket2::SockRef::from(&raw).set_linger(linger).unwrap();
            return;
        }
        let mut raw = running.raw();
        raw.write_all(said).unwrap();
        if matches!(self, Self::Politely) {
            raw.shutdown(Shutdown::Write).unwrap();
            raw.read_to_end(&mut Vec::new()).unwrap();
        }
    }

    /// Checks how a connection ended that was left after `n` bytes of a session.
    fn check(self, ending: &str, n: usize, session: &[u8], entered: usize) {
        let in_time = match n {
            _ if n == session.len() => "the client disconnected",
            // Cut between two messages; their kinds decide where that is.
            _ if ending == LEFT => LEFT,
            _ if n < entered => IN_OPTION,
            _ => IN_REQUEST,
        };
        let expected = match self {
            Self::Politely => ending == in_time && (n != 0 && n != entered || ending == LEFT),
            Self::AtOnce | Self::ByReset => {
                let early = [LEFT, IN_OPTION, IN_REQUEST].contains(&ending);
                let broken = [NOT_NEGOTIATED, BROKEN].iter();
                ending == in_time || early || broken.clone().any(|text| ending.starts_with(text))
            }
        };
        let len = session.len();
        assert!(
            expected,
            "{self:?} after {n} of {len}, {entered} before the export: {ending}"
        );
    }
}

#[test]
fn a_client_that_is_gone_after_any_byte_leaves_nothing_behind() {
    // S-013, S-233, H-063
    soon(|| {
        let running = Running::new(memory());
        let sessions = modes().map(|options| recorded(&running, &options));
        let mut gone = sessions.len();
        running.wait_for_endings(gone);
        let witness = Witness::new(&running, 4096);
        for (session, entered) in &sessions {
            assert!(*entered > 20 && session.len() > *entered + 6 * 28);
            for going in [Going::Politely, Going::AtOnce, Going::ByReset] {
                for n in 0..=session.len() {
                    going.after(&session[..n], &running);
                    gone += 1;
                    going.check(&running.ending(gone), n, session, *entered);
                }
            }
        }
        eventually(|| running.stopper.connections() == 1);
        witness.testify();
        let endings = running.stop();
        assert_eq!(endings.len(), gone + 1);
    });
}

#[cfg(feature = "tls-base")]
#[test]
fn a_client_that_is_gone_after_any_byte_of_tls_leaves_nothing_behind() {
    // S-233, H-048
    soon(|| {
        let certificates = Certificates::new();
        let running = Running::new(memory().offer_tls(&shown(&certificates)).unwrap());
        let options = secure(modes()[2].clone(), knowing(&certificates));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = running.raw();
        let whole = thread::spawn(move || relay(theirs, server, usize::MAX));
        session(ours, &options).unwrap();
        let len = whole.join().unwrap().len();
        let witness = Witness::new(&running, 4096);
        // A step that is no divisor of the length of blocks.
        let cuts: Vec<usize> = (0..40).chain((40..len).step_by(13)).collect();
        for (at, n) in cuts.iter().enumerate() {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let server = running.raw();
            let cut = *n;
            let relay = thread::spawn(move || relay(theirs, server, cut));
            let _ = session(ours, &options);
            assert!(relay.join().unwrap().len() <= cut);
            let ending = running.ending(at + 2);
            assert!(
                !ending.is_empty() && !ending.contains("panicked"),
                "{ending}"
            );
        }
        eventually(|| running.stopper.connections() == 1);
        assert_eq!(running.refused(), (0, Vec::new()));
        witness.testify();
        running.stop();
    });
}
