//! Failures of disks on object storage, in one line: the step, the disk, the cause and a remedy.

use super::address::{Address, Scheme};
use crate::outcome::Error;
use nbd_object::{Error as DiskError, object_store::Error as StoreError};
use std::error::Error as StdError;

impl Address {
    /// An error of a step with this disk.
    pub(crate) fn failed(&self, step: &str, error: DiskError) -> Error {
        let store = self.store();
        let (cause, remedy) = match &error {
            DiskError::NotFound(what) if what.starts_with("disk") => return self.disk().missing(),
            DiskError::NotFound(_) => return self.missing(),
            DiskError::Store { source, .. } => self.explained(source, &error),
            DiskError::NoAnswer { time, .. } => (
                format!("{store} has not answered for {time:?}"),
                self.origin(),
            ),
            DiskError::AlreadyExists(_) => (
                "it is there already".into(),
                Some(format!("`nbd object delete {self}` deletes it")),
            ),
            DiskError::IgnoresConditions(how) => (
                format!("{store} ignores conditions of writes: {how}"),
                Some(
                    "two servers would destroy a disk there, so that it takes another store".into(),
                ),
            ),
            other => (other.to_string(), None),
        };
        self.line(step, &cause, remedy.as_deref())
    }

    fn line(&self, step: &str, cause: &str, remedy: Option<&str>) -> Error {
        Error::new(match remedy {
            Some(remedy) => format!("{step} {self}: {cause}; {remedy}"),
            None => format!("{step} {self}: {cause}"),
        })
    }

    /// There is no disk, or no snapshot.
    pub(super) fn missing(&self) -> Error {
        let disk = self.disk();
        Error::new(match self.snapshot() {
            Some(_) => format!("there is no snapshot {self}: `nbd object list {disk}` lists them"),
            None => {
                format!("there is no disk at {disk}: `nbd object create {disk} SIZE` makes one")
            }
        })
    }

    /// The disk cannot be used, whatever is to be done with it.
    pub(super) fn unusable(&self, cause: &str, remedy: Option<&str>) -> Error {
        self.disk().line("cannot use", cause, remedy)
    }

    /// The cause and a remedy of an error of the store, which `error` wraps.
    fn explained(&self, source: &StoreError, error: &DiskError) -> (String, Option<String>) {
        let (root, store) = (root(source), self.store());
        let credentials = || Some(format!("credentials are taken from {}", self.variables()));
        let text = source.to_string();
        match source {
            StoreError::NotFound { .. } if is_about_bucket(&text) => (
                format!("{store} has no bucket or container \"{}\"", self.bucket),
                Some("it has to be made first, by the programs of the store".into()),
            ),
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => (
                format!("{store} refuses the credentials: {root}"),
                credentials(),
            ),
            // Where there are no credentials, those of the machine are asked for.
            _ if text.contains("169.254.169.254") => {
                ("there are no credentials".into(), credentials())
            }
            StoreError::Generic { .. } if text.contains("HTTP error") => {
                (format!("{store} cannot be reached: {root}"), self.origin())
            }
            StoreError::Generic { .. } if text.contains(STATUS) => {
                (format!("{store} answers {root}"), None)
            }
            _ => (error.to_string(), None),
        }
    }

    /// The variable that has the address of the store.
    fn origin(&self) -> Option<String> {
        let variable = match self.scheme {
            Scheme::S3 => "AWS_ENDPOINT",
            Scheme::Azure => "AZURE_STORAGE_ENDPOINT",
            Scheme::Gcs | Scheme::Directory | Scheme::Memory => return None,
        };
        Some(format!("the address of the store is taken from {variable}"))
    }

    /// The name of the store.
    fn store(&self) -> String {
        self.endpoint().unwrap_or_else(|| match self.scheme {
            Scheme::S3 => "Amazon S3".into(),
            Scheme::Gcs => "Google Cloud Storage".into(),
            Scheme::Azure => "Azure".into(),
            Scheme::Directory | Scheme::Memory => "the store".into(),
        })
    }

    pub(super) const fn variables(&self) -> &'static str {
        match self.scheme {
            Scheme::S3 => {
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and others that begin with AWS_"
            }
            Scheme::Gcs => "GOOGLE_APPLICATION_CREDENTIALS and others that begin with GOOGLE_",
            Scheme::Azure => "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY and others",
            Scheme::Directory | Scheme::Memory => "the file system",
        }
    }
}

fn is_about_bucket(text: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound"]
        .iter()
        .any(|code| text.contains(code))
}

/// The beginning of a status in the errors of `object_store`.
const STATUS: &str = "status code: ";

/// The first cause of an error: a status with the code of the store, where the store answered.
fn root(error: &StoreError) -> String {
    let mut last: &dyn StdError = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let text = last.to_string();
    let text = text
        .rsplit_once(STATUS)
        .map_or(&text[..], |(_, status)| status);
    let (status, body) = text.split_once(": <").unwrap_or((text, ""));
    let code = body
        .split_once("Code>")
        .and_then(|(_, rest)| rest.split_once('<'));
    match code {
        Some((code, _)) => format!("{status}, {code}"),
        None => status.trim_end_matches(": ").to_owned(),
    }
}
