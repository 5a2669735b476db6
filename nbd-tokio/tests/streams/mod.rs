//! Streams as Tokio has them.

use nbd_tokio::Cursor;
use std::io;
pub(crate) use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::io::{BufReader, copy_buf};

pub(crate) async fn copy(from: Cursor, to: &mut Cursor) -> io::Result<u64> {
    copy_buf(&mut BufReader::with_capacity(1 << 20, from), to).await
}

pub(crate) async fn close(cursor: &mut Cursor) -> io::Result<()> {
    cursor.shutdown().await
}
