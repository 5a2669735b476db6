//! The address of a disk on an object store.

use std::{fmt, str::FromStr};

/// Kinds of stores, with the beginnings of their URIs.
const SCHEMES: [(&str, Scheme); 5] = [
    ("s3://", Scheme::S3),
    ("gs://", Scheme::Gcs),
    ("az://", Scheme::Azure),
    ("file://", Scheme::Directory),
    ("memory:", Scheme::Memory),
];

/// The kind of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    S3,
    Gcs,
    Azure,
    Directory,
    Memory,
}

/// The URI of a disk, or of one of its snapshots: `s3://BUCKET/PREFIX@SNAPSHOT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(super) scheme: Scheme,
    /// The bucket, or the container.
    pub(super) bucket: String,
    /// The prefix of all objects of the disk in the bucket, or the path of the directory.
    pub(super) prefix: String,
    pub(super) snapshot: Option<String>,
}

impl Address {
    /// Whether a text is meant as one, and not as that of a server or a file.
    pub(crate) fn is_meant_by(text: &str) -> bool {
        SCHEMES.iter().any(|(begin, _)| text.starts_with(begin))
    }

    /// The last part of its path.
    fn name(&self) -> &str {
        let path = self.prefix.trim_end_matches('/');
        let last = path.rsplit('/').next().unwrap_or_default();
        if last.is_empty() { &self.bucket } else { last }
    }

    /// The name of its export, unless another one was given.
    pub(crate) fn export_name(&self) -> String {
        match &self.snapshot {
            Some(snapshot) => format!("{}@{snapshot}", self.name()),
            None => self.name().to_owned(),
        }
    }

    /// The name of the snapshot that it names.
    pub(crate) fn snapshot(&self) -> Option<&str> {
        self.snapshot.as_deref()
    }

    /// The disk itself, if this is the address of a snapshot.
    pub(crate) fn disk(&self) -> Self {
        Self {
            snapshot: None,
            ..self.clone()
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = SCHEMES
            .iter()
            .find_map(|(begin, scheme)| Some((*scheme, text.strip_prefix(begin)?)));
        let (scheme, place) = found.ok_or(
            "expected the URI of a disk on a store: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, \
             az://CONTAINER/PREFIX, file:///DIRECTORY or memory:",
        )?;
        // Names of snapshots have no slash.
        let (place, snapshot) = match place.rsplit_once('@') {
            Some((place, name)) if !name.contains('/') => (place, Some(name.to_owned())),
            _ => (place, None),
        };
        if snapshot.as_deref() == Some("") {
            return Err("expected the name of a snapshot behind \"@\"".into());
        }
        let (bucket, prefix) = match scheme {
            Scheme::Directory if !place.starts_with('/') => {
                return Err("expected the absolute path of a directory: file:///DIRECTORY".into());
            }
            Scheme::Directory | Scheme::Memory => ("", place),
            _ => place.split_once('/').unwrap_or((place, "")),
        };
        if bucket.is_empty() && !matches!(scheme, Scheme::Directory | Scheme::Memory) {
            return Err("expected the name of a bucket or container before the path".into());
        }
        // Others make no URI of a request, for which `object_store` ends the program.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:$".contains(&byte);
        if !bucket.bytes().all(plain) {
            return Err(format!(
                "expected the name of a bucket or container, of letters, digits and -_.:$, got {bucket:?}"
            ));
        }
        let prefix = if scheme == Scheme::Directory {
            place
        } else {
            prefix.trim_end_matches('/')
        };
        Ok(Self {
            scheme,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            snapshot,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begin = SCHEMES.iter().find(|(_, scheme)| *scheme == self.scheme);
        f.write_str(begin.map_or("", |(begin, _)| begin))?;
        f.write_str(&self.bucket)?;
        if !self.bucket.is_empty() && !self.prefix.is_empty() {
            f.write_str("/")?;
        }
        f.write_str(&self.prefix)?;
        match &self.snapshot {
            Some(name) => write!(f, "@{name}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_bucket_a_prefix_and_perhaps_a_snapshot() {
        let parts = |text: &str| {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            let name = address.name().to_owned();
            (address.bucket, address.prefix, address.snapshot, name)
        };
        let expected = |bucket: &str, prefix: &str, snapshot: Option<&str>, name: &str| {
            let snapshot = snapshot.map(str::to_owned);
            (
                bucket.to_owned(),
                prefix.to_owned(),
                snapshot,
                name.to_owned(),
            )
        };
        assert_eq!(
            parts("s3://b/p/disk"),
            expected("b", "p/disk", None, "disk")
        );
        assert_eq!(parts("gs://b"), expected("b", "", None, "b"));
        assert_eq!(parts("az://c/d@s"), expected("c", "d", Some("s"), "d"));
        assert_eq!(parts("file:///d/e"), expected("", "/d/e", None, "e"));
        assert_eq!(parts("file:///a@b/e"), expected("", "/a@b/e", None, "e"));
        assert_eq!(parts("memory:"), expected("", "", None, ""));
        assert_eq!(parts("memory:x@y"), expected("", "x", Some("y"), "x"));
    }

    #[test]
    fn other_texts_are_refused() {
        for wrong in [
            "s3://",
            "s3:///p",
            "file://p",
            "s3://b/p@",
            "s3://a b/p",
            "nbd://h",
            "disk",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        assert!(Address::is_meant_by("s3://b") && Address::is_meant_by("memory:"));
        assert!(!Address::is_meant_by("nbd://b") && !Address::is_meant_by("./memory:"));
    }
}
