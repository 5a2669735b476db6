//! A server that plays a script.

use super::{bytes, spawn};
use nbd_blocking::{Client, ConnectOptions, Error};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    thread::JoinHandle,
    time::Duration,
};

/// The server's end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    /// Whether to write byte by byte.
    pub(crate) one_byte: bool,
}

/// A request as it was seen on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Seen {
    /// A request with 32-bit lengths.
    pub(crate) fn parse(header: &[u8]) -> Self {
        assert_eq!(&header[..4], [0x25, 0x60, 0x95, 0x13], "{header:?}");
        Self {
            flags: u16::from_be_bytes([header[4], header[5]]),
            command: u16::from_be_bytes([header[6], header[7]]),
            cookie: u64_at(header, 8),
            offset: u64_at(header, 16),
            len: u32_at(header, 24).into(),
        }
    }
}

/// The negotiation of a scripted server.
#[derive(Clone, Debug)]
pub(crate) struct Negotiation {
    pub(crate) structured: bool,
    pub(crate) extended: bool,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    pub(crate) block_sizes: Option<(u32, u32, u32)>,
    pub(crate) contexts: Vec<(u32, &'static str)>,
}

impl Negotiation {
    pub(crate) fn structured() -> Self {
        Self {
            structured: true,
            extended: false,
            size: 1 << 40,
            flags: bytes::ALL_FLAGS,
            block_sizes: None,
            contexts: Vec::new(),
        }
    }

    pub(crate) fn simple() -> Self {
        Self {
            structured: false,
            ..Self::structured()
        }
    }

    pub(crate) fn extended() -> Self {
        Self {
            extended: true,
            ..Self::structured()
        }
    }
}

/// Starts a server that plays this script, and gives the client's end of the connection.
pub(crate) fn play<T: Send + 'static>(
    script: impl FnOnce(&mut Peer) -> T + Send + 'static,
) -> (UnixStream, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().expect("sockets can be made");
    let server = spawn(move || {
        let mut peer = Peer {
            stream: theirs,
            one_byte: false,
        };
        script(&mut peer)
    });
    (ours, server)
}

/// A client in transmission with a server that plays this script from there on.
pub(crate) fn session<T: Send + 'static>(
    negotiation: Negotiation,
    options: &ConnectOptions,
    script: impl FnOnce(&mut Peer) -> T + Send + 'static,
) -> (Client, JoinHandle<T>) {
    let (stream, server) = play(move |peer| {
        peer.negotiate(&negotiation);
        script(peer)
    });
    let client = options
        .connect_over(stream, None)
        .expect("the export can be entered");
    (client, server)
}

/// The error of connecting to a server that plays this script.
pub(crate) fn refused(script: impl FnOnce(&mut Peer) + Send + 'static) -> Error {
    refused_with(&ConnectOptions::new(), script)
}

pub(crate) fn refused_with(
    options: &ConnectOptions,
    script: impl FnOnce(&mut Peer) + Send + 'static,
) -> Error {
    let (stream, server) = play(script);
    let error = options
        .connect_over(stream, None)
        .expect_err("the export cannot be entered");
    server.join().expect("the script is played to its end");
    error
}

impl Peer {
    pub(crate) fn says(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_says(bytes).expect("the client listens");
    }

    pub(crate) fn try_says(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        let bytes = bytes.as_ref();
        if self.one_byte {
            for byte in bytes {
                self.stream.write_all(&[*byte])?;
            }
            Ok(())
        } else {
            self.stream.write_all(bytes)
        }
    }

    pub(crate) fn hears(&mut self, len: usize) -> Vec<u8> {
        self.try_hears(len).expect("the client speaks")
    }

    pub(crate) fn try_hears(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Everything until the client ends the stream.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = self.stream.read_to_end(&mut bytes);
        bytes
    }

    /// Whether the client sends nothing for a while.
    pub(crate) fn silence(&mut self, milliseconds: u64) -> bool {
        let timeout = Duration::from_millis(milliseconds);
        self.stream
            .set_read_timeout(Some(timeout))
            .expect("sockets have timeouts");
        let nothing = self.stream.read(&mut [0]).is_err();
        self.stream
            .set_read_timeout(None)
            .expect("sockets have timeouts");
        nothing
    }

    /// The number and the data of an option.
    pub(crate) fn option(&mut self) -> (u32, Vec<u8>) {
        self.try_option().expect("the client speaks")
    }

    pub(crate) fn try_option(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let header = self.try_hears(16)?;
        assert_eq!(&header[..8], b"IHAVEOPT");
        let len = usize::try_from(u32_at(&header, 12)).expect("it fits");
        Ok((u32_at(&header, 8), self.try_hears(len)?))
    }

    /// A request with 32-bit lengths.
    pub(crate) fn request(&mut self) -> Seen {
        Seen::parse(&self.hears(28))
    }

    /// A request with extended headers.
    pub(crate) fn extended_request(&mut self) -> Seen {
        let header = self.hears(32);
        assert_eq!(&header[..4], [0x21, 0xe4, 0x1c, 0x71], "{header:?}");
        Seen {
            flags: u16::from_be_bytes([header[4], header[5]]),
            command: u16::from_be_bytes([header[6], header[7]]),
            cookie: u64_at(&header, 8),
            offset: u64_at(&header, 16),
            len: u64_at(&header, 24),
        }
    }

    /// Negotiates until an export is entered.
    pub(crate) fn negotiate(&mut self, negotiation: &Negotiation) {
        self.try_negotiate(negotiation)
            .expect("the client negotiates");
    }

    pub(crate) fn try_negotiate(&mut self, negotiation: &Negotiation) -> io::Result<()> {
        self.try_says(bytes::hello())?;
        assert_eq!(self.try_hears(4)?, [0, 0, 0, 3]);
        loop {
            let (option, _) = self.try_option()?;
            let answer = match option {
                bytes::EXTENDED if negotiation.extended => bytes::ack(option),
                bytes::STRUCTURED if negotiation.structured => bytes::ack(option),
                bytes::SET_META => {
                    let mut answer = Vec::new();
                    for (id, name) in &negotiation.contexts {
                        answer.extend(bytes::context(*id, name));
                    }
                    answer.extend(bytes::ack(option));
                    answer
                }
                bytes::GO => {
                    let mut answer = bytes::export(negotiation.size, negotiation.flags);
                    if let Some((minimum, preferred, maximum)) = negotiation.block_sizes {
                        answer.extend(bytes::block_sizes(minimum, preferred, maximum));
                    }
                    answer.extend(bytes::ack(option));
                    answer
                }
                _ => bytes::err(option, 1, "not here"),
            };
            self.try_says(answer)?;
            if option == bytes::GO {
                return Ok(());
            }
        }
    }

    /// Takes `NBD_CMD_DISC`, and nothing behind it.
    pub(crate) fn disconnect(&mut self) {
        let request = self.request();
        assert_eq!(request.command, 2, "{request:?}");
        assert_eq!((request.flags, request.offset, request.len), (0, 0, 0));
        assert!(self.rest().is_empty(), "nothing follows NBD_CMD_DISC");
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
