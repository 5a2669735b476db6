//! The disks that are served.

use super::{
    named::{Named, export_name},
    objects::{ObjectOptions, Objects, Snapshots},
    overlays::Overlays,
};
use crate::{
    object::Address,
    outcome::{Context, Error, Result},
    size,
};
use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
};
use nbd_blocking::exports::{
    AnyExport, Directory, Export, ExportName, Exports, File, Listing, Memory, NamedExports, Offer,
    Unavailable,
};
use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Disks and their names.
#[derive(Args, Debug)]
#[command(next_help_heading = "Disks")]
pub(super) struct Disks {
    /// Files, block devices, disks on object storage.
    ///
    /// The latter are file:///DIRECTORY, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX
    /// and memory:. The first disk is the default export, too.
    #[arg(value_name = "[NAME=]PATH", value_parser = path_parser())]
    paths: Vec<Named<OsString>>,
    /// A disk in memory, such as 64M.
    #[arg(long, value_name = "[NAME=]SIZE", value_parser = Named::size)]
    memory: Vec<Named<u64>>,
    /// All files of a directory, also new ones.
    ///
    /// Those that come later are served, too.
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// A text for people, for each disk in order.
    ///
    /// The first one is for the first disk, and so on.
    #[arg(long, value_name = "TEXT")]
    description: Vec<String>,
    /// Refuse all writes.
    #[arg(short, long)]
    read_only: bool,
    /// Keep changes in memory or DIR, off the disks.
    ///
    /// In DIR they are in unnamed files, and gone with the server.
    #[arg(long, value_name = "DIR", num_args = 0..=1, require_equals = true)]
    #[arg(conflicts_with = "read_only")]
    overlay: Option<Option<PathBuf>>,
    /// Limit of changes to a disk, such as 1G.
    #[arg(long, value_name = "SIZE", requires = "overlay", value_parser = size::parse)]
    overlay_limit: Option<u64>,
    /// Serve this disk with TLS only.
    #[arg(long, value_name = "NAME", value_parser = export_name, help_heading = "Addresses and TLS")]
    tls_only: Vec<ExportName>,
    #[command(flatten)]
    objects: ObjectOptions,
}

fn path_parser() -> impl TypedValueParser<Value = Named<OsString>> {
    OsStringValueParser::new().try_map(|text| Named::path(&text))
}

/// The disks, opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) exports: Arc<dyn Exports>,
    /// The name of the disk, if there is a single one.
    pub(super) only: Option<ExportName>,
    /// The name of the default export.
    pub(super) default: Option<ExportName>,
    pub(super) overlays: Option<Arc<Overlays>>,
    /// Disks on object storage, if there are any.
    pub(super) objects: Option<Objects>,
}

impl Disks {
    /// Whether some disks are for clients with TLS only.
    pub(super) fn has_secrets(&self) -> bool {
        !self.tls_only.is_empty()
    }

    /// Opens everything. The disks under overlays are opened for reading, unless `commits`.
    pub(super) fn open(&self, commits: bool) -> Result<Opened> {
        let limit = self.overlay_limit.unwrap_or(u64::MAX);
        let overlays = self.overlay.as_ref();
        let overlays = overlays.map(|place| Arc::new(Overlays::new(place.clone(), limit)));
        let read_only = self.read_only || overlays.is_some() && !commits;
        let mut descriptions = self.description.iter();
        let mut describe = || descriptions.next().map_or("", String::as_str);
        let mut named: Vec<(ExportName, AnyExport)> = Vec::new();
        let mut objects = None;
        for Named { name, what } in &self.paths {
            if let Some(address) = object_address(what)? {
                let objects = match &mut objects {
                    Some(objects) => objects,
                    none => none.insert(Objects::new(&self.objects)?),
                };
                let (name, settings) = (name.clone(), &self.objects);
                let disk = objects.open(name, &address, describe(), self.read_only, settings)?;
                named.push((disk.name.clone(), AnyExport::asynchronous(disk)));
                continue;
            }
            let path = Path::new(what);
            let name = name.clone().map_or_else(|| file_name(path), Ok)?;
            let file = open_file(path, read_only)?.with_description(describe());
            named.push((name, any(file)));
        }
        for Named { name, what } in &self.memory {
            let disk = Memory::new(*what).with_description(describe());
            let name = name.clone().unwrap_or_default();
            named.push(if self.read_only {
                (name, any(disk.read_only()))
            } else {
                (name, any(disk))
            });
        }
        let directory = self.directory.as_ref();
        let directory = directory
            .map(|path| {
                let opened = Directory::open(path);
                opened.step(|| format!("cannot serve the directory {}", path.display()))
            })
            .transpose()?
            .map(|directory| directory.with_description(describe()))
            .map(|directory| {
                if read_only {
                    directory.read_only()
                } else {
                    directory
                }
            });
        if descriptions.next().is_some() {
            let (texts, disks) = (self.description.len(), named.len());
            return Err(Error::new(format!(
                "there are {texts} descriptions for {disks} disks"
            )));
        }
        if named.is_empty() && directory.is_none() {
            return Err(Error::new(
                "there is nothing to serve: give a PATH, a URI, --memory SIZE or --directory DIR",
            ));
        }
        if objects.is_none()
            && let Some(option) = self.objects.given()
        {
            return Err(Error::new(format!(
                "{option} is for disks on object storage, of which there is none"
            )));
        }
        let only = match &named[..] {
            [(name, _)] if directory.is_none() => Some(name.clone()),
            _ => None,
        };
        let default = named.first().map(|(name, _)| name.clone());
        let served = Served {
            named: self.named(named, overlays.as_ref())?,
            directory,
            tls_only: self.tls_only.iter().cloned().collect(),
            overlays: overlays.clone(),
            snapshots: objects.as_ref().map(Snapshots::new),
        };
        Ok(Opened {
            exports: Arc::new(served),
            only,
            default,
            overlays,
            objects,
        })
    }

