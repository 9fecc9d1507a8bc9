//! What was read is remembered, and that never shows in the result.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;

/// A data root and a place for its cache, both in temporary folders.
struct Cached {
    root: Root,
    folder: TempDir,
}

impl Cached {
    fn new(root: Root) -> Self {
        Self { root, folder: tempfile::tempdir().unwrap() }
    }

    /// Scans, and says of how many images no file was opened. Files are trusted at once.
    fn scan(&self) -> (Dataset, u64) {
        self.scan_with(ScanCache::at(self.folder.path()).trusting_at_once())
    }

    fn scan_with(&self, cache: ScanCache) -> (Dataset, u64) {
        let known = Mutex::new(None);
        let progress = |at| {
            if let ScanProgress::Done { from_cache, .. } = at {
                *known.lock().unwrap() = Some(from_cache);
            }
        };
        let options = ScanOptions { threads: 3, cache: Some(cache), progress: &progress };
        let dataset = Dataset::scan_with(&self.root.config(), &options).unwrap();
        (dataset, known.into_inner().unwrap().unwrap())
    }

    /// The cache's file; there is one.
    fn file(&self) -> PathBuf {
        let files: Vec<PathBuf> = fs::read_dir(self.folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

fn small() -> Root {
    Root::new()
        .images("a", 3)
        .file("a/0001.txt", "caption")
        .images("b", 2)
        .file("b/0000.yaml", "multiply: 2")
        .file("b/broken.png", "not a picture")
}

/// Writes until the disk's clock has moved on, with the old time of change if that is wanted: what a careful forger does.
fn overwrite(path: &Path, content: &[u8], keeps_time: bool) {
    let before = fs::metadata(path).unwrap();
    loop {
        fs::write(path, content).unwrap();
        if keeps_time {
            File::options().write(true).open(path).unwrap().set_modified(before.modified().unwrap()).unwrap();
        }
        if changed(&fs::metadata(path).unwrap()) != changed(&before) {
            return;
        }
    }
}

#[cfg(unix)]
fn changed(metadata: &fs::Metadata) -> (i64, i64) {
    use std::os::unix::fs::MetadataExt as _;
    (metadata.ctime(), metadata.ctime_nsec())
}

#[cfg(not(unix))]
fn changed(metadata: &fs::Metadata) -> SystemTime {
    metadata.modified().unwrap()
}

#[test]
fn a_second_scan_opens_nothing_and_writes_nothing() {
    let cached = Cached::new(small());
    let (first, known) = cached.scan();
    assert_eq!(known, 0);
    let old = SystemTime::UNIX_EPOCH;
    File::options().write(true).open(cached.file()).unwrap().set_modified(old).unwrap();
    assert_eq!(cached.scan(), (first.clone(), 6));
    assert_eq!(fs::metadata(cached.file()).unwrap().modified().unwrap(), old);
    assert_eq!(cached.root.dataset(), first);
    // Something that is gone is forgotten.
    fs::remove_file(cached.root.path().join("a/0002.bmp")).unwrap();
    assert_eq!(cached.scan().1, 5);
    assert_ne!(fs::metadata(cached.file()).unwrap().modified().unwrap(), old);
}

#[test]
fn files_changed_a_moment_ago_are_read_again() {
    let cached = Cached::new(small());
    let cache = || ScanCache::at(cached.folder.path());
    let (first, _) = cached.scan_with(cache());
    assert_eq!(cached.scan_with(cache()), (first, 0));
}

#[test]
fn every_change_is_noticed() {
    let cached = Cached::new(small());
    cached.scan();
    let path = |path: &str| cached.root.path().join(path);
    let size = |dataset: &Dataset, index: usize| (dataset.samples[index].width, dataset.samples[index].height);
    // As many bytes as before.
    overwrite(&path("a/0000.bmp"), &bmp(640, 448), false);
    let (dataset, known) = cached.scan();
    assert_eq!((size(&dataset, 0), known), ((640, 448), 5));
    overwrite(&path("a/0001.txt"), b"CAPTION", false);
    let (dataset, known) = cached.scan();
    assert_eq!((dataset.samples[1].caption.text(), known), ("CAPTION".to_owned(), 5));
    overwrite(&path("b/broken.png"), &bmp(100, 100), false);
    assert_eq!(cached.scan().0.samples.len(), 6);
    fs::write(path("a/0002.txt"), "new").unwrap();
    assert_eq!(cached.scan().0.samples[2].caption.text(), "new");
    fs::remove_file(path("a/0001.txt")).unwrap();
    assert_eq!(cached.scan().0.samples[1].caption.text(), "0001");
    assert_eq!(cached.scan().1, 6);
}

#[cfg(unix)]
#[test]
fn a_change_with_the_old_time_put_back_is_noticed() {
    let cached = Cached::new(small());
    cached.scan();
    overwrite(&cached.root.path().join("a/0000.bmp"), &bmp(640, 448), true);
    assert_eq!(cached.scan().0.samples[0].width, 640);
    // Nor does one file pass for another that is as old and as large.
    let (a, b) = (cached.root.path().join("a/0000.bmp"), cached.root.path().join("a/0001.bmp"));
    fs::rename(&a, a.with_extension("x")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(a.with_extension("x"), &b).unwrap();
    let (dataset, _) = cached.scan();
    assert_eq!((dataset.samples[0].width, dataset.samples[1].width), (512, 640));
}

#[test]
fn a_damaged_cache_is_not_believed() {
    let cached = Cached::new(small());
    let (expected, _) = cached.scan();
    let whole = fs::read(cached.file()).unwrap();
    let cuts = [0, 1, 10, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec());
    let flips = (0..whole.len()).step_by(7).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    for bytes in cuts.into_iter().chain(flips).chain([b"something else".repeat(100)]) {
        fs::write(cached.file(), bytes).unwrap();
        assert_eq!(cached.scan(), (expected.clone(), 0));
        assert_eq!(fs::read(cached.file()).unwrap(), whole);
    }
    // Nor is the cache of another root.
    let other = Cached::new(small());
    other.scan();
    fs::write(other.file(), &whole).unwrap();
    assert_eq!(other.scan().1, 0);
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let root = small();
    let expected = root.dataset();
    fs::write(root.path().join(".file"), "").unwrap();
    let cached = Cached::new(root);
    let cache = ScanCache::at(&cached.root.path().join(".file")).trusting_at_once();
    assert_eq!(cached.scan_with(cache.clone()), (expected.clone(), 0));
    assert_eq!(cached.scan_with(cache), (expected, 0));
}

#[test]
fn several_scans_at_once_do_not_hurt_each_other() {
    let cached = Cached::new(small());
    let expected = cached.root.dataset();
    std::thread::scope(|scope| {
        let scans: Vec<_> = (0..8).map(|_| scope.spawn(|| cached.scan().0)).collect();
        scans.into_iter().for_each(|scan| assert_eq!(scan.join().unwrap(), expected));
    });
    assert_eq!(cached.scan(), (expected, 6));
}

#[derive(Debug, Clone)]
enum Edit {
    Image { number: usize, width: u32, keeps_time: bool },
    Caption { number: usize, text: char, keeps_time: bool },
    Remove { number: usize },
    Swap { one: usize, other: usize },
    Break { number: usize },
    Multiply { value: u32 },
}

fn any_edit() -> impl Strategy<Value = Edit> {
    let number = 0usize..8;
    prop_oneof![
        (number.clone(), 100u32..110, any::<bool>()).prop_map(|(number, width, keeps_time)| Edit::Image {
            number,
            width,
            keeps_time
        }),
        (number.clone(), prop::char::range('a', 'e'), any::<bool>())
            .prop_map(|(number, text, keeps_time)| Edit::Caption { number, text, keeps_time }),
        number.clone().prop_map(|number| Edit::Remove { number }),
        (number.clone(), number.clone()).prop_map(|(one, other)| Edit::Swap { one, other }),
        number.prop_map(|number| Edit::Break { number }),
        (1u32..5).prop_map(|value| Edit::Multiply { value }),
    ]
}

impl Edit {
    fn apply(&self, root: &Path) {
        let folder = |number: usize| root.join(["a", "b", "b/c"][number % 3]);
        let image = |number: usize| folder(number).join(format!("{number}.bmp"));
        let put = |path: &Path, content: &[u8], keeps_time: bool| match path.exists() {
            true => overwrite(path, content, keeps_time && cfg!(unix)),
            false => fs::write(path, content).unwrap(),
        };
        match *self {
            Edit::Image { number, width, keeps_time } => put(&image(number), &bmp(width, 100), keeps_time),
            Edit::Caption { number, text, keeps_time } => {
                put(&image(number).with_extension("txt"), text.to_string().as_bytes(), keeps_time);
            }
            Edit::Remove { number } => _ = fs::remove_file(image(number)),
            Edit::Break { number } => put(&image(number), b"BM", false),
            Edit::Multiply { value } => fs::write(root.join("b/multiply.txt"), value.to_string()).unwrap(),
            Edit::Swap { one, other } => {
                let aside = root.join("aside");
                if one != other && image(one).exists() && image(other).exists() {
                    fs::rename(image(one), &aside).unwrap();
                    fs::rename(image(other), image(one)).unwrap();
                    fs::rename(&aside, image(other)).unwrap();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_cache_never_shows(rounds in prop::collection::vec(prop::collection::vec(any_edit(), 0..6), 1..6)) {
        let root = ["a/keep.bmp", "b/keep.bmp", "b/c/keep.bmp"].iter().fold(Root::new(), |root, path| root.image(path, 9, 9));
        let cached = Cached::new(root);
        for edits in rounds {
            edits.iter().for_each(|edit| edit.apply(cached.root.path()));
            prop_assert_eq!(cached.scan().0, cached.root.dataset());
        }
        let (dataset, known) = cached.scan();
        let skipped = dataset.warnings.iter().filter(|warning| warning.contains("was skipped")).count();
        prop_assert_eq!(known as usize, dataset.samples.len() + skipped);
    }
}
