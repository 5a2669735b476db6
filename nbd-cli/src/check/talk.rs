//! One connection, on which scripts send any bytes, with a time limit and a record.

use super::{
    rule::{Checked, Fault, Message, must},
    wire::{self, Fields, hex},
};
#[cfg(feature = "tls-base")]
use nbd_tokio::nbd_io::tls::rustls;
use nbd_tokio::nbd_proto::wire::OptionReplyCode;
use socket2::Socket;
use std::{
    io::{self, ErrorKind, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// More than any reply to an option that is used here can have.
const LONGEST_OPTION_REPLY: u32 = 1 << 20;

/// Limit of replies to one option: exports of a list.
const MOST_REPLIES: usize = 100_000;

/// The messages of a rule, at most so many of each connection's end.
#[derive(Clone, Debug, Default)]
pub(super) struct Record(Arc<Mutex<(usize, Vec<Message>)>>);

impl Record {
    /// Messages kept. A fault is shown by the last ones.
    const KEPT: usize = 24;

    fn lock(&self) -> MutexGuard<'_, (usize, Vec<Message>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the next connection.
    fn connection(&self) -> usize {
        let mut record = self.lock();
        record.0 += 1;
        record.0
    }

    fn add(&self, message: Message) {
        let messages = &mut self.lock().1;
        if messages.len() == Self::KEPT {
            messages.remove(0);
        }
        messages.push(message);
    }

    /// Takes the recorded messages, to begin anew.
    pub(super) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.lock()).1
    }
}

/// A reply to an option.
#[derive(Debug)]
pub(super) struct OptionReply {
    pub(super) kind: u32,
    pub(super) data: Vec<u8>,
}

/// All replies to an option.
#[derive(Debug)]
pub(super) struct Answer {
    /// Those before the final one.
    pub(super) before: Vec<OptionReply>,
    pub(super) last: OptionReply,
}

impl Answer {
    pub(super) const fn is_ack(&self) -> bool {
        self.last.kind == wire::rep::ACK
    }

    pub(super) fn name(&self) -> String {
        reply_name(self.last.kind)
    }
}

pub(super) fn reply_name(kind: u32) -> String {
    OptionReplyCode::from(kind).to_string()
}

#[derive(Debug)]
pub(super) struct Talk {
    socket: Socket,
    #[cfg(feature = "tls-base")]
    tls: Option<Box<rustls::Connection>>,
    deadline: Instant,
    record: Record,
    connection: usize,
    /// The names of this end and of the other one.
    names: (&'static str, &'static str),
}

impl Talk {
    /// Talks as a client, which has `time` for it.
    pub(super) fn client(socket: Socket, time: Duration, record: &Record) -> Self {
        Self::new(socket, time, record, ("client", "server"))
    }

    pub(super) fn server(socket: Socket, time: Duration, record: &Record) -> Self {
        Self::new(socket, time, record, ("server", "client"))
    }

    /// Whether something has come already.
    pub(super) fn has_more(&mut self) -> bool {
        self.has_more_within(Duration::from_millis(1))
    }

    /// Whether something comes in a moment.
    pub(super) fn has_more_soon(&mut self) -> bool {
        self.has_more_within(Duration::from_millis(30))
    }

    fn has_more_within(&mut self, time: Duration) -> bool {
        #[cfg(feature = "tls-base")]
        if self.tls.is_some() {
            return self.has_decrypted_within(time);
        }
        let mut byte = [MaybeUninit::uninit()];
        let waits = self.socket.set_read_timeout(Some(time));
        waits.is_ok() && matches!(self.socket.peek(&mut byte), Ok(1))
    }

    fn new(
        socket: Socket,
        time: Duration,
        record: &Record,
        names: (&'static str, &'static str),
    ) -> Self {
        Self {
            socket,
            #[cfg(feature = "tls-base")]
            tls: None,
            deadline: Instant::now() + time,
            record: record.clone(),
            connection: record.connection(),
            names,
        }
    }

    fn note(&self, from: &'static str, bytes: &[u8], meaning: String) {
        self.record.add(Message {
            connection: self.connection,
            from,
            bytes: hex(bytes),
            meaning,
        });
    }

    /// Records bytes from the peer.
    pub(super) fn came(&self, bytes: &[u8], meaning: String) {
        self.note(self.names.1, bytes, meaning);
    }

