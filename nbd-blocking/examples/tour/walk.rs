//! The main job, against any server: list, describe, map, write, verify, zero, trim, cache, flush.

use crate::{
    common::Outcome,
    show::{self, Map, size},
};
use nbd_blocking::{
    Client, CommandFlags, ConnectOptions, ContextName, Error, ExportName, Uri,
    negotiation::{Go, Greeted, InfoSet, Negotiation},
};

/// The length of the written and verified range, in bytes.
const AREA: u64 = 8 << 20;

/// Walks the main job, and writes only if it may.
pub(crate) fn walk(options: &ConnectOptions, uri: &Uri, write: bool) -> Outcome<Client> {
    println!("== {}\n", uri.redacted());
    let mut options = options.clone();
    for context in look_around(&options, uri)? {
        options = options.context(context);
    }
    let client = options.connect_uri(uri)?;
    show::export(
        client.export(),
        client.block_sizes(),
        client.mode(),
        client.is_encrypted(),
        client.contexts(),
    );
    map(&client)?;
    if write {
        write_and_verify(&client)?;
    } else {
        println!("Nothing is written without --write.\n");
    }
    Ok(client)
}

/// Negotiates step by step: lists the exports, and the meta contexts of the wanted one.
fn look_around(options: &ConnectOptions, uri: &Uri) -> Outcome<Vec<ContextName>> {
    if uri.tls().is_some() {
        return negotiate(options.start_secure(uri)?, uri.export());
    }
    match options.start(uri)? {
        Greeted::FixedNewstyle(negotiation) => negotiate(negotiation, uri.export()),
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

fn negotiate<S: Send + 'static>(
    mut negotiation: Negotiation<S>,
    wanted: &ExportName,
) -> Outcome<Vec<ContextName>> {
    show::list(negotiation.list());
    let described = negotiation.info(Go {
        name: wanted.clone(),
        infos: InfoSet::ALL,
    });
    if let Ok(info) = described {
        show::outside(wanted, &info);
    }
    let mut contexts = Vec::new();
    // Some servers list their contexts only for clients that could use them.
    if negotiation.extended_headers().is_ok() || negotiation.structured_reply().is_ok() {
        let listed = negotiation
            .list_meta_context(wanted, &[])
            .unwrap_or_default();
        contexts = show::contexts(listed);
    }
    negotiation.abort();
    println!();
    Ok(contexts)
}

/// Shows the block status of the export in each meta context.
fn map(client: &Client) -> Outcome<()> {
    let Some(mut map) = Map::start(client.contexts()) else {
        return Ok(());
    };
    for run in client.extents(0..client.size()) {
        map.row(&run?);
    }
    map.end();
    Ok(())
}

/// Writes and reads back, in every way that the server offers.
fn write_and_verify(client: &Client) -> Outcome<()> {
    let info = client.export();
    if info.is_read_only() {
        return Err("the export is read-only".into());
    }
    let area = AREA.min(client.size());
    let half = area / 2 - area / 2 % u64::from(client.block_sizes().preferred());
    let data = show::sample(area);
    client.write_all_at(&data, 0)?;
    verify(client, 0, &data)?;
    println!("wrote, read back and verified {}\n", size(area));
    map(client)?;

    if info.can_fua() {
        client.write_all_at_with(&data[..4096.min(data.len())], 0, CommandFlags::FUA)?;
        println!("wrote with forced unit access");
    }
    if info.can_write_zeroes() {
        client.write_zeroes(0, half, CommandFlags::NONE)?;
        verify(client, 0, &vec![0; half.try_into()?])?;
        println!("wrote zeroes and verified {}", size(half));
        if info.can_fast_zero() {
            match client.write_zeroes(0, half, CommandFlags::FAST_ZERO) {
                Ok(()) => println!("zeroes can be fast"),
                Err(Error::Failed { source, .. }) => println!("zeroes cannot be fast: {source}"),
                Err(error) => return Err(error.into()),
            }
        }
    }
    if info.can_trim() {
        client.trim(half, area - half, CommandFlags::NONE)?;
        println!("trimmed {}", size(area - half));
    }
    if info.can_cache() {
        client.cache(0, area)?;
        println!("cached {}", size(area));
    }
    if info.can_flush() {
        client.flush()?;
        println!("flushed");
    }
    println!();
    Ok(())
}

fn verify(client: &Client, offset: u64, expected: &[u8]) -> Outcome<()> {
    let mut found = vec![0xee; expected.len()];
    client.read_exact_at(&mut found, offset)?;
    show::compare(offset, &found, expected)
}
