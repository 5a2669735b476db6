//! Verification of copied data.

use super::{
    digest::Digest,
    ends::{Sink, Source},
    worker::Job,
};
use crate::{
    compare::{Comparison, differences},
    disk::Disk,
    interrupt::run_until_interrupted,
    outcome::{Error, Result},
    work::{Work, cut},
};
use futures_util::TryStreamExt;
use nbd_tokio::bytes::BytesMut;
use std::pin::pin;

/// Reads both sides again, and compares the copied ranges. A source that can be read but once is
/// replaced by its `digest`. Returns the error of a copy that differs.
pub(super) async fn verify(
    job: &Job,
    source: &Source,
    sink: &Sink,
    digest: Option<&str>,
) -> Result<Option<Error>> {
    let Some(sink) = sink.disk() else {
        return Err(Error::new("--verify needs a destination that can be read"));
    };
    let wrong = match source {
        Source::Disk(source) => is_wrong(job, source, sink).await?,
        Source::Stream(_) => {
            let there = digest_of(job, sink).await?;
            digest
                .filter(|digest| *digest != there)
                .map(|digest| format!("its SHA-256 is {there} and has to be {digest}"))
        }
    };
    Ok(wrong.map(|wrong| {
        Error::new(format!(
            "{} differs from the data copied to it: {wrong}",
            sink.name()
        ))
    }))
}

/// The first difference of the destination from the source.
async fn is_wrong(job: &Job, source: &Disk, sink: &Disk) -> Result<Option<String>> {
    let Job {
        settings, progress, ..
    } = job;
    let comparison = Comparison {
        // Of each disk.
        requests: settings.most().div_ceil(2),
        request_size: settings.request_size,
        first: true,
        only: settings.only.clone(),
    };
    let size = source.size();
    let work = Work::new(&(0..size).into(), 1);
    progress.begin("verify", Some(size), 0);
    let differences = differences(&work, progress, [source, sink], &comparison);
    let found = run_until_interrupted(&work, progress, differences).await?;
    let at = |first| format!("it differs from {} at {first}", source.name());
    Ok(found.first.map(at))
}

/// The digest of as much of a disk as was copied.
async fn digest_of(job: &Job, disk: &Disk) -> Result<String> {
    let Job {
        settings, progress, ..
    } = job;
    let size = progress.done();
    let work = Work::new(&(0..size).into(), 1);
    progress.begin("verify", Some(size), 0);
    let read = async {
        let pieces = work.pieces(async |stretch| Ok(cut(stretch, settings.request_size).collect()));
        let data = pieces.map_ok(async |range| {
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            disk.read(BytesMut::zeroed(len), range.start).await
        });
        let mut data = pin!(data.try_buffered(settings.most()));
        let mut digest = Digest::default();
        while let Some(data) = data.try_next().await? {
            progress.add(data.len() as u64);
            digest.add(&data);
        }
        Ok(digest.hex())
    };
    run_until_interrupted(&work, progress, read).await
}
