mod basics;
mod collecting;
#[cfg(feature = "zstd")]
mod compressed;
mod concurrent;
mod cost;
mod damage;
mod directory;
mod fencing;
mod hostile;
mod large;
mod power;
mod reading;
mod sim;

use crate::{Disk, Error, Location};
use object_store::{ObjectStore, memory::InMemory};
use sim::{Faults, Faulty, Sim};
use std::sync::Arc;

/// A disk in a store with faults, in one thread.
fn place(sim: &Sim, store: impl ObjectStore) -> Location {
    Location::new(Arc::new(store), "disk", sim.clone())
}

fn memory(sim: &Sim) -> (Faulty, Location) {
    let store = Faulty::new(Arc::new(InMemory::new()), sim, 1, Faults::default());
    (store.clone(), place(sim, store))
}

async fn read(disk: &Disk, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(len).unwrap();
    let now = disk.read_now(offset, len);
    let data = match now {
        Some(now) => {
            let now = now?;
            assert_eq!(disk.read(offset, len).await?, now);
            now
        }
        None => disk.read(offset, len).await?,
    };
    let mut bytes = vec![1; len];
    data.copy_to_slice(&mut bytes);
    Ok(bytes)
}
