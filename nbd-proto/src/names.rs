//! Strings that cross the wire, parsed once into types that cannot be wrong.
//!
//! Spec: [Values]. Every NBD string is UTF-8 without NUL, is not terminated, and is at most
//! 4096 bytes long.
//!
//! [Values]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#values

use alloc::{borrow::ToOwned, format, string::String};
use core::{fmt, str};

/// The longest string that the protocol allows, in bytes.
pub const MAX_STRING: usize = 4096;

/// Length in characters to which a peer's text is cut in this library's own messages.
const MAX_QUOTED: usize = 80;

/// Reasons for which bytes are not a legal NBD string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// More than [`MAX_STRING`] bytes.
    #[error("a string may have at most {MAX_STRING} bytes, this one has {len}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A NUL byte inside the string.
    #[error("a string must not contain NUL, this one does at byte {at}")]
    Nul {
        /// Position of the first one in bytes.
        at: usize,
    },
    /// Not UTF-8.
    #[error("a string must be UTF-8, this one is not from byte {at} on")]
    NotUtf8 {
        /// Position of the first wrong byte.
        at: usize,
    },
    /// A meta context name without the form `namespace:leaf`.
    #[error(
        "a meta context is named `namespace:leaf`, with a namespace of printable characters \
         other than space and colon"
    )]
    NotAContext,
}

fn check(bytes: &[u8]) -> Result<&str, NameError> {
    if bytes.len() > MAX_STRING {
        return Err(NameError::TooLong { len: bytes.len() });
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(NameError::Nul { at });
    }
    str::from_utf8(bytes).map_err(|e| NameError::NotUtf8 {
        at: e.valid_up_to(),
    })
}

/// The name of an export: free text, the empty name being the server's default export.
///
/// A name is opaque. It is never a path and never parsed; use [`fmt::Display`] to show it, which
/// escapes characters that could disturb a terminal or a log.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExportName(String);

impl ExportName {
    /// Checks that `name` may be sent.
    ///
    /// # Errors
    ///
    /// When it is longer than [`MAX_STRING`] bytes or contains NUL.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        check(name.as_bytes())?;
        Ok(Self(name))
    }

    /// The name as it is on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the default export's name.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<&[u8]> for ExportName {
    type Error = NameError;

    fn try_from(bytes: &[u8]) -> Result<Self, NameError> {
        check(bytes).map(|name| Self(name.to_owned()))
    }
}

impl TryFrom<&str> for ExportName {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl str::FromStr for ExportName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(&self.0, usize::MAX, f)
    }
}

impl fmt::Debug for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The name of a meta context, `namespace:leaf`, or a query for some of them.
///
/// Spec: [Metadata querying]. A query with an empty leaf, such as `base:`, is a wildcard when
/// contexts are listed and selects nothing when they are set.
///
/// [Metadata querying]: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#metadata-querying
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextName(String);

impl ContextName {
    /// Checks that `name` is a legal context name or query.
    ///
    /// # Errors
    ///
    /// When it is not a legal string, or is not of the form `namespace:leaf` with a namespace of
    /// printable characters other than space and colon.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        check(name.as_bytes())?;
        let legal = name.split_once(':').is_some_and(|(namespace, _)| {
            !namespace.is_empty()
                && !namespace
                    .chars()
                    .any(|c| c.is_whitespace() || c.is_control())
        });
        if legal {
            Ok(Self(name))
        } else {
            Err(NameError::NotAContext)
        }
    }

    /// `base:allocation`, the context that distinguishes holes, zeroes and data.
    #[must_use]
    pub fn base_allocation() -> Self {
        Self("base:allocation".to_owned())
    }

    /// `qemu:dirty-bitmap:NAME`, the context of QEMU's that marks bytes written since the bitmap
    /// was started; see [`DirtyBitmap`](crate::meta::DirtyBitmap).
    ///
    /// ```
    /// use nbd_proto::ContextName;
    ///
    /// let backup = ContextName::dirty_bitmap("backup-0")?;
    /// assert_eq!(backup.as_str(), "qemu:dirty-bitmap:backup-0");
    /// # Ok::<(), nbd_proto::NameError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the name has a NUL or is too long.
    pub fn dirty_bitmap(name: &str) -> Result<Self, NameError> {
        Self::new(format!("qemu:dirty-bitmap:{name}"))
    }

    /// `qemu:allocation-depth`, the context of QEMU's that gives the layer of an image in which
    /// data is; see [`AllocationDepth`](crate::meta::AllocationDepth).
    #[must_use]
    pub fn allocation_depth() -> Self {
        Self("qemu:allocation-depth".to_owned())
    }

    /// The name as it is on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the colon.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0
            .split_once(':')
            .map_or("", |(namespace, _)| namespace)
    }

    /// The part after the first colon; empty in a wildcard query.
    #[must_use]
    pub fn leaf(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, leaf)| leaf)
    }
}

