//! Stores over HTTP, with credentials from the environment.

use super::address::{Address, Scheme};
use crate::{outcome::Result, text::printable};
use nbd_object::object_store::{
    ClientConfigKey, ObjectStore, Result as StoreResult, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::GoogleCloudStorageBuilder,
};
use std::{sync::Arc, time::Duration};

impl Address {
    pub(super) fn cloud(&self) -> Result<Arc<dyn ObjectStore>> {
        provide_cryptography();
        self.check_endpoint()?;
        let credentials = format!("credentials are taken from {}", self.variables());
        self.client()
            .map_err(|error| self.unusable(&error.to_string(), Some(&credentials)))
    }

    /// The address of the store, where the environment names one.
    pub(super) fn endpoint(&self) -> Option<String> {
        match self.scheme {
            Scheme::S3 => s3().get_config_value(&AmazonS3ConfigKey::Endpoint),
            Scheme::Azure => azure().get_config_value(&AzureConfigKey::Endpoint),
            Scheme::Gcs | Scheme::Directory | Scheme::Memory => None,
        }
    }

    /// Fails unless a request can be sent there, which `object_store` finds out late, and not without
    /// a panic.
    fn check_endpoint(&self) -> Result<()> {
        let Some(endpoint) = self.endpoint() else {
            return Ok(());
        };
        let host = ["http://", "https://"]
            .iter()
            .find_map(|scheme| endpoint.strip_prefix(scheme));
        if !host.is_some_and(|host| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic())
        }) {
            let cause = format!("the address of its store is {:?}", printable(&endpoint));
            return Err(self.unusable(&cause, Some("expected http://HOST or https://HOST")));
        }
        let allowed = match self.scheme {
            Scheme::S3 => {
                s3().get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp))
            }
            _ => azure().get_config_value(&AzureConfigKey::Client(ClientConfigKey::AllowHttp)),
        };
        if endpoint.starts_with("http://") && !allowed.is_some_and(|word| is_true(&word)) {
            let variable = match self.scheme {
                Scheme::S3 => "AWS_ALLOW_HTTP",
                _ => "AZURE_ALLOW_HTTP",
            };
            let cause = format!("{endpoint} has no TLS");
            return Err(self.unusable(&cause, Some(&format!("{variable}=true allows that"))));
        }
        Ok(())
    }

    fn client(&self) -> StoreResult<Arc<dyn ObjectStore>> {
        Ok(match self.scheme {
            Scheme::Gcs => {
                let store = GoogleCloudStorageBuilder::from_env().with_retry(retry());
                Arc::new(store.with_bucket_name(&self.bucket).build()?)
            }
            Scheme::Azure => {
                let store = azure().with_retry(retry());
                Arc::new(store.with_container_name(&self.bucket).build()?)
            }
            _ => {
                let store = s3().with_retry(retry());
                Arc::new(store.with_bucket_name(&self.bucket).build()?)
            }
        })
    }
}

/// Whether `object_store` takes a word of the environment for `true`.
fn is_true(word: &str) -> bool {
    ["1", "true", "on", "yes", "y"].contains(&word.to_ascii_lowercase().as_str())
}

fn s3() -> AmazonS3Builder {
    AmazonS3Builder::from_env()
}

fn azure() -> MicrosoftAzureBuilder {
    MicrosoftAzureBuilder::from_env()
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
