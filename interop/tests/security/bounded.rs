//! Bounds of memory and time for a test, which has the process to itself.

use std::{
    fs,
    panic::{self, PanicHookInfo},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

static ALONE: Mutex<()> = Mutex::new(());

/// Panics of any thread, those included that a runtime catches.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Ample even for a loaded machine, and far shorter than an endless loop or a hang.
const TIME: Duration = Duration::from_secs(60);

/// Runs a test that may take so many MiB of memory beyond those of the process at its start, and in
/// which no thread panics.
pub(crate) fn bounded(mebibytes: usize, test: impl FnOnce() + Send + 'static) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    count_panics();
    let before = PANICS.load(Ordering::SeqCst);
    // The highest size begins anew.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (start, begun) = (kibibytes("VmRSS:"), Instant::now());
    interop::deadline(TIME, test);
    let grown = kibibytes("VmHWM:").saturating_sub(start) >> 10;
    eprintln!("{grown} of {mebibytes} MiB, {:?}", begun.elapsed());
    assert!(grown <= mebibytes, "{grown} MiB, and not {mebibytes}");
    let panics = PANICS.load(Ordering::SeqCst) - before;
    assert_eq!(panics, 0, "a thread has panicked");
}

/// A line of the status of this process.
fn kibibytes(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let number = value.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

/// The memory of this process, in bytes.
pub(crate) fn resident() -> usize {
    kibibytes("VmRSS:") << 10
}

fn count_panics() {
    static HOOKED: Mutex<bool> = Mutex::new(false);
    let mut hooked = HOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    if std::mem::replace(&mut *hooked, true) {
        return;
    }
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        report(info);
    }));
}
