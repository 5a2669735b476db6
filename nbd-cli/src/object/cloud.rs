//! Stores over HTTP, with credentials from the environment.

use super::address::{Address, Scheme};
use crate::outcome::{Context, Result};
use nbd_object::object_store::{
    ObjectStore, Result as StoreResult, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder,
};
use std::sync::Arc;

impl Address {
    pub(super) fn cloud(&self) -> Result<Arc<dyn ObjectStore>> {
        provide_cryptography();
        self.client().step(|| format!("cannot use {}", self.disk()))
    }

    fn client(&self) -> StoreResult<Arc<dyn ObjectStore>> {
        Ok(match self.scheme {
            Scheme::Gcs => {
                let store = GoogleCloudStorageBuilder::from_env();
                Arc::new(store.with_bucket_name(&self.bucket).build()?)
            }
            Scheme::Azure => {
                let store = MicrosoftAzureBuilder::from_env();
                Arc::new(store.with_container_name(&self.bucket).build()?)
            }
            _ => {
                let store = AmazonS3Builder::from_env();
                Arc::new(store.with_bucket_name(&self.bucket).build()?)
            }
        })
    }
}

/// Chooses the cryptography of connections to stores, which is that of NBD over TLS. A choice that was
/// made before is the same.
fn provide_cryptography() {
    #[cfg(feature = "tls-ring")]
    let _ = rustls::crypto::ring::default_provider().install_default();
    #[cfg(all(feature = "tls", not(feature = "tls-ring")))]
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
