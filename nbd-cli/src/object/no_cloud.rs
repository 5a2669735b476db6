//! A build without stores over HTTP.

use super::address::Address;
use crate::outcome::{Error, Result};
use nbd_object::object_store::ObjectStore;
use std::sync::Arc;

impl Address {
    pub(super) fn cloud(&self) -> Result<Arc<dyn ObjectStore>> {
        Err(Error::new(format!(
            "cannot use {}: this build of nbd has no S3, GCS and Azure; `cargo install --path \
             nbd-cli --features cloud` makes one that has",
            self.disk()
        )))
    }

    /// The address of the store, where the environment names one.
    pub(super) const fn endpoint(&self) -> Option<String> {
        None
    }
}
