//! Stores over HTTP, with credentials from the environment.

use super::address::{Address, Scheme};
use crate::outcome::{Context, Result};
use nbd_object::object_store::{
    ObjectStore, Result as StoreResult, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder,
};
use std::{sync::Arc, time::Duration};

impl Address {
    pub(super) fn cloud(&self) -> Result<Arc<dyn ObjectStore>> {
        provide_cryptography();
        self.client().step(|| format!("cannot use {}", self.disk()))
    }

    fn client(&self) -> StoreResult<Arc<dyn ObjectStore>> {
        Ok(match self.scheme {
            Scheme::Gcs => {
                let store = GoogleCloudStorageBuilder::from_env().with_retry(retry());
                Arc::new(store.with_bucket_name(&self.bucket).build()?)
            }
            Scheme::Azure => {
                let store = MicrosoftAzureBuilder::from_env().with_retry(retry());
                Arc::new(store.with_container_name(&self.bucket).build()?)
            }
            _ => {
                let store = AmazonS3Builder::from_env().with_retry(retry());
                Arc::new(store.with_bucket_name(&self.bucket).build()?)
            }
        })
    }
}

/// A few attempts, since nbd-object makes its own above these, and gives up sooner where no store has
/// answered yet.
fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 2,
        retry_timeout: Duration::from_secs(3),
        ..RetryConfig::default()
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
