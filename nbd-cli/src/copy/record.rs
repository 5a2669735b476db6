//! The record of ranges that were copied and are on stable storage, in a file with which a later
//! copy goes on.

use super::{
    Task,
    ends::{Sink, Source},
};
use crate::{
    outcome::{Context, Error, Result},
    ranges::Ranges,
    target::Target,
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{ErrorKind, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tempfile::NamedTempFile;

/// The format of the file.
const VERSION: u32 = 1;

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    source: Identity,
    destination: Identity,
    only: Option<String>,
    /// Ranges on stable storage.
    copied: Ranges,
}

/// By which a disk is known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    name: String,
    size: u64,
    /// The device and the inode of a file.
    file: Option<[u64; 2]>,
    /// When a source was changed last, in seconds and nanoseconds.
    modified: Option<[i64; 2]>,
}

/// The file, and its content.
#[derive(Debug)]
pub(super) struct Record {
    kept: Option<(PathBuf, Mutex<State>)>,
}

impl State {
    /// The content of a file, if it is there.
    pub(super) fn load(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).step(|| format!("cannot read {}", path.display())),
        };
        let state: Self = serde_json::from_slice(&text)
            .step(|| format!("{} is not about a copy", path.display()))?;
        if state.version != VERSION {
            return Err(Error::new(format!(
                "{} is of another version of nbd: expected {VERSION}, got {}",
                path.display(),
                state.version
            )));
        }
        Ok(Some(state))
    }

    fn save(&self, path: &Path) -> Result<()> {
        let saved = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let directory = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            let mut file = NamedTempFile::new_in(directory)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(fs::File::open(directory)?.sync_all()?)
        };
        saved().step(|| format!("cannot write {}", path.display()))
    }
}

impl Identity {
    fn new(target: &Target, size: u64, is_source: bool) -> Self {
        let mut identity = Self {
            name: target.to_string(),
            size,
            file: None,
            modified: None,
        };
        let Target::Path(path) = target else {
            return identity;
        };
        if let Ok(path) = fs::canonicalize(path) {
            identity.name = path.display().to_string();
        }
        if let Ok(file) = fs::metadata(path) {
            identity.file = Some([file.dev(), file.ino()]);
            identity.modified = is_source.then(|| [file.mtime(), file.mtime_nsec()]);
        }
        identity
    }

    fn describe(&self) -> String {
        format!("{} of {} bytes", self.name, self.size)
    }
}

impl Record {
    /// For a copy between these ends, of which `found` may say that a part is done.
    pub(super) fn new(
        task: &Task,
        source: &Source,
        sink: &Sink,
        found: Option<State>,
    ) -> Result<Self> {
        let Some(path) = task.options.resume.clone() else {
            return Ok(Self { kept: None });
        };
        let (Source::Disk(from), Sink::Disk(to)) = (source, sink) else {
            return Err(Error::new("--resume is for disks"));
        };
        let new = State {
            version: VERSION,
            source: Identity::new(&task.source, from.size(), true),
            destination: Identity::new(&task.destination, to.size(), false),
            only: task.options.only.as_ref().map(ToString::to_string),
            copied: Ranges::default(),
        };
        let Some(found) = found else {
            let record = Self {
                kept: Some((path, Mutex::new(new))),
            };
            // To find out now whether it can be written.
            record.add(Ranges::default())?;
            return Ok(record);
        };
        let checks = [
            (&found.source, &new.source),
            (&found.destination, &new.destination),
        ];
        for (expected, got) in checks {
            if expected != got {
                let changed = if expected.describe() == got.describe() {
                    " that was changed since"
                } else {
                    ""
                };
                return Err(Error::new(format!(
                    "{} is about another copy: expected {}, got {}{changed}; without that file, all is copied",
                    path.display(),
                    expected.describe(),
                    got.describe()
                )));
            }
        }
        if found.only != new.only {
            return Err(Error::new(format!(
                "{} is about another copy: expected --only {}, got --only {}",
                path.display(),
                found.only.as_deref().unwrap_or("nothing"),
                new.only.as_deref().unwrap_or("nothing"),
            )));
        }
        Ok(Self {
            kept: Some((path, Mutex::new(found))),
        })
    }

    /// Whether there is a file.
    pub(super) const fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// The ranges that are left of a disk of that size.
    pub(super) fn left(&self, size: u64) -> Ranges {
        match &self.kept {
            Some((_, state)) => lock(state).copied.rest(size),
            None => (0..size).into(),
        }
    }

    /// Records ranges that are on stable storage now.
    pub(super) fn add(&self, copied: Ranges) -> Result<()> {
        let Some((path, state)) = &self.kept else {
            return Ok(());
        };
        let mut state = lock(state);
        state.copied.extend(copied);
        state.save(path)
    }

    /// All is done.
    pub(super) fn finish(&self) -> Result<()> {
        let Some((path, _)) = &self.kept else {
            return Ok(());
        };
        fs::remove_file(path).step(|| format!("cannot remove {}", path.display()))
    }
}

// Complete after every statement.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
