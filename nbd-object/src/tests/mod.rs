mod basics;
mod collecting;
mod damage;
mod fencing;
mod large;
mod power;
mod sim;

use crate::{Chunk, Disk, Error, Location};
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
    let mut bytes = Vec::new();
    for chunk in disk.read(offset, len).await? {
        match chunk {
            Chunk::Data(data) => bytes.extend_from_slice(&data),
            Chunk::Zeroes(len) => bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0),
        }
    }
    assert_eq!(bytes.len() as u64, len);
    Ok(bytes)
}
