//! The object of a command: an export of a server, a file, a disk on object storage, or standard input
//! or output.

use crate::object::Address;
use nbd_tokio::{Uri, nbd_proto::uri::Permissions};
use std::{fmt, path::PathBuf, str::FromStr};

/// The object that an argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An export of a server.
    Server(Uri),
    /// A file or a block device of this machine.
    Path(PathBuf),
    /// A disk on object storage, or a snapshot of one.
    Object(Address),
    /// `-`: standard input or standard output.
    Stdio,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err(
                "expected a URI, a file or a block device; is a variable unset?".to_owned(),
            );
        }
        if text == "-" {
            return Ok(Self::Stdio);
        }
        if Address::is_meant_by(text) {
            return text.parse().map(Self::Object);
        }
        if text.contains("://") {
            // The user has typed it, or a script of theirs has.
            let uri = Uri::parse_with(text, Permissions::default().local_files());
            return uri.map(Self::Server).map_err(|error| error.to_string());
        }
        if text.starts_with("nbd:") {
            let uri = Uri::parse_qemu(text);
            return uri.map(Self::Server).map_err(|error| error.to_string());
        }
        Ok(Self::Path(text.into()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(uri) => uri.redacted().fmt(f),
            Self::Path(path) => path.display().fmt(f),
            Self::Object(address) => address.fmt(f),
            Self::Stdio => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn uris_of_both_kinds_and_paths_are_distinguished() {
        let uri = |text: &str| Target::Server(text.parse().unwrap());
        assert_eq!(target("nbd://h:1/e"), uri("nbd://h:1/e"));
        assert_eq!(target("nbd:h:1:exportname=e"), uri("nbd://h:1/e"));
        assert_eq!(target("disk.img"), Target::Path("disk.img".into()));
        assert_eq!(target("./nbd:1"), Target::Path("./nbd:1".into()));
        assert_eq!(target("-"), Target::Stdio);
        let object = |text: &str| Target::Object(text.parse().unwrap());
        assert_eq!(target("s3://b/disk@s"), object("s3://b/disk@s"));
        assert_eq!(target("file:///disk"), object("file:///disk"));
        assert!("".parse::<Target>().is_err());
        assert!("http://h".parse::<Target>().is_err());
        assert!("nbd://h/?x=1".parse::<Target>().is_err());
    }
}
