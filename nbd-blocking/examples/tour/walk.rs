//! The main job, against any server: list, describe, map, write, verify, zero, trim, cache, flush.

use nbd_blocking::{
    Client, CommandFlags, ConnectOptions, ContextName, Error, ExportName, Go, Greeted, Haggling,
    InfoSet, ListEntry, Uri,
    meta::{Allocation, AllocationDepth, DirtyBitmap},
};

/// How much of an export is written and verified, in bytes.
const AREA: u64 = 8 << 20;

/// Stretches that are shown before the rest is only counted.
const SHOWN: usize = 12;

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Walks the main job, and writes only if it may.
pub(crate) fn walk(options: &ConnectOptions, uri: &Uri, write: bool) -> Outcome<Client> {
    println!("== {}\n", uri.redacted());
    let mut options = options.clone();
    for context in look_around(&options, uri)? {
        options = options.context(context);
    }
    let client = options.connect_uri(uri)?;
    describe(&client);
    map(&client)?;
    if write {
        write_and_verify(&client)?;
    } else {
        println!("Nothing is written without --write.\n");
    }
    Ok(client)
}

/// Haggles step by step: which exports there are, and which meta contexts the wanted one has.
fn look_around(options: &ConnectOptions, uri: &Uri) -> Outcome<Vec<ContextName>> {
    if uri.tls().is_some() {
        return haggle(options.start_secure(uri)?, uri.export());
    }
    match options.start(uri)? {
        Greeted::Options(haggling) => haggle(haggling, uri.export()),
        Greeted::ByName(_) => {
            println!("The server speaks newstyle without options: nothing can be listed.\n");
            Ok(Vec::new())
        }
        Greeted::Entered(entered) => {
            println!(
                "The server speaks oldstyle: {}.\n",
                size(entered.export().size)
            );
            Ok(Vec::new())
        }
    }
}

fn haggle<S>(mut haggling: Haggling<S>, wanted: &ExportName) -> Outcome<Vec<ContextName>> {
    match haggling.list() {
        Ok(entries) => {
            println!("Exports:");
            for ListEntry { name, description } in entries {
                match name {
                    Ok(name) => println!("  \"{name}\"  {description}"),
                    Err(error) => println!("  a name that cannot be used: {error}"),
                }
            }
        }
        Err(error) => println!("The server does not list its exports: {error}"),
    }
    let described = haggling.info(Go {
        name: wanted.clone(),
        infos: InfoSet::ALL,
    });
    if let Ok(info) = described {
        println!("\"{wanted}\" has {} before it is entered.", size(info.size));
    }
    let mut contexts = Vec::new();
    // Some servers tell their contexts only to clients that could use them.
    if haggling.extended_headers().is_ok() || haggling.structured_reply().is_ok() {
        let listed = haggling.list_meta_context(wanted, &[]).unwrap_or_default();
        contexts.extend(listed.into_iter().filter_map(|entry| entry.name.ok()));
        // A name that ends in a colon stands for many.
        contexts.retain(|name| !name.leaf().is_empty());
    }
    haggling.abort();
    println!();
    Ok(contexts)
}

fn describe(client: &Client) {
    let info = client.export();
    let blocks = client.block_sizes();
    println!("Export:");
    if let Some(name) = &info.name {
        println!("  name         \"{name}\"");
    }
    if let Some(description) = &info.description {
        println!("  description  {description}");
    }
    println!("  size         {}", size(info.size));
    println!("  flags        {:?}", info.flags);
    println!(
        "  blocks       {} minimum, {} preferred, {} at most{}",
        blocks.minimum(),
        blocks.preferred(),
        blocks.maximum(),
        if info.block_sizes.is_some() {
            ""
        } else {
            " (not told: what is usual)"
        },
    );
    let encryption = if client.is_encrypted() {
        "encrypted"
    } else {
        "in the clear"
    };
    println!("  connection   {:?} replies, {encryption}", client.mode());
    for context in client.contexts() {
        if let Some(name) = &context.name {
            println!("  context      {name}");
        }
    }
    println!();
}

/// Shows what the meta contexts say of the export.
fn map(client: &Client) -> Outcome<()> {
    let names: Vec<_> = client
        .contexts()
        .iter()
        .filter_map(|context| context.name.clone())
        .collect();
    if names.is_empty() {
        println!("The server tells nothing of allocation.\n");
        return Ok(());
    }
    println!("{:>16} {:>16}  status", "offset", "length");
    let (mut count, mut covered) = (0, 0);
    for stretch in client.extents(0..client.size()) {
        let stretch = stretch?;
        count += 1;
        covered += stretch.len;
        if count <= SHOWN {
            let status: Vec<_> = names
                .iter()
                .zip(&stretch.status)
                .map(|(name, status)| say(name, *status))
                .collect();
            println!(
                "{:>16} {:>16}  {}",
                stretch.offset,
                stretch.len,
                status.join("  ")
            );
        }
    }
    let stretches = if count == 1 {
        "stretch covers"
    } else {
        "stretches cover"
    };
    println!("{count} {stretches} {}.\n", size(covered));
    Ok(())
}

fn say(context: &ContextName, status: u64) -> String {
    match context.as_str() {
        "base:allocation" => Allocation::new(status).to_string(),
        "qemu:allocation-depth" => AllocationDepth::new(status).to_string(),
        name if name.starts_with("qemu:dirty-bitmap:") => DirtyBitmap::new(status).to_string(),
        _ => format!("{status:#x}"),
    }
}

/// Writes and reads back, in every way that the server offers.
fn write_and_verify(client: &Client) -> Outcome<()> {
    let info = client.export();
    if info.is_read_only() {
        return Err("the export is read-only".into());
    }
    let area = AREA.min(client.size());
    let half = area / 2 - area / 2 % u64::from(client.block_sizes().preferred());
    let data: Vec<u8> = (0..area)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect();
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
    match found
        .iter()
        .zip(expected)
        .position(|(found, expected)| found != expected)
    {
        None => Ok(()),
        Some(at) => Err(format!("byte {} reads back wrong", offset + at as u64).into()),
    }
}

pub(crate) fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units
        .iter()
        .find(|(shift, _)| bytes >> shift > 0 && bytes.trailing_zeros() >= *shift)
    {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}
