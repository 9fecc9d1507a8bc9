//! What was read of the images and the texts beside them, remembered from start to start in the user's cache folder.
//!
//! A file is believed only while its [`Stamp`] is equal. A cache that is missing, damaged, of another version or of
//! another root is no error: everything is read and the cache written anew. It is written under another name first, so
//! that several processes may use it at once.
//!
//! The format: [`MAGIC`], the root's path, then the folders, each with its files, then the blake3 hash of all before it.

mod codec;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use super::header::Header;
use super::stamp::Stamp;
use super::text::Text;
use codec::{Reader, put_bytes};

/// Every version of ballast reads everything anew: what makes an image usable may have changed.
const MAGIC: &[u8] = concat!("ballast scan cache 1, ", env!("CARGO_PKG_VERSION"), "\n").as_bytes();

const HASH_BYTES: usize = blake3::OUT_LEN;

/// Fewer images are read in less than a tenth of a second.
const LEAST_IMAGES: usize = 1000;

/// Where caches lie, and from how many images on they are worth it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanCache {
    folder: PathBuf,
    least_images: usize,
    /// How much later than now a scan begins, for tests that cannot wait until files have settled.
    lead: Duration,
}

impl ScanCache {
    /// Returns the user's: `ballast/scan` in `XDG_CACHE_HOME`, else in `.cache` in `HOME`; on Windows in `LOCALAPPDATA`. None
    /// where there is no such place.
    pub fn of_user() -> Option<Self> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = if cfg!(windows) {
            path("LOCALAPPDATA")
        } else {
            path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")))
        };
        home.map(|home| Self {
            folder: home.join("ballast").join("scan"),
            least_images: LEAST_IMAGES,
            lead: Duration::ZERO,
        })
    }

    /// Returns caches in a folder, for roots of any size.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), least_images: 0, lead: Duration::ZERO }
    }

    #[cfg(test)]
    pub(super) fn trusting_at_once(self) -> Self {
        Self { lead: Duration::from_secs(3600), ..self }
    }

    /// Returns the moment that stamps have to be older than.
    pub(super) fn start(cache: Option<&Self>) -> SystemTime {
        SystemTime::now() + cache.map_or(Duration::ZERO, |cache| cache.lead)
    }

    pub(super) fn is_worth(&self, images: usize) -> bool {
        images >= self.least_images.max(1)
    }

    /// Reads what is known of the files below a root, or nothing. `what` tells its caches apart.
    pub(super) fn load(&self, root: &Path, what: &str) -> KnownFiles {
        let place = self.place(root, what);
        match KnownFiles::load(&place) {
            Ok(known) => known,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::debug!(cache = %place.path.display(), %error, "the scan's cache is not used");
                }
                KnownFiles { place: Some(place), ..KnownFiles::default() }
            }
        }
    }

    fn place(&self, root: &Path, what: &str) -> Place {
        let real = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        let root = real.as_os_str().as_encoded_bytes().to_vec();
        let name = blake3::hash(&root).to_hex();
        Place { path: self.folder.join(format!("{}.{what}", &name[..32])), root }
    }
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    /// The root's real path.
    root: Vec<u8>,
}

/// What is known of a file's content.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Image(Result<Header, String>),
    Text(Text),
    Hash([u8; HASH_BYTES]),
}

/// What an earlier scan knew. Files are looked up in the bytes as they lie in the cache, so that loading costs little.
#[derive(Debug, Default)]
pub(super) struct KnownFiles {
    place: Option<Place>,
    bytes: Vec<u8>,
    /// Which of the entries are a folder's.
    folders: HashMap<String, Range<usize>>,
    /// Where the entry of each file begins, sorted by name within a folder.
    entries: Vec<usize>,
    /// Whether the file of each entry is still there, with the same stamp.
    used: Vec<AtomicBool>,
}

