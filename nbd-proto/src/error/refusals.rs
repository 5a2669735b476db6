//! A server's refusals of options and failures of commands.

use crate::{
    Text,
    wire::{Errno, OptionCode, OptionReplyCode},
};
use core::fmt;

/// A server refused an option; negotiation goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OptionError {
    /// The option.
    pub option: OptionCode,
    /// The kind of refusal, one of the `Err...` codes.
    pub code: OptionReplyCode,
    /// The server's text about it; may be empty.
    pub message: Text,
}

impl OptionError {
    /// A refusal.
    pub fn new(option: OptionCode, code: OptionReplyCode, message: impl Into<Text>) -> Self {
        Self {
            option,
            code,
            message: message.into(),
        }
    }

    /// Whether the server does not know the option, as older ones do not.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        self.code == OptionReplyCode::ErrUnsup
    }
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server refused {} with {}", self.option, self.code)?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl core::error::Error for OptionError {}

/// A server failed a command; the connection goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The error.
    pub errno: Errno,
    /// The server's text about it; may be empty.
    pub message: Text,
    /// Where it happened, in bytes from the start of the export, if the server said so.
    pub offset: Option<u64>,
}

impl Failure {
    /// A failure with nothing but its number.
    #[must_use]
    pub fn new(errno: Errno) -> Self {
        Self {
            errno,
            message: Text::default(),
            offset: None,
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::new(errno)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server failed the command with {}", self.errno)?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl core::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_failure_says_where_and_why() {
        let mut failure = Failure::new(Errno::Io);
        assert_eq!(
            failure.to_string(),
            "the server failed the command with NBD_EIO"
        );
        failure.offset = Some(4096);
        failure.message = "bad sector".into();
        assert_eq!(
            failure.to_string(),
            "the server failed the command with NBD_EIO at offset 4096: bad sector"
        );
    }

    #[test]
    fn an_option_that_is_not_known_is_not_one_that_is_forbidden() {
        for (code, unsupported) in [
            (OptionReplyCode::ErrUnsup, true),
            (OptionReplyCode::ErrPolicy, false),
        ] {
            let error = OptionError::new(OptionCode::List, code, "no");
            assert_eq!(error.is_unsupported(), unsupported);
        }
    }
}
