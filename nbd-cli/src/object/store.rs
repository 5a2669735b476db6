//! Opening the store of an address.

use super::address::{Address, Scheme};
use crate::outcome::Result;
use nbd_object::{
    Directory, Disk, Layout, Location, Options,
    object_store::{ObjectStore, memory::InMemory, path::Path},
};
use nbd_tokio::Tokio;
use std::{fs, sync::Arc};

/// The intended use of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It has to be there.
    Use,
    /// It may be made.
    Create,
}

impl Address {
    /// The place in the store. Nothing is asked of a store yet.
    pub(crate) fn location(&self, purpose: Purpose) -> Result<Location> {
        let runtime = Tokio::current();
        let (store, prefix): (Arc<dyn ObjectStore>, _) = match self.scheme {
            Scheme::Directory => {
                if purpose == Purpose::Use && fs::metadata(&self.prefix).is_err() {
                    return Err(self.missing());
                }
                let directory = Directory::open(&self.prefix).map_err(|error| {
                    let is_file = fs::metadata(&self.prefix).is_ok_and(|found| found.is_file());
                    let cause = match is_file {
                        true => "it is a file, and no directory".into(),
                        false => error.to_string(),
                    };
                    self.unusable(&cause, None)
                })?;
                (Arc::new(directory), Path::default())
            }
            Scheme::Memory => (Arc::new(InMemory::new()), self.path()?),
            Scheme::S3 | Scheme::Gcs | Scheme::Azure => (self.cloud()?, self.path()?),
        };
        Ok(Location::new(store, prefix, runtime))
    }

    fn path(&self) -> Result<Path> {
        Path::parse(&self.prefix).map_err(|error| self.unusable(&error.to_string(), None))
    }

    /// Makes a disk, all of which is zero.
    pub(crate) async fn create(&self, size: u64, layout: Layout) -> Result<()> {
        let created = self.location(Purpose::Create)?.create(size, layout).await;
        created.map_err(|error| self.failed("cannot create", error))
    }

    /// Opens the disk for reading and writing.
    pub(crate) async fn open(&self, options: Options) -> Result<Disk> {
        let opened = self.location(Purpose::Use)?.open(options).await;
        opened.map_err(|error| self.failed("cannot open", error))
    }

    /// Opens the disk or the snapshot that it names. Makes the disk if it is not there and `size` is
    /// given.
    pub(crate) async fn open_or_create(
        &self,
        size: Option<u64>,
        read_only: bool,
        options: Options,
    ) -> Result<(Location, Disk)> {
        let purpose = size.map_or(Purpose::Use, |_| Purpose::Create);
        let location = self.location(purpose)?;
        if let Some(size) = size {
            let there = match location.info(None).await {
                Err(nbd_object::Error::NotFound(_)) => {
                    location.create(size, Layout::default()).await
                }
                there => there.map(drop),
            };
            match there {
                // Another program may have been faster.
                Ok(()) | Err(nbd_object::Error::AlreadyExists(_)) => {}
                Err(error) => return Err(self.failed("cannot create", error)),
            }
        }
        let opened = if read_only || self.snapshot().is_some() {
            location.open_read_only(self.snapshot(), options).await
        } else {
            location.open(options).await
        };
        let disk = opened.map_err(|error| self.failed("cannot open", error))?;
        Ok((location, disk))
    }
}