    /// Gives each disk its name, and its overlay.
    fn named(
        &self,
        disks: Vec<(ExportName, AnyExport)>,
        overlays: Option<&Arc<Overlays>>,
    ) -> Result<NamedExports> {
        let mut exports = NamedExports::new();
        if let Some((first, _)) = disks.first() {
            exports = exports.with_default(first.clone());
        }
        let mut taken = BTreeSet::new();
        for (name, disk) in disks {
            if !taken.insert(name.clone()) {
                return Err(Error::new(format!(
                    "there are two disks of the name \"{name}\": give NAME=PATH"
                )));
            }
            let disk = match overlays {
                Some(overlays) => {
                    let disk = disk.into_sync().ok_or_else(|| {
                        Error::new(format!(
                            "--overlay: expected files, got \"{name}\", which is on object storage: \
                             `nbd object snapshot URI@NAME` keeps the disk as it is now, and costs nothing"
                        ))
                    })?;
                    let over = overlays.keep(&name, disk);
                    over.step(|| format!("cannot lay changes over \"{name}\""))?
                        .into()
                }
                None => disk,
            };
            exports = exports.with_offer(name, Offer::of(disk));
        }
        let unknown = self.tls_only.iter().find(|name| !taken.contains(*name));
        match unknown {
            Some(name) if self.directory.is_none() => Err(Error::new(format!(
                "--tls-only \"{name}\": there is no disk of this name"
            ))),
            _ => Ok(exports),
        }
    }
}

fn any(export: impl Export + 'static) -> AnyExport {
    AnyExport::from(Arc::new(export) as Arc<dyn Export>)
}

/// The address that an argument is, unless it is a path.
fn object_address(text: &OsStr) -> Result<Option<Address>> {
    let Some(text) = text.to_str().filter(|text| Address::is_meant_by(text)) else {
        return Ok(None);
    };
    let address = text.parse();
    address
        .map(Some)
        .map_err(|error: String| Error::new(format!("{text}: {error}")))
}

/// The name of a file as that of an export.
fn file_name(path: &Path) -> Result<ExportName> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.and_then(|name| ExportName::new(name).ok());
    name.ok_or_else(|| {
        Error::new(format!(
            "expected a file name that can be that of an export, got {}: give NAME=PATH",
            path.display()
        ))
    })
}

fn open_file(path: &Path, read_only: bool) -> Result<File> {
    if read_only {
        return File::open_read_only(path).step(|| format!("cannot open {}", path.display()));
    }
    File::open(path).step(|| {
        let readable = File::open_read_only(path).is_ok();
        let remedy = if readable {
            "; -r serves it read-only"
        } else {
            ""
        };
        format!("cannot open {} for writing{remedy}", path.display())
    })
}

/// Disks by name, and the files of a directory where there is no disk of that name.
#[derive(Debug)]
struct Served {
    named: NamedExports,
    directory: Option<Directory>,
    tls_only: BTreeSet<ExportName>,
    overlays: Option<Arc<Overlays>>,
    snapshots: Option<Snapshots>,
}

impl Served {
    fn is_tls_only(&self, name: &ExportName) -> bool {
        self.tls_only.contains(name)
    }

    fn find_file(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        let directory = self.directory.as_ref().ok_or_else(Unavailable::unknown)?;
        match &self.overlays {
            Some(overlays) => overlays.find(name, || directory.find(name)),
            None => directory.find(name),
        }
    }
}

impl Exports for Served {
    fn lookup(&self, name: &ExportName) -> Option<Offer> {
        self.find(name).ok()
    }

    fn find(&self, name: &ExportName) -> Result<Offer, Unavailable> {
        let offer = match self.named.lookup(name) {
            Some(offer) => offer,
            None => match self.snapshots.as_ref().and_then(|all| all.find(name)) {
                Some(found) => found?,
                None => self.find_file(name)?,
            },
        };
        let canonical = offer.name.as_ref().unwrap_or(name);
        Ok(if self.is_tls_only(canonical) {
            offer.tls_only()
        } else {
            offer
        })
    }

    fn list(&self) -> Vec<Listing> {
        let mut listed = self.named.list();
        if let Some(directory) = &self.directory {
            let files = directory.list().into_iter();
            listed.extend(files.filter(|file| self.named.lookup(&file.name).is_none()));
        }
        if let Some(snapshots) = &self.snapshots {
            listed.extend(snapshots.list());
        }
        for listing in &mut listed {
            listing.tls_only = self.is_tls_only(&listing.name);
        }
        listed
    }

    fn may_block(&self) -> bool {
        self.directory.is_some() || self.snapshots.is_some() || self.named.may_block()
    }
}
