//! Changes that are kept apart from the disks.

use crate::{size::Size, text::printable};
use nbd_blocking::{
    exports::{Export, ExportName, File, Offer, Overlay, Unavailable},
    nbd_proto::server::Refusal,
};
use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The overlays of all disks.
#[derive(Debug)]
pub(super) struct Overlays {
    /// The directory of the files with the changes; `None` keeps these in memory.
    place: Option<PathBuf>,
    /// Limit of changes to each disk, in bytes.
    limit: u64,
    made: Mutex<BTreeMap<ExportName, Arc<Overlay>>>,
}

impl Overlays {
    pub(super) fn new(place: Option<PathBuf>, limit: u64) -> Self {
        Self {
            place,
            limit,
            made: Mutex::default(),
        }
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<ExportName, Arc<Overlay>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self, disk: Arc<dyn Export>) -> io::Result<Arc<Overlay>> {
        let Some(place) = &self.place else {
            return Ok(Arc::new(Overlay::in_memory(disk).with_limit(self.limit)));
        };
        // Without a name it is gone with this process, as the changes in it are.
        let file = tempfile::tempfile_in(place).map_err(|error| {
            let words = format!("cannot make a file in {}: {error}", place.display());
            io::Error::new(error.kind(), words)
        })?;
        file.set_len(disk.size())?;
        let layer = Arc::new(File::from_std(file)?);
        let overlay = Overlay::new(disk, layer).map_err(io::Error::other)?;
        Ok(Arc::new(overlay.with_limit(self.limit)))
    }

    /// Lays changes over a disk, for as long as this is there.
    pub(super) fn keep(
        &self,
        name: &ExportName,
        disk: Arc<dyn Export>,
    ) -> io::Result<Arc<dyn Export>> {
        let overlay = self.over(disk)?;
        self.made().insert(name.clone(), Arc::clone(&overlay));
        Ok(overlay)
    }

    /// Lays changes over a disk that is opened when it is asked for. It is kept while it is in use,
    /// or has changes.
    pub(super) fn find(
        &self,
        name: &ExportName,
        open: impl FnOnce() -> Result<Offer, Unavailable>,
    ) -> Result<Offer, Unavailable> {
        let mut made = self.made();
        if let Some(overlay) = made.get(name) {
            return Ok(Offer::new(Arc::clone(overlay) as Arc<dyn Export>));
        }
        let overlay = match open()?.export.into_sync() {
            Some(disk) => self.over(disk),
            None => Err(io::Error::other("an overlay needs a synchronous export")),
        };
        let overlay = overlay.map_err(|error| {
            let words = format!("changes cannot be laid over the export: {error}");
            Unavailable::new(Refusal::Policy, words)
        })?;
        // A client that looks at all disks leaves none of them open.
        made.retain(|_, overlay| Arc::strong_count(overlay) > 1 || overlay.changed() > 0);
        made.insert(name.clone(), Arc::clone(&overlay));
        Ok(Offer::new(overlay as Arc<dyn Export>))
    }

    /// Writes all changes to the disks, and reports them. Clients wait meanwhile. Returns whether
    /// everything is there.
    pub(super) fn commit(&self) -> bool {
        // Without the lock, so that clients of other disks do not wait, too.
        let overlays: Vec<_> = {
            let made = self.made();
            let pairs = made.iter();
            pairs
                .map(|(name, overlay)| (name.clone(), Arc::clone(overlay)))
                .collect()
        };
        let mut all = true;
        for (name, overlay) in overlays {
            match overlay.commit() {
                Ok(0) => {}
                Ok(bytes) => {
                    tracing::info!("committed {} to \"{}\"", Size(bytes), printable(&name))
                }
                Err(failure) => {
                    let name = printable(&name);
                    tracing::error!("cannot commit the changes of \"{name}\": {failure}");
                    all = false;
                }
            }
        }
        all
    }
}
