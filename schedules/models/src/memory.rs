//! The memory of a server that its connections share, by itself: few steps, so that schedules of all
//! kinds are soon tried.

use crate::{
    block_on::block_on,
    budget::{Budget, Share},
};
use schedules_std::thread;
use std::{future::poll_fn, task::Poll};

/// What every connection has in any case, in bytes.
const OWN: u64 = 1 << 20;

/// Two connections take and give back a byte of which there is one.
pub(crate) fn memory_comes_back() {
    let budget = Budget::new(1);
    let users = [(); 2].map(|()| {
        let mut share = Share::new(budget.clone());
        thread::spawn(move || {
            for _ in 0..2 {
                block_on(poll_fn(|cx| match share.cover(OWN + 1, cx) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }));
                share.settle(OWN);
                assert!(share.is_empty());
            }
        })
    });
    for user in users {
        user.join().unwrap();
    }
}
