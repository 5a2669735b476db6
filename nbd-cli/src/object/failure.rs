//! Failures of disks on object storage, with the step, the address and a remedy.

use super::address::{Address, Scheme};
use crate::outcome::Error;
use nbd_object::object_store;

impl Address {
    /// An error of a step with this disk.
    pub(crate) fn failed(&self, step: &str, error: nbd_object::Error) -> Error {
        if matches!(error, nbd_object::Error::NotFound(_)) {
            return self.missing();
        }
        let remedy = self.remedy(&error);
        Error::Step {
            what: format!("{step} {self}{remedy}"),
            source: error.into(),
        }
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

    /// A remedy for an error, behind a colon or a semicolon; nothing if there is none.
    fn remedy(&self, error: &nbd_object::Error) -> String {
        use object_store::Error::{PermissionDenied, Unauthenticated};
        match error {
            nbd_object::Error::Store { source, .. }
                if matches!(**source, PermissionDenied { .. } | Unauthenticated { .. }) =>
            {
                format!("; credentials are taken from {}", self.variables())
            }
            nbd_object::Error::AlreadyExists(_) if self.snapshot().is_none() => {
                "; `nbd object delete` deletes a disk".into()
            }
            _ => String::new(),
        }
    }

    const fn variables(&self) -> &'static str {
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
