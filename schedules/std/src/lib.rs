//! The standard library, with shuttle's locks, atomics and threads in place of its own.

pub use std::*;

pub mod sync {
    pub use shuttle::sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
    };
    pub use std::sync::{Arc, LazyLock, LockResult, OnceLock, PoisonError, TryLockError, Weak};
}

pub mod thread {
    pub use shuttle::thread::*;
    pub use std::thread::Result;
}