impl KnownFiles {
    fn load(place: &Place) -> io::Result<Self> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is damaged or of another version");
        let bytes = fs::read(&place.path)?;
        let body = bytes.len().checked_sub(HASH_BYTES).filter(|_| bytes.starts_with(MAGIC)).ok_or_else(damaged)?;
        if *blake3::hash(&bytes[..body]).as_bytes() != bytes[body..] {
            return Err(damaged());
        }
        let mut reader = Reader { bytes: &bytes[..body], at: MAGIC.len() };
        if reader.bytes().ok_or_else(damaged)? != place.root {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is of another data root"));
        }
        let (mut folders, mut entries) = (HashMap::new(), Vec::new());
        while reader.at < body {
            let first = entries.len();
            let name = folder(&mut reader, &mut entries).ok_or_else(damaged)?;
            folders.insert(name, first..entries.len());
        }
        let used = entries.iter().map(|_| AtomicBool::new(false)).collect();
        let place = Some(Place { path: place.path.clone(), root: place.root.clone() });
        Ok(Self { place, bytes, folders, entries, used })
    }

    /// Returns what is known of a file, if it still has the stamp.
    pub(super) fn content(&self, folder: &str, name: &str, stamp: &Stamp) -> Option<Content> {
        let files = self.folders.get(folder)?.clone();
        let name_at = |at: usize| Reader { bytes: &self.bytes, at }.bytes().unwrap_or_default();
        let index = self.entries[files.clone()].binary_search_by(|&at| name_at(at).cmp(name.as_bytes())).ok()?;
        let index = files.start + index;
        let mut reader = Reader { bytes: &self.bytes, at: self.entries[index] };
        reader.bytes()?;
        let mut entry = Reader { bytes: reader.bytes()?, at: 0 };
        if entry.take(Stamp::BYTES)? != stamp.to_bytes() {
            return None;
        }
        let content = entry.content()?;
        self.used[index].store(true, Ordering::Relaxed);
        Some(content)
    }

    /// Says whether a file that was known is gone or has changed.
    pub(super) fn has_lost_some(&self) -> bool {
        !self.used.iter().all(|used| used.load(Ordering::Relaxed))
    }

    /// Begins the cache that comes after this one.
    pub(super) fn successor(self) -> Option<CacheWriter> {
        let place = self.place?;
        let mut bytes = Vec::with_capacity(self.bytes.len());
        bytes.extend_from_slice(MAGIC);
        put_bytes(&mut bytes, &place.root);
        Some(CacheWriter { place, bytes })
    }
}

/// Reads a folder's name, and where its files' entries begin.
fn folder(reader: &mut Reader<'_>, entries: &mut Vec<usize>) -> Option<String> {
    let name = String::from_utf8(reader.bytes()?.to_vec()).ok()?;
    for _ in 0..reader.number()? {
        entries.push(reader.at);
        reader.bytes()?;
        reader.bytes()?;
    }
    Some(name)
}

/// A cache in the making.
pub(super) struct CacheWriter {
    place: Place,
    bytes: Vec<u8>,
}

/// A file to be remembered.
pub(super) struct Known<'a> {
    pub(super) name: String,
    pub(super) stamp: Stamp,
    pub(super) content: KnownContent<'a>,
}

/// As [`Content`], borrowed.
pub(super) enum KnownContent<'a> {
    Image(&'a Result<Header, String>),
    Text(&'a Text),
    Hash(&'a [u8; HASH_BYTES]),
}

impl CacheWriter {
    /// Adds a folder's files. Of several of one name, the first is kept.
    pub(super) fn add(&mut self, folder: &str, mut files: Vec<Known<'_>>) {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        files.dedup_by(|later, earlier| later.name == earlier.name);
        if files.is_empty() {
            return;
        }
        put_bytes(&mut self.bytes, folder.as_bytes());
        self.bytes.extend_from_slice(&(files.len() as u32).to_le_bytes());
        let mut entry = Vec::new();
        for file in files {
            entry.clear();
            entry.extend_from_slice(&file.stamp.to_bytes());
            codec::put_content(&mut entry, &file.content);
            put_bytes(&mut self.bytes, file.name.as_bytes());
            put_bytes(&mut self.bytes, &entry);
        }
    }

    /// Puts the cache in its place. Where that cannot be, the next start takes longer, and that is all.
    pub(super) fn write(mut self) {
        let hash = blake3::hash(&self.bytes);
        self.bytes.extend_from_slice(hash.as_bytes());
        let path = &self.place.path;
        if let Err(error) = write_atomically(path, &self.bytes) {
            tracing::info!(cache = %path.display(), %error, "the scan's cache cannot be written");
        }
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700); // captions are nobody else's business
    builder.create(folder)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{number}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| _ = fs::remove_file(&temporary))
}
