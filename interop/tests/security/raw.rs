//! The bytes of a client without a client behind them.

use crate::drivers::{Host, LIMIT};
use interop::Certificates;
use nbd_io::{
    Memory, NamedExports,
    tls::{
        ClientTls,
        rustls::{ClientConnection, StreamOwned},
    },
};
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Instant,
};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const LIST: u32 = 3;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const EXTENDED: u32 = 11;
pub(crate) const STRUCTURED: u32 = 8;
pub(crate) const SET_META_CONTEXT: u32 = 10;

pub(crate) const ACK: u32 = 1;
pub(crate) const ERR_INVALID: u32 = 3 | 1 << 31;
pub(crate) const ERR_UNKNOWN: u32 = 6 | 1 << 31;
pub(crate) const ERR_TOO_BIG: u32 = 9 | 1 << 31;

/// The client's flags: fixed newstyle, no zeroes.
pub(crate) const CLIENT: [u8; 4] = [0, 0, 0, 3];

pub(crate) fn memory() -> NamedExports {
    NamedExports::single(Arc::new(Memory::new(64 * MIB)))
}

pub(crate) fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    option_of(option, len, data)
}

/// An option that announces a length of its own.
pub(crate) fn option_of(option: u32, len: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of INFO and GO.
pub(crate) fn wanted(name: &[u8]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name);
    data.extend([0, 0]);
    data
}

pub(crate) fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The header of a reply to an option.
pub(crate) fn reply_header(option: u32, code: u32, len: u32) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    for number in [option, code, len] {
        bytes.extend(number.to_be_bytes());
    }
    bytes
}

/// The code and the data of the next reply to an option.
pub(crate) fn reply(stream: &mut impl Read) -> (u32, Vec<u8>) {
    let mut header = [0; 20];
    stream.read_exact(&mut header).unwrap();
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    assert_eq!(&header[..8], &0x0003_e889_0455_65a9_u64.to_be_bytes());
    let mut data = vec![0; usize::try_from(number(16)).unwrap()];
    assert!(data.len() <= 8196, "a reply of {} bytes", data.len());
    stream.read_exact(&mut data).unwrap();
    (number(12), data)
}

/// The code of the last reply to an option.
pub(crate) fn last_reply(stream: &mut impl Read) -> u32 {
    loop {
        match reply(stream).0 {
            code if code == ACK || code >> 31 == 1 => return code,
            _ => {}
        }
    }
}

/// The errno of a simple reply, and its data if there is no error.
pub(crate) fn simple(stream: &mut impl Read, len: usize) -> (u32, Vec<u8>) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
    let errno = u32::from_be_bytes(header[4..8].try_into().unwrap());
    let mut data = vec![0; if errno == 0 { len } else { 0 }];
    stream.read_exact(&mut data).unwrap();
    (errno, data)
}

/// The server closes the connection, after any messages.
pub(crate) fn is_closed(stream: &mut impl Read) {
    let start = Instant::now();
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return,
            Ok(_) => assert!(start.elapsed() < LIMIT, "it goes on"),
            // Of TLS, the end may come without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("it is not closed: {error}"),
        }
    }
}

/// A client that uses the default export.
pub(crate) fn entered(host: &Host) -> TcpStream {
    let mut stream = host.greeted();
    stream
        .write_all(&[&CLIENT[..], &option(GO, &wanted(b""))].concat())
        .unwrap();
    assert_eq!(last_reply(&mut stream), ACK);
    stream
}

/// A client that has started TLS.
pub(crate) fn encrypted(host: &Host, certificates: &Certificates) -> Secure {
    let mut plain = host.greeted();
    plain
        .write_all(&[&CLIENT[..], &option(STARTTLS, &[])].concat())
        .unwrap();
    assert_eq!(last_reply(&mut plain), ACK);
    let tls = ClientTls::new();
    let tls = tls.roots_file(certificates.ca_certificate()).unwrap();
    let (config, name) = tls.client(Some("localhost")).unwrap();
    let session = ClientConnection::new(config, name).unwrap();
    StreamOwned::new(session, plain)
}

/// A client that uses the default export over TLS.
pub(crate) fn entered_securely(host: &Host, certificates: &Certificates) -> Secure {
    let mut stream = encrypted(host, certificates);
    stream.write_all(&option(GO, &wanted(b""))).unwrap();
    assert_eq!(last_reply(&mut stream), ACK);
    stream
}

pub(crate) type Secure = StreamOwned<ClientConnection, TcpStream>;

/// A request with an extended header.
pub(crate) fn extended(flags: u16, command: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = 0x21e4_1c71_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    for number in [cookie, offset, len] {
        bytes.extend(number.to_be_bytes());
    }
    bytes
}

/// Whether the next reply with an extended header is an error.
pub(crate) fn is_refused(stream: &mut impl Read) -> bool {
    let mut header = [0; 32];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[..4], 0x6e8a_278c_u32.to_be_bytes());
    let len = u64::from_be_bytes(header[24..].try_into().unwrap());
    stream
        .read_exact(&mut vec![0; usize::try_from(len).unwrap()])
        .unwrap();
    header[6] & 0x80 != 0
}
