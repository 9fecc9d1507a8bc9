//! Law 1: what the disk, the threads and the place of the data root have no say in.

use proptest::prelude::*;

use super::*;
use crate::rng::Streams;
use crate::schedule::{EpochSchedule, ScheduleOptions};

const FILES: [&str; 9] =
    ["b.bmp", "a/x.bmp", "a.bmp", "a/b/c.bmp", "a-b/z.bmp", "Z.bmp", "ä.bmp", "a/10.bmp", "a/9.bmp"];

#[test]
fn samples_are_sorted_by_the_bytes_of_their_path() {
    let dataset = FILES.iter().fold(Root::new(), |root, path| root.image(path, 9, 9)).dataset();
    let expected = ["Z.bmp", "a-b/z.bmp", "a.bmp", "a/10.bmp", "a/9.bmp", "a/b/c.bmp", "a/x.bmp", "b.bmp", "ä.bmp"];
    assert_eq!(paths(&dataset), expected);
    let folders: Vec<(&str, u64)> = dataset.folders.iter().map(|folder| (&*folder.path, folder.images)).collect();
    assert_eq!(folders, [(".", 4), ("a", 3), ("a-b", 1), ("a/b", 1)]);
}

#[test]
fn hidden_names_are_skipped() {
    let root =
        Root::new().images("a", 1).image(".hidden.bmp", 9, 9).image(".folder/x.bmp", 9, 9).image("a/.x.bmp", 9, 9);
    assert_eq!(paths(&root.dataset()), ["a/0000.bmp"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_circles_are_cut() {
    use std::os::unix::fs::symlink;
    let elsewhere = Root::new().images("more", 1);
    let root = Root::new().images("a", 1).images("a/b", 1);
    symlink("..", root.path().join("a/b/up")).unwrap();
    symlink(root.path(), root.path().join("a/self")).unwrap();
    symlink(elsewhere.path().join("more"), root.path().join("linked")).unwrap();
    symlink("a/0000.bmp", root.path().join("one.bmp")).unwrap();
    symlink("gone", root.path().join("broken.bmp")).unwrap();
    let dataset = root.dataset();
    assert_eq!(paths(&dataset), ["a/0000.bmp", "a/b/0000.bmp", "linked/0000.bmp", "one.bmp"]);
    let named = |text: &str| dataset.warnings.iter().filter(|warning| warning.starts_with(text)).count();
    assert_eq!(
        (named("a/b/up is a link back"), named("a/self is a link back"), named("broken.bmp was skipped")),
        (1, 1, 1)
    );
}

#[cfg(unix)]
#[test]
fn names_that_would_break_a_line_are_skipped_and_named() {
    let root = Root::new().images("a", 1).image("two\nlines.bmp", 9, 9);
    let dataset = root.dataset();
    assert_eq!(paths(&dataset), ["a/0000.bmp"]);
    assert!(dataset.warnings[0].contains(r#""two\nlines.bmp" was skipped"#), "{:?}", dataset.warnings);
}

#[test]
fn long_and_foreign_names_are_kept() {
    let long = format!("{0}/{0}/{1}.bmp", "f".repeat(120), "n".repeat(100));
    let names = ["猫/一匹の猫.bmp", "e\u{301}.bmp", "é.bmp", "קוף.bmp", "🐈‍⬛.bmp", "a b'c\"d.bmp", long.as_str()];
    let root = names.iter().fold(Root::new(), |root, path| root.image(path, 512, 512));
    let dataset = root.dataset();
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(paths(&dataset), expected);
    assert!(dataset.warnings.is_empty(), "{:?}", dataset.warnings);
    assert_eq!(dataset.samples.iter().find(|sample| sample.path.starts_with('猫')).unwrap().caption.text(), "一匹の猫");
    assert!(dataset.samples.iter().all(|sample| dataset.roots.locate(&sample.path).unwrap().is_file()));
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_differ_in_case_only_are_different() {
    let root =
        Root::new().image("Cat.bmp", 9, 9).image("cat.BMP", 9, 9).image("cat.bmp", 9, 9).file("cat.txt", "small");
    let dataset = root.dataset();
    let captions: Vec<(&str, String)> = dataset.samples.iter().map(|s| (s.path.as_str(), s.caption.text())).collect();
    let expected = [("Cat.bmp", "Cat"), ("cat.BMP", "small"), ("cat.bmp", "small")];
    assert_eq!(captions, expected.map(|(path, caption)| (path, caption.to_owned())));
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_named_and_never_opened() {
    let root = Root::new().images("a", 1);
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("a/socket.png")).unwrap();
    std::os::unix::fs::symlink("socket.png", root.path().join("a/link.png")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", root.path().join("a/zero.txt")).unwrap();
    std::os::unix::fs::symlink("self.png", root.path().join("a/self.png")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(root.path().join("a/pipe.png")).status();
    let has_pipe = pipe.is_ok_and(|status| status.success());
    let dataset = root.dataset();
    assert_eq!(paths(&dataset), ["a/0000.bmp"]);
    let mut names = vec!["a/link.png", "a/self.png", "a/socket.png", "a/zero.txt"];
    names.extend(has_pipe.then_some("a/pipe.png"));
    for name in names {
        let is_named = |warning: &String| warning.starts_with(&format!("{name} was skipped: "));
        assert_eq!(dataset.warnings.iter().filter(|warning| is_named(warning)).count(), 1, "{:?}", dataset.warnings);
    }
    // A manifest may name them; they are not opened either.
    let root = root.file("list.json", r#"[{"image": "a/0000.bmp"}, {"image": "a/socket.png"}, {"image": "a"}]"#);
    let config = DataConfig { root: Some(root.path().join("list.json").into()), ..DataConfig::default() };
    let dataset = Dataset::scan(&config).unwrap();
    assert_eq!(dataset.warnings.iter().filter(|warning| warning.contains("neither a file")).count(), 2);
}

#[cfg(unix)]
#[test]
fn folders_that_cannot_be_listed_are_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = Root::new().images("a", 1).images("locked", 1);
    let locked = root.path().join("locked");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(&locked).is_ok() {
        return; // root may read everything
    }
    let dataset = root.dataset();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(paths(&dataset), ["a/0000.bmp"]);
    assert!(dataset.warnings[0].starts_with("locked cannot be read and was skipped: "), "{:?}", dataset.warnings);
}

#[cfg(unix)]
#[test]
fn links_that_multiply_folders_are_cut() {
    // Every folder has two links to the next: 2¹² ways to the last.
    let root = (0..13).fold(Root::new(), |root, number| root.images(&format!(".{number}"), 1));
    for number in 0..12 {
        for name in ["x", "y"] {
            let to = root.path().join(format!(".{}", number + 1));
            std::os::unix::fs::symlink(to, root.path().join(format!(".{number}/{name}"))).unwrap();
        }
    }
    std::os::unix::fs::symlink(".0", root.path().join("start")).unwrap();
    let dataset = root.dataset();
    assert_eq!(dataset.samples.len(), 255); // eight links deep
    assert!(dataset.warnings[0].contains("link within linked folders: not entered"), "{:?}", dataset.warnings[0]);
}

#[test]
fn the_fingerprint_sees_contents_and_not_places() {
    let make = || Root::new().images("a", 3).file("a/0001.txt", "caption").file("a/multiply.txt", "2.50");
    let fingerprint = make().dataset().fingerprint;
    assert_eq!(make().dataset().fingerprint, fingerprint);
    assert_eq!(make().file("a/multiply.txt", "2.5").dataset().fingerprint, fingerprint);
    for other in [
        make().file("a/multiply.txt", "2"),
        make().file("a/0001.txt", "other"),
        make().image("a/0001.bmp", 512, 513),
        make().images("a", 4),
        make().file("a/loss_scale.txt", "0.5"),
        make().file("a/cond_dropout.txt", "0"),
        make().file("a/flip_p.txt", "0"),
        make().file("a/batch_id.txt", "x"),
        make().file("a/shuffle_tags.txt", ""),
        make().file("a/0001.txt", "capt, ion"),
        make().file("a/local.yaml", "tags: [x]"),
        make().file("a/local.yaml", "tags: [{tag: x, weight: 2}]"),
        make().file("a/local.yaml", "rating: 1"),
        make().file("a/local.yaml", "max_caption_length: 9"),
        make().file("a/0002.yaml", "multiply: 7"),
    ] {
        assert_ne!(other.dataset().fingerprint, fingerprint);
    }
    // The same settings from other files are the same dataset.
    let root = Root::new().images("a", 3).file("a/0001.yaml", "caption: caption").file("global.yml", "multiply: 2.5");
    assert_eq!(root.dataset().fingerprint, fingerprint);
}

#[test]
fn the_fingerprint_is_the_same_on_every_machine() {
    let root = Root::new().images("a", 2).image("ä/猫_1.bmp", 640, 480).file("a/multiply.txt", "0.1");
    let root =
        root.file("a/0001.yaml", "main_prompt: p\ntags: [{tag: ü, weight: 1.1}, b]\nrating: 0.3\nloss_scale: -0.7");
    let root = root.file("ä/local.yaml", "cond_dropout: 0.1\nbatch_id: x\nmax_caption_length: 70\nshuffle_tags: on");
    assert_eq!(root.dataset().fingerprint, "7ac45c9cae5b48f8394bbe2a94014d52247822616f525e110646e9e9f84cdf08");
}

fn scan_with_threads(root: &Root, threads: usize) -> Dataset {
    let config = root.config();
    Dataset::scan_with(&config, &ScanOptions { threads, cache: None, progress: &|_| {} }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn creation_order_and_threads_do_not_matter(seed in any::<u64>(), threads in 1usize..9) {
        let write = |files: &[&str]| files.iter().fold(Root::new(), |root, path| root.image(path, 40 + path.len() as u32, 50));
        let straight = write(&FILES).file("a/multiply.txt", "0.5").file("notes.md", "");
        let mut files = FILES;
        Streams::new(seed).keyed("test", &[]).shuffle(&mut files);
        let shuffled = write(&files).file("notes.md", "").file("a/multiply.txt", "0.5");
        let expected = scan_with_threads(&straight, 1);
        let found = Dataset { roots: expected.roots.clone(), ..scan_with_threads(&shuffled, threads) };
        prop_assert_eq!(&found, &expected);
        let options = ScheduleOptions::from(&crate::config::RunConfig::default());
        let hash = |dataset| EpochSchedule::compute(dataset, &options, 2).hash();
        prop_assert_eq!(hash(&found), hash(&expected));
    }

    #[test]
    fn the_case_of_extensions_does_not_matter(upper in prop::collection::vec(any::<bool>(), 9)) {
        let write = |is_upper: &dyn Fn(usize) -> bool| {
            let name = |(index, path): (usize, &&str)| match is_upper(index) {
                true => path.replace(".bmp", ".BMP"),
                false => (*path).to_owned(),
            };
            let named = FILES.iter().enumerate().map(name);
            named.fold(Root::new(), |root, path| root.image(&path, 40 + path.len() as u32, 50)).file("a/x.txt", "own")
        };
        let found = |root: Root| -> Vec<(String, u32, String, Decimal)> {
            let dataset = root.file("a/multiply.txt", "0.5").dataset();
            let of = |sample: &Sample| (sample.path.replace("BMP", "bmp"), sample.width, sample.caption.text(), sample.multiply);
            let mut all: Vec<_> = dataset.samples.iter().map(of).collect();
            all.sort();
            all
        };
        prop_assert_eq!(found(write(&|index| upper[index])), found(write(&|_| false)));
    }
}
