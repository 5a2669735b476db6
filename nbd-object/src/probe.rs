//! A trial of the conditions that a disk is built on.

use crate::{
    Error,
    store::{Objects, Put},
};
use object_store::{PutMode, PutPayload};

/// Fails unless the store refuses to create an object twice, and to swap one whose tag is stale.
///
/// It takes six requests.
pub(crate) async fn probe(objects: &Objects, nonce: u64) -> Result<(), Error> {
    let name = format!("probe/{nonce:016x}");
    let result = conditions(objects, &name).await;
    if !objects.has_answered() {
        return result;
    }
    let cleaned = objects.delete(vec![objects.path(&name)]).await;
    result.and(cleaned)
}

async fn conditions(objects: &Objects, name: &str) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::IgnoresConditions(what.into()));
    let put = async |content: &'static str, mode| {
        let put = objects
            .put(name, PutPayload::from_static(content.as_bytes()), mode)
            .await;
        put.map_err(|error| match &error {
            Error::Store { source, .. }
                if matches!(
                    **source,
                    object_store::Error::NotImplemented { .. }
                        | object_store::Error::NotSupported { .. }
                ) =>
            {
                Error::IgnoresConditions(source.to_string())
            }
            _ => error,
        })
    };
    let read = async || {
        let found = objects.get(name, 64).await?;
        found.ok_or_else(|| Error::NotFound(format!("object {name}, which was put just now")))
    };
    // Where the answer to the first attempt was lost, the second one is refused.
    put("1", PutMode::Create).await?;
    let first = read().await?.version;
    if let Put::Done(_) = put("2", PutMode::Create).await? {
        return refused("an object that is there could be created again");
    }
    if first.e_tag.is_none() && first.version.is_none() {
        return refused("its objects have neither tags nor versions");
    }
    let swapped = put("3", PutMode::Update(first.clone())).await?;
    if matches!(swapped, Put::Refused) && &read().await?.bytes[..] == b"1" {
        // Ceph's gateway, at least up to version 16, compares tags without the quotes of its answers.
        objects.use_bare_tags();
        put("3", PutMode::Update(first.clone())).await?;
    }
    if &read().await?.bytes[..] != b"3" {
        return refused("an object could not be swapped although nothing had changed it");
    }
    if let Put::Done(_) = put("4", PutMode::Update(first)).await? {
        return refused("an object could be swapped by a tag that was stale");
    }
    Ok(())
}
