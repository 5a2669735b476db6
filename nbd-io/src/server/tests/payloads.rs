//! Payloads that do not come all at once.

use super::disconnect::{DISC, GO, serve_export};
use crate::{Export as _, Memory, server::CloseReason};
use std::sync::Arc;

/// A write of 64 KiB at 4 KiB.
const WRITE: &[u8] = b"\x25\x60\x95\x13\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\x10\0\0\x01\0\0";

#[test]
fn the_rest_of_a_payload_is_read_without_another_event() {
    // The place of the cut depends on the number of requests before it.
    for before in 0..3 {
        let memory = Arc::new(Memory::new(1 << 20));
        let data: Vec<u8> = (0..=u8::MAX).cycle().take(64 << 10).collect();
        let write = [WRITE, &data].concat();
        let says = [&[GO][..], &vec![&*write; before + 1], &[DISC]].concat();
        // Polled only once: a future that waits for a wake-up would not end.
        let (ending, since) = serve_export(memory.clone(), &says, true);
        assert!(
            matches!(ending, Some(CloseReason::Disconnected)),
            "{ending:?}"
        );
        assert!(since.is_empty(), "{since:?}");
        let mut read = vec![0; data.len()];
        memory.read(4096, &mut read).unwrap();
        assert!(read == data);
    }
}
