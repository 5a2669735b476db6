//! Long work: its progress is shown, and signals stop it.

use crate::{
    outcome::{Context, Error, Result},
    progress::Progress,
    work::Work,
};
use std::{pin::pin, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};

/// Time for requests in flight to end after the user has stopped a command.
const GRACE: Duration = Duration::from_secs(10);

/// Carries out `task` to its end. The first Ctrl-C or SIGTERM has `work` stop, so that the task ends
/// soon; the second one is not waited for.
pub(crate) async fn run_until_interrupted<T>(
    work: &Work,
    progress: &Progress,
    task: impl Future<Output = Result<T>>,
) -> Result<T> {
    let listen = |kind| signal(kind).step(|| "cannot listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut ticks = interval(progress.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut task = pin!(task);
    loop {
        tokio::select! {
            biased;
            done = &mut task => return done,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = ticks.tick() => progress.show(),
        }
    }
    progress.message("stopping when requests in flight are done; once more stops at once");
    work.stop();
    let ended = tokio::select! {
        done = &mut task => done.map(drop),
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = sleep(GRACE) => Ok(()),
    };
    if let Err(error) = ended {
        progress.message(&error.to_string());
    }
    Err(Error::Interrupted)
}