impl TryFrom<&[u8]> for ContextName {
    type Error = NameError;

    fn try_from(bytes: &[u8]) -> Result<Self, NameError> {
        Self::new(check(bytes)?)
    }
}

impl TryFrom<&str> for ContextName {
    type Error = NameError;

    fn try_from(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl str::FromStr for ContextName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(&self.0, usize::MAX, f)
    }
}

impl fmt::Debug for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Text that a peer sent for people to read: a description or an error message.
///
/// It is never parsed. [`fmt::Display`] escapes control characters and the invisible characters
/// that reorder text, so that it is safe to show; [`Text::as_str`] is the text as it came, with
/// invalid UTF-8 replaced.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Text(String);

impl Text {
    /// Takes a peer's text, with invalid UTF-8 replaced.
    #[must_use]
    pub fn from_lossy(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into_owned())
    }

    /// The text as it came.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(&self.0, usize::MAX, f)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A short, escaped quotation of a peer's string for use in a message of our own.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(self.0, MAX_QUOTED, f)
    }
}

fn escape(text: &str, max: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (at, c) in text.chars().enumerate() {
        if at == max {
            return f.write_str("...");
        }
        if c.is_control() || reorders_text(c) {
            write!(f, "{}", c.escape_unicode())?;
        } else {
            fmt::Write::write_char(f, c)?;
        }
    }
    Ok(())
}

/// Bidirectional controls and line separators: invisible, and able to misrepresent the text around
/// them.
fn reorders_text(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::ToString};

    #[test]
    fn a_name_of_4096_bytes_is_sent_and_one_of_4097_is_not() {
        // C-001, C-002, B-001
        assert!(ExportName::new("x".repeat(257)).is_ok());
        assert!(ExportName::new("x".repeat(4096)).is_ok());
        assert_eq!(
            ExportName::new("x".repeat(4097)),
            Err(NameError::TooLong { len: 4097 })
        );
        assert_eq!(ExportName::new("a\0b"), Err(NameError::Nul { at: 1 }));
        assert_eq!(
            ExportName::try_from(&b"a\xff"[..]),
            Err(NameError::NotUtf8 { at: 1 })
        );
    }

    #[test]
    fn a_context_has_a_namespace_and_a_leaf() {
        // C-151
        for bad in ["alloc", ":x", "b b:x", "a\u{7}:x", ""] {
            assert_eq!(
                ContextName::new(bad),
                Err(NameError::NotAContext),
                "{bad:?}"
            );
        }
        let name = ContextName::new("qemu:dirty-bitmap:a:b").unwrap();
        assert_eq!(
            (name.namespace(), name.leaf()),
            ("qemu", "dirty-bitmap:a:b")
        );
        assert_eq!(ContextName::new("base:").unwrap().leaf(), "");
        assert_eq!(ContextName::dirty_bitmap("a:b"), Ok(name));
        assert!(ContextName::dirty_bitmap("a\0b").is_err());
        let known = [
            ContextName::base_allocation(),
            ContextName::allocation_depth(),
        ];
        for known in known {
            assert_eq!(ContextName::new(known.as_str()), Ok(known));
        }
    }

    #[test]
    fn a_peers_text_cannot_drive_a_terminal() {
        // C-031, H-008
        let text = Text::from_lossy(b"no\x1b[2J \xff\xe2\x80\xae");
        assert_eq!(text.to_string(), "no\\u{1b}[2J \u{fffd}\\u{202e}");
        assert_eq!(format!("{}", ExportName::new("a\nb").unwrap()), "a\\u{a}b");
    }

    #[test]
    fn a_quotation_is_cut_at_80_characters() {
        // B-019
        assert_eq!(
            Quoted(&"x".repeat(100)).to_string(),
            format!("{}...", "x".repeat(80))
        );
    }

    #[test]
    fn names_are_made_of_strings_and_shown() {
        for name in ["", "disk\n"] {
            for made in [
                ExportName::new(name).unwrap(),
                ExportName::try_from(name).unwrap(),
                name.parse().unwrap(),
            ] {
                assert_eq!(made.as_str(), name);
                assert_eq!(made.is_default(), name.is_empty());
                assert_eq!(format!("{made:?}"), format!("{name:?}"));
            }
            let text = Text::from(name);
            assert_eq!(format!("{text:?}"), format!("{name:?}"));
        }
        let context = ContextName::new("a:\tb").unwrap();
        assert_eq!(format!("{context}"), "a:\\u{9}b");
        assert_eq!(format!("{context:?}"), "\"a:\\tb\"");
    }
}
