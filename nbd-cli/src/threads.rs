//! Work that threads share.

use crate::{
    outcome::{Context, Result},
    work::Work,
};
use std::{sync::Arc, thread};
use tokio::sync::mpsc;

/// Does work by `first` on this thread, and on each of so many `others` by the function that `another`
/// returns. When one fails, the rest stop.
pub(crate) async fn share<T: Send + 'static, F>(
    work: &Arc<Work>,
    others: usize,
    first: impl Future<Output = Result<T>>,
    another: impl Fn() -> F,
) -> Result<Vec<T>>
where
    F: FnOnce() -> Result<T> + Send + 'static,
{
    let (results, mut finished) = mpsc::unbounded_channel();
    for _ in 0..others {
        let (work, results, run) = (work.clone(), results.clone(), another());
        let started = thread::Builder::new().name("disk".into()).spawn(move || {
            let result = run();
            if result.is_err() {
                work.stop();
            }
            // The other side is gone if the user did not want to wait.
            let _ = results.send(result);
        });
        started.step(|| "cannot start a thread")?;
    }
    drop(results);
    let first = first.await;
    if first.is_err() {
        work.stop();
    }
    let mut all = vec![first];
    while let Some(result) = finished.recv().await {
        all.push(result);
    }
    all.into_iter().collect()
}
