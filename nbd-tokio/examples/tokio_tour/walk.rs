//! The main job, against any server: list, describe, map, write, verify, zero, trim, cache, flush.

use crate::{
    common::Outcome,
    show::{self, Map, size},
};
use nbd_io::{
    client::{ConnectOptions, Error, Greeted, Negotiation, tasks::Client},
    runtime::Network,
};
use nbd_proto::{
    CommandFlags, ContextName, ExportName, Uri,
    client::{Go, InfoSet},
};

/// The length of the written and verified range, in bytes.
const AREA: u64 = 8 << 20;

/// Walks the main job, and writes only if it may.
pub(crate) async fn walk<R: Network>(
    options: &ConnectOptions<R>,
    uri: &Uri,
    write: bool,
) -> Outcome<Client<R>> {
    println!("== {}\n", uri.redacted());
    let mut options = options.clone();
    for context in look_around(&options, uri).await? {
        options = options.context(context);
    }
    let client = options.connect_uri(uri).await?;
    show::export(
        client.export(),
        client.block_sizes(),
        client.mode(),
        client.is_encrypted(),
        client.contexts(),
    );
    map(&client).await?;
    if write {
        write_and_verify(&client).await?;
    } else {
        println!("Nothing is written without --write.\n");
    }
    Ok(client)
}

/// Negotiates step by step: lists the exports, and the meta contexts of the wanted one.
async fn look_around<R: Network>(
    options: &ConnectOptions<R>,
    uri: &Uri,
) -> Outcome<Vec<ContextName>> {
    if uri.tls().is_some() {
        return negotiate(options.start_secure(uri).await?, uri.export()).await;
    }
    match options.start(uri).await? {
        Greeted::FixedNewstyle(negotiation) => negotiate(negotiation, uri.export()).await,
        Greeted::Newstyle(_) => {
            show::by_name();
            Ok(Vec::new())
        }
        Greeted::Oldstyle(oldstyle) => {
            show::oldstyle(oldstyle.export());
            Ok(Vec::new())
        }
    }
}

async fn negotiate<R: Network, S: Send + 'static>(
    mut negotiation: Negotiation<R, S>,
    wanted: &ExportName,
) -> Outcome<Vec<ContextName>> {
    show::list(negotiation.list().await);
    let described = negotiation.info(Go {
        name: wanted.clone(),
        infos: InfoSet::ALL,
    });
    if let Ok(info) = described.await {
        show::outside(wanted, &info);
    }
    let mut contexts = Vec::new();
    // Some servers list their contexts only for clients that could use them.
    if negotiation.extended_headers().await.is_ok() || negotiation.structured_reply().await.is_ok()
    {
        let listed = negotiation.list_meta_context(wanted, &[]).await;
        contexts = show::contexts(listed.unwrap_or_default());
    }
    negotiation.abort().await;
    println!();
    Ok(contexts)
}

/// Shows the block status of the export in each meta context.
async fn map<R: Network>(client: &Client<R>) -> Outcome<()> {
    let Some(mut map) = Map::start(client.contexts()) else {
        return Ok(());
    };
    let mut extents = client.extents(0..client.size());
    while let Some(run) = extents.next().await {
        map.row(&run?);
    }
    map.end();
    Ok(())
}

/// Writes and reads back, in every way that the server offers.
async fn write_and_verify<R: Network>(client: &Client<R>) -> Outcome<()> {
    let info = client.export();
    if info.is_read_only() {
        return Err("the export is read-only".into());
    }
    let area = AREA.min(client.size());
    let half = area / 2 - area / 2 % u64::from(client.block_sizes().preferred());
    let data = bytes::Bytes::from(show::sample(area));
    client.write(data.clone(), 0).await?;
    verify(client, 0, &data).await?;
    println!("wrote, read back and verified {}\n", size(area));
    map(client).await?;

    if info.can_fua() {
        let data = data.slice(..4096.min(data.len()));
        client.write_with(data, 0, CommandFlags::FUA).await?;
        println!("wrote with forced unit access");
    }
    if info.can_write_zeroes() {
        client.write_zeroes(0, half, CommandFlags::NONE).await?;
        verify(client, 0, &vec![0; half.try_into()?]).await?;
        println!("wrote zeroes and verified {}", size(half));
        if info.can_fast_zero() {
            let fast = client.write_zeroes(0, half, CommandFlags::FAST_ZERO);
            match fast.await {
                Ok(()) => println!("zeroes can be fast"),
                Err(Error::Failed { source, .. }) => println!("zeroes cannot be fast: {source}"),
                Err(error) => return Err(error.into()),
            }
        }
    }
    if info.can_trim() {
        let rest = area - half;
        client.trim(half, rest, CommandFlags::NONE).await?;
        println!("trimmed {}", size(rest));
    }
    if info.can_cache() {
        client.cache(0, area).await?;
        println!("cached {}", size(area));
    }
    if info.can_flush() {
        client.flush().await?;
        println!("flushed");
    }
    println!();
    Ok(())
}

async fn verify<R: Network>(client: &Client<R>, offset: u64, expected: &[u8]) -> Outcome<()> {
    let found = client.read(offset, expected.len()).await?;
    show::compare(offset, &found, expected)
}
