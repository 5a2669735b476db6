//! A server that plays a test's script, and behaves as no real one does on demand.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    panic,
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::tap::{Recording, options};

/// The client's timeout for messages that a script waits for.
const LIMIT: Duration = Duration::from_secs(20);

/// A scripted server on a TCP port of its own.
#[derive(Debug)]
pub struct Scripted {
    address: SocketAddr,
    thread: JoinHandle<Vec<Recording>>,
}

/// One connection to a scripted server.
///
/// Its methods panic when the client does something else than the script expects.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    recording: Recording,
}

/// A compact request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `NBD_CMD_FLAG_*`
    pub flags: u16,
    /// `NBD_CMD_*`
    pub command: u16,
    /// The cookie of the reply.
    pub cookie: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub len: u32,
}

impl Scripted {
    /// Serves `connections` one after the other; the script gets the number of the connection.
    ///
    /// # Panics
    ///
    /// When there is no free port.
    pub fn start(
        connections: usize,
        script: impl Fn(usize, &mut Conversation) + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.expect("the loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let serve = move || {
            let one = |number| {
                let (stream, _) = listener.accept().expect("a listener accepts");
                let timeout = stream.set_read_timeout(Some(LIMIT));
                timeout.expect("a socket takes any timeout but 0");
                // Messages are sent in pieces, which would wait for each other.
                stream.set_nodelay(true).expect("TCP can do that");
                let mut conversation = Conversation {
                    stream,
                    recording: Recording::default(),
                };
                script(number, &mut conversation);
                conversation.recording
            };
            (0..connections).map(one).collect()
        };
        Self {
            address,
            thread: thread::spawn(serve),
        }
    }

    /// Its address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URI of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    /// The URI of an export over TLS.
    pub fn tls_uri(&self, export: &str) -> String {
        format!("nbds://{}/{export}", self.address)
    }

    /// The recorded bytes, when the scripts have ended.
    ///
    /// # Panics
    ///
    /// When a script has panicked, with its panic.
    pub fn finish(self) -> Vec<Recording> {
        self.thread
            .join()
            .unwrap_or_else(|cause| panic::resume_unwind(cause))
    }
}

impl Conversation {
    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        self.recording.server.extend_from_slice(bytes);
        // A client that has left already is judged by the bytes that it has sent.
        drop(self.stream.write_all(bytes));
    }

    /// Sends bytes to a client that may have left.
    ///
    /// # Errors
    ///
    /// When it has.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.recording.server.extend_from_slice(bytes);
        self.stream.write_all(bytes)
    }

    /// Greets with these flags and takes the client's.
    pub fn greet(&mut self, flags: u16) -> u32 {
        self.send(b"NBDMAGICIHAVEOPT");
        self.send(&flags.to_be_bytes());
        u32::from_be_bytes(self.receive())
    }

    /// The next option and its data.
    pub fn option(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(&self.receive::<8>(), b"IHAVEOPT");
        let option = u32::from_be_bytes(self.receive());
        let len = u32::from_be_bytes(self.receive());
        let mut data = vec![0; usize::try_from(len).expect("an option fits into memory")];
        self.fill(&mut data);
        (option, data)
    }

    /// Answers an option.
    pub fn reply(&mut self, option: u32, code: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).expect("a reply is short");
        self.send(&0x0003_e889_0455_65a9_u64.to_be_bytes());
        for number in [option, code, len] {
            self.send(&number.to_be_bytes());
        }
        self.send(data);
    }

    /// `NBD_REP_ACK`
    pub fn ack(&mut self, option: u32) {
        self.reply(option, 1, &[]);
    }

    /// `NBD_REP_ERR_*`, by the number without its highest bit.
    pub fn refuse(&mut self, option: u32, code: u32) {
        self.reply(option, code | 1 << 31, &[]);
    }

    /// `NBD_INFO_EXPORT` and the final reply.
    pub fn accept(&mut self, option: u32, size: u64, flags: u16) {
        let mut info = vec![0, 0];
        info.extend_from_slice(&size.to_be_bytes());
        info.extend_from_slice(&flags.to_be_bytes());
        self.reply(option, 3, &info);
        self.ack(option);
    }

    /// Waits a while, in which the client must send nothing.
    pub fn hear_nothing(&mut self, time: Duration) {
        let set_timeout = |stream: &TcpStream, time| {
            let set = stream.set_read_timeout(Some(time));
            set.expect("a socket takes any timeout but 0");
        };
        set_timeout(&self.stream, time);
        let read = loop {
            match self.stream.read(&mut [0]) {
                // A process that was stopped and goes on gets EINTR.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        set_timeout(&self.stream, LIMIT);
        match read {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            other => panic!("the client should be silent: {other:?}"),
        }
    }

    /// The next request, of 28 bytes.
    pub fn request(&mut self) -> Request {
        assert_eq!(self.receive::<4>(), 0x2560_9513_u32.to_be_bytes());
        Request {
            flags: u16::from_be_bytes(self.receive()),
            command: u16::from_be_bytes(self.receive()),
            cookie: u64::from_be_bytes(self.receive()),
            offset: u64::from_be_bytes(self.receive()),
            len: u32::from_be_bytes(self.receive()),
        }
    }

    /// The cookie of the next request, which has no payload; `None` when the client has left.
    pub fn next_cookie(&mut self) -> Option<u64> {
        let mut bytes = [0; 28];
        self.stream.read_exact(&mut bytes).ok()?;
        self.recording.client.extend_from_slice(&bytes);
        let is_last = bytes[7] == 2; // NBD_CMD_DISC
        let cookie = bytes[8..].first_chunk().copied();
        cookie.filter(|_| !is_last).map(u64::from_be_bytes)
    }

    /// The cookie of the next request, which has an extended header and no payload.
    pub fn extended_request(&mut self) -> u64 {
        assert_eq!(self.receive::<4>(), 0x21e4_1c71_u32.to_be_bytes());
        let [_, _, _, _, cookie @ ..] = self.receive::<12>();
        self.receive::<16>();
        u64::from_be_bytes(cookie)
    }

    /// A simple reply.
    pub fn simple(&mut self, error: u32, cookie: u64, data: &[u8]) {
        self.send(&0x6744_6698_u32.to_be_bytes());
        self.send(&error.to_be_bytes());
        self.send(&cookie.to_be_bytes());
        self.send(data);
    }

    /// The client's last bytes, until it closes the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => {
                panic!("the client should close the connection: {error}")
            }
            _ => {}
        }
        self.recording.client.extend_from_slice(&rest);
        rest
    }

    /// The client's last options, until it closes the connection.
    pub fn last_options(&mut self) -> Vec<(u32, Vec<u8>)> {
        let rest = self.rest();
        let (options, rest) = options(&rest);
        assert!(rest.is_empty(), "after the options: {rest:02x?}");
        options
    }

    fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let read = self.stream.read_exact(bytes);
        read.expect("the client sends the bytes that the script waits for");
        self.recording.client.extend_from_slice(bytes);
    }
}
