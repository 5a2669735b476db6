//! Transcripts: every message of the protocol as hex, written and read.

use bytes::BytesMut;

mod handshake;
mod session;
mod transmission;

/// The bytes of a transcript: hex digits, with white space wherever it helps to read them, and
/// text in single quotes.
fn hex(transcript: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, part) in transcript.split('\'').enumerate() {
        if at % 2 == 1 {
            bytes.extend(part.bytes());
            continue;
        }
        let digits: Vec<u32> = part
            .chars()
            .filter(|c| !c.is_whitespace())
            .map(|c| c.to_digit(16).expect("a transcript is made of hex digits"))
            .collect();
        assert_eq!(digits.len() % 2, 0, "{part:?} ends within a byte");
        let byte = |pair: &[u32]| u8::try_from(16 * pair[0] + pair[1]).expect("two digits");
        bytes.extend(digits.chunks(2).map(byte));
    }
    bytes
}

/// The bytes that `encode` writes.
fn written(encode: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&mut out);
    out.to_vec()
}
