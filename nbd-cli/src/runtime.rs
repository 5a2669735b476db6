//! The runtime of asynchronous commands.

use crate::outcome::{Context, Result};

/// Runs a command on this thread.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .step(|| "cannot start the runtime")?;
    let done = runtime.block_on(command);
    // A thread may still wait for a reader of its output.
    runtime.shutdown_background();
    done
}
