//! A thread that carries a task to its end. That of shuttle has one mark for the wake-ups of its task and
//! of the locks that the task waits for, so that a task which waits for a lock may miss one.

use schedules_std::sync::{Condvar, Mutex};
use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

#[derive(Default)]
struct Signal {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

pub(crate) fn block_on<F: Future>(task: F) -> F::Output {
    let signal = Arc::<Signal>::default();
    let waker = Waker::from(signal.clone());
    let mut task = pin!(task);
    loop {
        if let Poll::Ready(output) = task.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut woken = signal.woken.lock().unwrap();
        while !*woken {
            woken = signal.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}
