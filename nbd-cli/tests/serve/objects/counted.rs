//! The work behind the served bytes: metrics, the cache in a directory, and the collection of garbage.

use super::{connect, place, read};
use crate::{
    metrics::{scrape, serve},
    support::{run_nbd, succeeded},
};
use interop::{MIB, pattern, run};
use nbd_blocking::CommandFlags;
use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// The length of a record, in bytes.
const BLOCK: usize = 64 << 10;

/// The files below a directory and their lengths. Files come and go meanwhile.
fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.unwrap(),
        };
        for entry in entries {
            let path = entry.unwrap().path();
            match fs::metadata(&path) {
                Ok(metadata) if metadata.is_dir() => pending.push(path),
                Ok(metadata) => drop(found.insert(path, metadata.len())),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
            }
        }
    }
    found
}

/// Waits for a state that another process brings about.
#[track_caller]
fn until<T: fmt::Debug>(mut state: impl FnMut() -> T, done: impl Fn(&T) -> bool) {
    const LIMIT: Duration = Duration::from_secs(150);
    let begin = Instant::now();
    loop {
        let state = state();
        if done(&state) {
            return;
        }
        assert!(begin.elapsed() < LIMIT, "still after {LIMIT:?}: {state:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The numbers of the disk at an address of metrics.
struct Numbers(BTreeMap<String, f64>);

impl Numbers {
    fn of(address: &str) -> Self {
        Self(scrape(address))
    }

    fn get(&self, name: &str) -> f64 {
        self.0[&format!("nbd_object_{name}{{export=\"disk\"}}")]
    }

    /// The histogram of commits, which has all classes: the numbers up to each one, and in all.
    fn commits(&self) -> (Vec<f64>, f64) {
        let buckets = self.0.iter().filter_map(|(name, number)| {
            let name = name.strip_prefix("nbd_object_commit_duration_seconds_bucket")?;
            let (_, end) = name.split_once("le=\"")?;
            // Rust reads "+Inf", too.
            Some((end.strip_suffix("\"}")?.parse::<f64>().unwrap(), *number))
        });
        let mut buckets: Vec<_> = buckets.collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert_eq!(buckets.last().unwrap().0, f64::INFINITY);
        let numbers = buckets.into_iter().map(|(_, number)| number).collect();
        (numbers, self.get("commit_duration_seconds_count"))
    }
}

#[test]
fn metrics_count_the_requests_to_the_store_and_the_hits_of_the_cache() {
    run(|| {
        let (_dir, uri) = place();
        let (serving, address) = serve(&format!("{uri} --create 64M"));
        let client = connect(&serving, "disk");
        let fresh = Numbers::of(&address);
        client.write_all_at(&pattern(1, MIB), 0).unwrap();
        let written = Numbers::of(&address);
        assert!(written.get("dirty_bytes") >= 1_048_576.0);
        assert_eq!(written.get("puts_total"), fresh.get("puts_total"));
        client.flush().unwrap();
        let flushed = Numbers::of(&address);
        assert_eq!(flushed.get("dirty_bytes"), 0.0);
        // Data, pages and the head.
        assert!(flushed.get("puts_total") >= written.get("puts_total") + 3.0);
        let put = flushed.get("put_bytes_total") - written.get("put_bytes_total");
        assert!((1_048_576.0..1_200_000.0).contains(&put), "{put}");
        let commits = |numbers: &Numbers| numbers.get("commits_total");
        assert_eq!(commits(&flushed), commits(&written) + 1.0);
        assert_eq!(flushed.get("failed_commits_total"), 0.0);
        let (buckets, all) = flushed.commits();
        assert!(buckets.is_sorted() && buckets.last() == Some(&all) && all >= 1.0);
        assert!(flushed.get("commit_duration_seconds_sum") > 0.0);
        serving.stop();

        let (serving, address) = serve(&uri);
        let client = connect(&serving, "disk");
        let fresh = Numbers::of(&address);
        assert!(read(&client, 0, 1 << 20) == pattern(1, MIB));
        let missed = Numbers::of(&address);
        assert!(missed.get("cache_misses_total") > fresh.get("cache_misses_total"));
        let got = missed.get("got_bytes_total") - fresh.get("got_bytes_total");
        assert!(got >= 1_048_576.0, "{got}");
        assert!(missed.get("cached_bytes") >= 1_048_576.0);
        assert!(read(&client, 0, 1 << 20) == pattern(1, MIB));
        let hit = Numbers::of(&address);
        assert_eq!(hit.get("gets_total"), missed.get("gets_total"));
        assert_eq!(
            hit.get("cache_hits_total"),
            missed.get("cache_hits_total") + 16.0
        );
        for name in ["deletes_total", "lists_total", "retries_total"] {
            assert!(hit.get(name) >= 0.0);
        }
    });
}

#[test]
fn a_later_server_reads_from_the_cache_in_a_directory_and_gets_damaged_records_again() {
    run(|| {
        let (dir, uri) = place();
        let cache = dir.path().join("cache");
        let data = pattern(1, 2 * MIB);
        let records = data.len() / BLOCK;
        let args = format!("{uri} --create 64M --cache-dir {}", cache.display());
        let whole = |serving: &_| assert!(read(&connect(serving, ""), 0, 2 << 20) == data);

        let (serving, _) = serve(&args);
        let client = connect(&serving, "");
        client.write_all_at(&data, 0).unwrap();
        client.flush().unwrap();
        serving.stop();
        // Records are left out while others are being kept, and therefore read again. A server that
        // stops may leave a part of one, with a number at the end of its name.
        let kept = || {
            let names = files(&cache).into_keys();
            let whole = names.filter(|path| !path.to_str().unwrap().contains('#'));
            whole.collect::<Vec<_>>()
        };
        let served = || {
            let (serving, _) = serve(&args);
            whole(&serving);
            serving.stop();
            kept()
        };
        until(served, |kept| kept.len() == records);

        let (serving, address) = serve(&args);
        whole(&serving);
        let numbers = Numbers::of(&address);
        assert_eq!(numbers.get("local_cache_hits_total"), records as f64);
        // The head and pages of the map alone.
        let got = numbers.get("got_bytes_total");
        assert!(got < BLOCK as f64, "{got}");
        serving.stop();

        let [first, .., last] = &kept()[..] else {
            panic!("there is no record");
        };
        let kept = [first, last].map(|path| fs::read(path).unwrap());
        let mut damaged = kept[0].clone();
        damaged[BLOCK / 2] ^= 1;
        fs::write(first, damaged).unwrap();
        fs::write(last, &kept[1][..BLOCK / 2]).unwrap();
        let (serving, address) = serve(&args);
        whole(&serving);
        let numbers = Numbers::of(&address);
        assert_eq!(numbers.get("local_cache_hits_total"), records as f64 - 2.0);
        let got = numbers.get("got_bytes_total");
        let two = 2.0 * BLOCK as f64;
        assert!((two..two + BLOCK as f64).contains(&got), "{got}");
        // They are kept anew.
        let read = || [first, last].map(|path| fs::read(path).unwrap_or_default());
        until(|| read() == kept, |kept| *kept);
    });
}

#[test]
fn garbage_vanishes_while_the_disk_is_served_and_snapshots_stay() {
    run(|| {
        let (dir, uri) = place();
        let disk = || files(&dir.path().join("disk"));
        let less_than =
            |limit| move |files: &BTreeMap<PathBuf, u64>| files.values().sum::<u64>() < limit;
        let (serving, address) = serve(&format!("{uri} --create 64M --gc 0.1 --gc-age 0.1"));
        let client = connect(&serving, "disk");
        let write = |seed| {
            client.write_all_at(&pattern(seed, 2 * MIB), 0).unwrap();
            client.flush().unwrap();
        };
        write(1);
        let snapshot = format!("{uri}@one");
        succeeded(&run_nbd(["object", "snapshot", &snapshot]));
        for seed in 2..6 {
            write(seed);
        }
        // Of 10 MiB, those of the disk and of the snapshot.
        until(disk, less_than(5 * MIB));
        assert!(Numbers::of(&address).get("deletes_total") > 0.0);
        let old = connect(&serving, "disk@one");
        assert!(read(&old, 0, 2 << 20) == pattern(1, 2 * MIB));
        for disk in [&uri, &snapshot] {
            let checked = succeeded(&run_nbd(["object", "check", disk]));
            assert!(checked.ends_with("all are whole\n"), "{checked}");
        }
        succeeded(&run_nbd(["object", "delete", &snapshot]));
        until(disk, less_than(3 * MIB));
        // Trimmed data is gone, too: the rest of its object is written anew.
        let trimmed = 3 << 19;
        client.trim(0, trimmed, CommandFlags::NONE).unwrap();
        client.flush().unwrap();
        until(disk, less_than(MIB));
        let data = read(&client, 0, 2 << 20);
        let (zeroes, rest) = data.split_at(usize::try_from(trimmed).unwrap());
        assert!(zeroes.iter().all(|byte| *byte == 0));
        assert!(rest == &pattern(5, 2 * MIB)[zeroes.len()..]);
        serving.stop();
        let checked = succeeded(&run_nbd(["object", "check", &uri]));
        assert!(checked.ends_with("all are whole\n"), "{checked}");
    });
}