    /// Sends all of it. A peer that has closed is noticed by its missing replies.
    pub(super) fn send(&mut self, bytes: &[u8], meaning: impl Into<String>) -> Checked {
        self.note(self.names.0, bytes, meaning.into());
        match self.write(bytes) {
            Err(error) if is_late(&error) => {
                must(format!("the {} has stopped reading", self.names.1))
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.socket.set_write_timeout(Some(self.left()?))?;
            let sent = self.stream(|stream| stream.write(bytes));
            match sent {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.stream(|stream| stream.flush())
    }

    #[cfg(feature = "tls-base")]
    fn stream<T>(
        &mut self,
        act: impl FnOnce(&mut dyn ReadWrite) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.tls.as_deref_mut() {
            Some(rustls::Connection::Client(tls)) => {
                act(&mut rustls::Stream::new(tls, &mut self.socket))
            }
            Some(rustls::Connection::Server(tls)) => {
                act(&mut rustls::Stream::new(tls, &mut self.socket))
            }
            None => act(&mut self.socket),
        }
    }

    #[cfg(not(feature = "tls-base"))]
    fn stream<T>(
        &mut self,
        act: impl FnOnce(&mut dyn ReadWrite) -> io::Result<T>,
    ) -> io::Result<T> {
        act(&mut self.socket)
    }

    /// The time that is left.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(left)
    }

    /// Receives until the buffer is full or the peer has ended the connection. Anything but a lack of
    /// time is such an end.
    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            self.socket.set_read_timeout(Some(self.left()?))?;
            match self.stream(|stream| stream.read(rest)) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_late(&error) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(filled)
    }

    /// Receives so many bytes.
    pub(super) fn take(&mut self, len: usize, what: &str) -> Checked<Vec<u8>> {
        let mut bytes = vec![0; len];
        let peer = self.names.1;
        match self.fill(&mut bytes) {
            Ok(n) if n == len => Ok(bytes),
            Ok(0) => {
                self.note(peer, &[], "the end of the connection".into());
                Err(Fault::Gone(format!(
                    "expected {what}, got the end of the connection"
                )))
            }
            Ok(n) => {
                let came = bytes.get(..n).unwrap_or_default();
                self.came(came, "and the end of the connection".into());
                Err(Fault::Gone(format!(
                    "expected {what} ({len} bytes), got the end of the connection after {n} bytes"
                )))
            }
            Err(_) => {
                self.came(&[], "nothing more in time".into());
                Err(Fault::Gone(format!(
                    "expected {what}, but the {peer} is silent"
                )))
            }
        }
    }

    /// Receives bytes if there are more, `None` at the end of the connection.
    pub(super) fn take_or_end(&mut self, len: usize, what: &str) -> Checked<Option<Vec<u8>>> {
        let mut first = [0];
        match self.fill(&mut first) {
            Ok(0) => Ok(None),
            Ok(_) => {
                let rest = self.take(len.saturating_sub(1), what)?;
                Ok(Some([&first[..], &rest].concat()))
            }
            Err(_) => must(format!(
                "expected {what}, but the {} is silent",
                self.names.1
            )),
        }
    }

    /// Waits for the end of the connection, before which nothing must come.
    pub(super) fn ends(&mut self, why: &str) -> Checked {
        let mut more = [0; 64];
        let peer = self.names.1;
        match self.fill(&mut more) {
            Ok(0) => Ok(()),
            Ok(n) => {
                let came = more.get(..n).unwrap_or_default();
                self.came(came, "instead of the end of the connection".into());
                must(format!(
                    "expected the end of the connection {why}, got more"
                ))
            }
            // A part of the requested bytes may have come.
            Err(_) => {
                self.came(&[], "nothing, and not the end of the connection".into());
                must(format!(
                    "expected the end of the connection {why}, but the {peer} keeps it"
                ))
            }
        }
    }

    /// Says that no more will come.
    pub(super) fn stop_sending(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Ends the connection at once.
    pub(super) fn cut(self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Sends an option.
    pub(super) fn option(&mut self, code: u32, data: &[u8]) -> Checked {
        let name = wire::option_name(code);
        let meaning = match data.len() {
            0 => name,
            len => format!("{name} with {len} bytes"),
        };
        self.send(&wire::option(code, data), meaning)
    }

    /// Sends an option and receives all replies to it.
    pub(super) fn ask(&mut self, code: u32, data: &[u8]) -> Checked<Answer> {
        self.option(code, data)?;
        self.answer(code)
    }

    /// Receives all replies to an option.
    pub(super) fn answer(&mut self, code: u32) -> Checked<Answer> {
        let mut before = Vec::new();
        while before.len() < MOST_REPLIES {
            let reply = self.option_reply(code)?;
            let is_last = reply.kind == wire::rep::ACK || reply.kind >> 31 == 1;
            if is_last {
                return Ok(Answer {
                    before,
                    last: reply,
                });
            }
            before.push(reply);
        }
        must(format!("more than {MOST_REPLIES} replies to one option"))
    }

    fn option_reply(&mut self, code: u32) -> Checked<OptionReply> {
        let option = wire::option_name(code);
        let header = self.take(20, &format!("a reply to {option}"))?;
        let mut fields = Fields(&header);
        let (magic, echoed) = (fields.u64(), fields.u32());
        let (kind, len) = (fields.u32().unwrap_or(0), fields.u32().unwrap_or(0));
        if magic != Some(wire::OPTION_REPLY) {
            self.came(&header, "no reply to an option".into());
            return must("expected the magic number of option replies, 0x3e889045565a9 (S-016)");
        }
        let name = reply_name(kind);
        if len > LONGEST_OPTION_REPLY {
            self.came(&header, format!("{name} of {len} bytes"));
            return must(format!(
                "expected a reply to {option} of a sane length, got {len} bytes"
            ));
        }
        let data = self.take(usize::try_from(len).unwrap_or(0), "the data of the reply")?;
        let meaning = match data.len() {
            0 => format!("{name} to {option}"),
            len => format!("{name} to {option} with {len} bytes"),
        };
        self.came(&[header, data.clone()].concat(), meaning);
        if echoed != Some(code) {
            return must(format!(
                "expected a reply to {option}, got one to another option (S-016)"
            ));
        }
        if kind == wire::rep::ACK && len != 0 {
            return must(format!("NBD_REP_ACK has no data, got {len} bytes (S-016)"));
        }
        Ok(OptionReply { kind, data })
    }
}

#[cfg(feature = "tls-base")]
impl Talk {
    /// Does the handshake of a client.
    pub(super) fn start_tls(
        &mut self,
        config: Arc<rustls::ClientConfig>,
        name: rustls::pki_types::ServerName<'static>,
    ) -> Checked {
        let connection = rustls::ClientConnection::new(config, name);
        self.shake_hands(connection.map(rustls::Connection::from))
    }

    /// Does the handshake of a server.
    pub(super) fn accept_tls(&mut self, config: Arc<rustls::ServerConfig>) -> Checked {
        let connection = rustls::ServerConnection::new(config);
        self.shake_hands(connection.map(rustls::Connection::from))
    }

    fn shake_hands(&mut self, made: Result<rustls::Connection, rustls::Error>) -> Checked {
        let impossible = |error: &dyn std::fmt::Display| Fault::Impossible(format!("TLS: {error}"));
        let mut connection = made.map_err(|error| impossible(&error))?;
        while connection.is_handshaking() {
            let left = self.left().map_err(|error| impossible(&error))?;
            let timed = self.socket.set_read_timeout(Some(left));
            timed.map_err(|error| impossible(&error))?;
            let done = connection.complete_io(&mut self.socket);
            done.map_err(|error| impossible(&error))?;
        }
        self.note(self.names.0, &[], "TLS from here on".into());
        self.tls = Some(Box::new(connection));
        Ok(())
    }

    pub(super) const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether bytes come in time that are no mere end of TLS.
    fn has_decrypted_within(&mut self, time: Duration) -> bool {
        let Self { tls, socket, .. } = self;
        let Some(tls) = tls else { return false };
        let waits = socket.set_read_timeout(Some(time));
        loop {
            match tls.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() > 0 => return true,
                Ok(state) if state.peer_has_closed() => return false,
                Ok(_) => {}
                // The next read reports it.
                Err(_) => return false,
            }
            if waits.is_err() || !matches!(tls.read_tls(socket), Ok(1..)) {
                return false;
            }
        }
    }

    /// Says that TLS ends, and that no more will come.
    pub(super) fn end_tls(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            // The peer may have left already.
            let _ = tls.write_tls(&mut self.socket);
        }
    }

    /// Whether the peer has ended TLS before it ended the connection; `None` without TLS.
    pub(super) fn ended_tls(&mut self) -> Option<bool> {
        let tls = self.tls.as_mut()?;
        let state = tls.process_new_packets();
        Some(state.is_ok_and(|state| state.peer_has_closed()))
    }
}

#[cfg(not(feature = "tls-base"))]
impl Talk {
    pub(super) const fn ended_tls(&mut self) -> Option<bool> {
        None
    }

    pub(super) const fn is_secure(&self) -> bool {
        false
    }

    pub(super) const fn end_tls(&mut self) {}
}

trait ReadWrite: Read + Write {}
impl<S: Read + Write> ReadWrite for S {}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
