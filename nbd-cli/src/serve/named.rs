//! `[NAME=]WHAT`: a disk, and perhaps the name under which it is served.

use nbd_tokio::ExportName;
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

/// Something to serve, with the name for it if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named<T> {
    pub(super) name: Option<ExportName>,
    pub(super) what: T,
}

impl Named<OsString> {
    /// A path, which keeps its own `=` if there is a slash before.
    pub(super) fn path(text: &OsStr) -> Result<Self, String> {
        let what = |what: &OsStr| {
            if what.is_empty() {
                return Err("expected a path or a URI; is a variable unset?".to_owned());
            }
            Ok(what.to_owned())
        };
        let bytes = text.as_bytes();
        let equals = bytes.iter().position(|byte| *byte == b'=');
        let Some(at) = equals.filter(|at| !bytes[..*at].contains(&b'/')) else {
            return Ok(Self {
                name: None,
                what: what(text)?,
            });
        };
        let name = std::str::from_utf8(&bytes[..at])
            .map_err(|_| "expected the name of an export in UTF-8".to_owned())?;
        Ok(Self {
            name: Some(export_name(name)?),
            what: what(OsStr::from_bytes(&bytes[at + 1..]))?,
        })
    }
}

impl Named<u64> {
    /// A number of bytes.
    pub(super) fn size(text: &str) -> Result<Self, String> {
        let (name, size) = match text.split_once('=') {
            Some((name, size)) => (Some(export_name(name)?), size),
            None => (None, text),
        };
        Ok(Self {
            name,
            what: crate::size::parse(size)?,
        })
    }
}

/// The name of an export.
pub(super) fn export_name(text: &str) -> Result<ExportName, String> {
    ExportName::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_before_the_first_equals_sign_is_a_name() {
        let named = |text: &str| {
            let Named { name, what } = Named::path(OsStr::new(text)).unwrap();
            (
                name.map(|name| name.to_string()),
                what.into_string().unwrap(),
            )
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(named("disk.img"), (None, "disk.img".into()));
        assert_eq!(named("a=disk.img"), (name("a"), "disk.img".into()));
        assert_eq!(named("=b=c"), (name(""), "b=c".into()));
        assert_eq!(named("./a=b"), (None, "./a=b".into()));
        assert!(Named::path(OsStr::from_bytes(b"\xff=a")).is_err());
        let sized = Named::size("scratch=1K").unwrap();
        assert_eq!(
            (sized.name, sized.what),
            (Some(export_name("scratch").unwrap()), 1024)
        );
        assert_eq!(Named::size("2M").unwrap().what, 2 << 20);
        assert!(Named::size("a=b").is_err());
    }
}
