//! The object of a command: an export of a server, a file, or standard input or output.

use nbd_tokio::{
    Uri,
    nbd_proto::uri::{Permissions, UriError},
};
use std::{fmt, path::PathBuf, str::FromStr};

/// The object that an argument names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// An export of a server.
    Server(Uri),
    /// A file or a block device of this machine.
    Path(PathBuf),
    /// `-`: standard input or standard output.
    Stdio,
}

impl FromStr for Target {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        if text == "-" {
            return Ok(Self::Stdio);
        }
        if text.contains("://") {
            // The user has typed it, or a script of theirs has.
            return Uri::parse_with(text, Permissions::default().local_files()).map(Self::Server);
        }
        if text.starts_with("nbd:") {
            return Uri::parse_qemu(text).map(Self::Server);
        }
        Ok(Self::Path(text.into()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(uri) => uri.redacted().fmt(f),
            Self::Path(path) => path.display().fmt(f),
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
        assert!("http://h".parse::<Target>().is_err());
        assert!("nbd://h/?x=1".parse::<Target>().is_err());
    }
}
