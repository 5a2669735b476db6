//! Disk images for the servers that serve files.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use tempfile::TempDir;

use crate::{Peer, require};

/// Format of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's format, which knows backing files and bitmaps.
    Qcow2,
}

impl Format {
    /// Its name in QEMU's options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// A disk image in a directory of its own, removed with its last clone.
#[derive(Clone, Debug)]
pub struct Image {
    dir: Arc<TempDir>,
    format: Format,
    /// Kept as long as this image, which refers to it.
    _backing: Option<Arc<Self>>,
}

impl Image {
    /// A raw image that is one hole.
    ///
    /// # Panics
    ///
    /// When the file cannot be made.
    pub fn raw(size: u64) -> Self {
        let image = Self::new(Format::Raw, None);
        let file = File::create(image.path()).and_then(|file| file.set_len(size));
        file.expect("a sparse file can be made in our own directory");
        image
    }

    /// A qcow2 image with nothing allocated, if `qemu-img` is installed; see [`require`].
    ///
    /// # Panics
    ///
    /// When `qemu-img` fails.
    pub fn qcow2(size: u64) -> Option<Self> {
        let qemu_img = require(Peer::QemuImg)?;
        let image = Self::new(Format::Qcow2, None);
        let path = image.path();
        let args: [&Path; 5] = [
            "create".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            &path,
        ];
        let size = size.to_string();
        qemu_img
            .run(args.into_iter().chain([size.as_ref()]))
            .expect_success();
        Some(image)
    }

    /// A qcow2 image that shows this one until it is written to.
    ///
    /// # Panics
    ///
    /// When `qemu-img` fails.
    pub fn overlay(&self) -> Option<Self> {
        let qemu_img = require(Peer::QemuImg)?;
        let image = Self::new(Format::Qcow2, Some(Arc::new(self.clone())));
        let (path, backing) = (image.path(), self.path());
        let format = self.format.name();
        let options = ["create", "-q", "-f", "qcow2", "-F", format, "-b"].map(Path::new);
        qemu_img
            .run(options.into_iter().chain([&*backing, &*path]))
            .expect_success();
        Some(image)
    }

    /// Adds a bitmap that records later writes, in steps of 64 KiB.
    ///
    /// # Panics
    ///
    /// When `qemu-img` is missing or fails.
    #[must_use]
    pub fn bitmap(self, name: &str) -> Self {
        self.qemu_img_bitmap(&["--add", "--enable", "-g", "65536"], name)
    }

    /// Makes a bitmap stop recording.
    ///
    /// # Panics
    ///
    /// When `qemu-img` is missing or fails.
    #[must_use]
    pub fn stop_bitmap(self, name: &str) -> Self {
        self.qemu_img_bitmap(&["--disable"], name)
    }

    fn qemu_img_bitmap(self, options: &[&str], name: &str) -> Self {
        let qemu_img = require(Peer::QemuImg).expect("bitmaps need qemu-img");
        let path = self.path();
        let args = ["bitmap"].iter().chain(options).map(Path::new);
        qemu_img
            .run(args.chain([&*path, name.as_ref()]))
            .expect_success();
        self
    }

    /// Runs one command of `qemu-io` on it, such as `write -P 0x5a 0 64k` or `discard 0 64k`.
    ///
    /// # Panics
    ///
    /// When `qemu-io` is missing or fails.
    #[must_use]
    pub fn io(self, command: &str) -> Self {
        let qemu_io = require(Peer::QemuIo).expect("commands for an image need qemu-io");
        let path = self.path();
        let options = ["-d", "unmap", "-f", self.format.name(), "-c", command].map(Path::new);
        let said = qemu_io
            .run(options.into_iter().chain([&*path]))
            .expect_success();
        // It prints errors on standard output, and ends with success all the same.
        assert!(!said.contains("failed"), "qemu-io, {command}: {said}");
        self
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Its format.
    pub const fn format(&self) -> Format {
        self.format
    }

    fn new(format: Format, backing: Option<Arc<Self>>) -> Self {
        let dir = tempfile::Builder::new().prefix("nbd-").tempdir();
        let dir = Arc::new(dir.expect("a temporary directory can be made"));
        Self {
            dir,
            format,
            _backing: backing,
        }
    }
}
