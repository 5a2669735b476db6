//! Signals to the server.

use super::{child::Child, notify::notify_manager, overlays::Overlays};
use crate::{
    interrupt::remove_directories,
    outcome::{Context, Result},
};
use nbd_blocking::server::Stopper;
use signal_hook::{
    consts::{SIGINT, SIGTERM, SIGUSR1},
    iterator::{Handle, Signals as Arriving},
};
use std::{process, sync::Arc, thread};

/// The exit code of a process that was stopped at once.
const AT_ONCE: i32 = 130;

/// Signals that have arrived.
pub(super) struct Signals(Arriving);

/// The objects that signals act on.
pub(super) struct SignalTargets {
    pub(super) stopper: Stopper,
    pub(super) child: Option<Arc<Child>>,
    /// Called when the server is stopped, to end other work with it.
    pub(super) on_stop: Option<Box<dyn Fn() + Send>>,
    /// Overlays that are to be committed.
    pub(super) overlays: Option<Arc<Overlays>>,
}

/// Ends the thread that waits for signals when it is dropped.
pub(super) struct Watching(Handle);

impl Signals {
    /// Collects signals from now on.
    pub(super) fn new() -> Result<Self> {
        let arriving = Arriving::new([SIGTERM, SIGINT, SIGUSR1]);
        Ok(Self(arriving.step(|| "cannot listen to signals")?))
    }

    /// Obeys those that have arrived, and all that will.
    pub(super) fn obey(mut self, targets: SignalTargets) -> Result<Watching> {
        let watching = Watching(self.0.handle());
        let thread = thread::Builder::new().name("signals".into());
        let obey = move || {
            let mut is_stopping = false;
            for signal in self.0.forever() {
                match signal {
                    SIGUSR1 => targets.commit(),
                    _ if is_stopping => {
                        remove_directories();
                        process::exit(AT_ONCE);
                    }
                    _ => targets.stop(),
                }
                is_stopping |= signal != SIGUSR1;
            }
        };
        thread.spawn(obey).step(|| "cannot listen to signals")?;
        Ok(watching)
    }
}

impl SignalTargets {
    fn stop(&self) {
        notify_manager("STOPPING=1");
        self.stopper.stop();
        if let Some(child) = &self.child {
            child.terminate();
        }
        if let Some(on_stop) = &self.on_stop {
            on_stop();
        }
    }

    fn commit(&self) {
        let Some(overlays) = self.overlays.clone() else {
            tracing::warn!("SIGUSR1 commits nothing without --overlay and --commit");
            return;
        };
        // Beside the signals that come meanwhile.
        let thread = thread::Builder::new().name("commit".into());
        let started = thread.spawn(move || overlays.commit());
        if let Err(error) = started {
            tracing::error!("cannot start to commit: {error}");
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.close();
    }
}
