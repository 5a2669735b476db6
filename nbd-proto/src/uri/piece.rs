//! Pieces of a URI's raw text that know where they stand.

use alloc::{string::String, vec::Vec};

use super::{Part, UriError, ValueError};

/// Raw text, not yet percent-decoded.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    /// Number of bytes of the URI before it.
    pub(super) at: usize,
}

impl<'a> Piece<'a> {
    /// The part before the first `delimiter`, and the part behind it if there is one.
    pub(super) fn split(self, delimiter: char) -> (Self, Option<Self>) {
        match self.text.split_once(delimiter) {
            None => (self, None),
            Some((before, after)) => {
                let at = self.at + before.len() + delimiter.len_utf8();
                (
                    Self {
                        text: before,
                        ..self
                    },
                    Some(Self { text: after, at }),
                )
            }
        }
    }

    pub(super) fn strip_prefix(self, prefix: &str) -> Option<Self> {
        let text = self.text.strip_prefix(prefix)?;
        Some(Self {
            text,
            at: self.at + prefix.len(),
        })
    }

    /// The bytes that this stands for, if all that is not percent-encoded is `literal`.
    pub(super) fn decode(
        self,
        part: Part,
        literal: impl Fn(u8) -> bool,
    ) -> Result<Vec<u8>, UriError> {
        let mut decoded = Vec::with_capacity(self.text.len());
        let mut chars = self.text.char_indices();
        while let Some((offset, got)) = chars.next() {
            let at = self.at + offset;
            if got == '%' {
                let mut digit = || chars.next().and_then(|(_, c)| hex_digit(c));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(UriError::Escape { at });
                };
                decoded.push(high << 4 | low);
            } else {
                let byte = u8::try_from(got)
                    .ok()
                    .filter(|b| b.is_ascii() && literal(*b));
                decoded.push(byte.ok_or(UriError::Character { part, got, at })?);
            }
        }
        Ok(decoded)
    }

    /// The text that this stands for, if all that is not percent-encoded is `literal`.
    pub(super) fn decode_text(
        self,
        part: Part,
        literal: impl Fn(u8) -> bool,
    ) -> Result<String, UriError> {
        String::from_utf8(self.decode(part, literal)?).map_err(|e| {
            self.wrong(
                part,
                ValueError::NotUtf8 {
                    offset: e.utf8_error().valid_up_to(),
                },
            )
        })
    }

    pub(super) fn wrong(self, part: Part, reason: ValueError) -> UriError {
        UriError::Value {
            part,
            at: self.at,
            reason,
        }
    }
}

fn hex_digit(c: char) -> Option<u8> {
    c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// RFC 3986, section 2.3.
pub(super) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Characters that RFC 3986, section 3.2, allows in a host's name, and in a user's up to the colon.
pub(super) fn is_reg_name(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=".contains(&byte)
}

/// RFC 3986, section 3.3.
pub(super) fn is_pchar(byte: u8) -> bool {
    is_reg_name(byte) || b":@".contains(&byte)
}

/// RFC 3986, section 3.4.
pub(super) fn is_query(byte: u8) -> bool {
    is_pchar(byte) || b"/?".contains(&byte)
}
