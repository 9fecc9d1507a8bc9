//! Data roots in all forms: lists of roots, manifests, folders with a number in front of their names.

use std::path::PathBuf;

use super::*;

fn scan(paths: &[PathBuf]) -> Result<Dataset, DatasetError> {
    Dataset::scan(&DataConfig { root: Some(paths.to_vec().into()), ..DataConfig::default() })
}

/// Writes a manifest beside the images and scans it.
fn manifest(root: &Root, text: &str) -> Result<Dataset, DatasetError> {
    let path = root.path().join("list.json");
    fs::write(&path, text).unwrap();
    scan(&[path])
}

fn captions(dataset: &Dataset) -> Vec<(&str, String)> {
    dataset.samples.iter().map(|sample| (sample.path.as_str(), sample.caption.text())).collect()
}

#[test]
fn several_roots_are_one_dataset() {
    let root = Root::new().images("x/train", 1).images("y/train/sub", 2).file("x/train/multiply.txt", "2");
    let root = root.file("y/train/global.yaml", "flip_p: 0.25").file("x/train/0000.txt", "from x");
    let dataset = scan(&[root.path().join("y/train"), root.path().join("x/train")]).unwrap();
    assert_eq!(paths(&dataset), ["x/train/0000.bmp", "y/train/sub/0000.bmp", "y/train/sub/0001.bmp"]);
    let folders: Vec<&str> = dataset.folders.iter().map(|folder| folder.path.as_str()).collect();
    assert_eq!(folders, ["x/train", "y/train/sub"]);
    assert_eq!(dataset.samples[0].multiply, Decimal::from(2u64));
    assert_eq!(captions(&dataset)[0].1, "from x");
    assert_eq!((dataset.samples[0].flip_p, dataset.samples[1].flip_p), (None, Some(0.25)));
    for sample in &dataset.samples {
        assert_eq!(fs::metadata(dataset.roots.locate(&sample.path).unwrap()).unwrap().len(), sample.bytes);
    }
    // The order in which they are given does not matter.
    let other = scan(&[root.path().join("x/train"), root.path().join("y/train")]).unwrap();
    assert_eq!(other.fingerprint, dataset.fingerprint);
    assert_eq!((other.samples, other.folders), (dataset.samples, dataset.folders));
}

#[test]
fn roots_that_share_images_are_refused() {
    let root = Root::new().images("a/b", 1);
    let (a, b) = (root.path().join("a"), root.path().join("a/b"));
    for paths in [[a.clone(), a.clone()], [a.clone(), b.clone()], [b.clone(), a.clone()]] {
        let error = scan(&paths).unwrap_err();
        assert!(matches!(error, DatasetError::Overlap { .. }), "{error}");
        assert!(error.hint().unwrap().contains("multiply.txt"));
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&b, root.path().join("link")).unwrap();
        assert!(matches!(scan(&[a, root.path().join("link")]), Err(DatasetError::Overlap { .. })));
    }
    let error = scan(&[b, "/nowhere/at/all".into()]).unwrap_err();
    assert!(matches!(error, DatasetError::Root { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn roots_linked_into_each_other_are_read_once() {
    use std::os::unix::fs::symlink;
    let root = Root::new().images("a", 1).images("b", 1);
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    symlink(&b, a.join("to_b")).unwrap();
    symlink(&a, b.join("to_a")).unwrap();
    let dataset = scan(&[a, b]).unwrap();
    assert_eq!(paths(&dataset), ["a/0000.bmp", "b/0000.bmp"]);
    for path in ["a/to_b", "b/to_a"] {
        let expected = format!("{path} is a link to another data root: not entered again");
        assert!(dataset.warnings.contains(&expected), "{:?}", dataset.warnings);
    }
}

#[test]
fn a_manifest_says_everything() {
    let root =
        Root::new().images("cats", 3).images("dogs", 2).file("cats/multiply.txt", "7").file("cats/0000.txt", "no");
    let text = r#"[
        {"image": "cats/0000.bmp", "caption": "a cat, small", "multiply": 0.1000000000000000000000001},
        {"image": "./dogs/0001.bmp", "main_prompt": "a dog", "tags": ["big", {"tag": "wet", "weight": 2}],
         "loss_scale": 0.5, "cond_dropout": 0, "flip_p": 1e-1, "batch_id": "dogs", "shuffle_tags": false},
        {"image": "cats/0002.bmp"},
        {"image": "gone/x.png"}
    ]"#;
    let dataset = manifest(&root, text).unwrap();
    let expected = [
        ("cats/0000.bmp", "a cat, small".to_owned()),
        ("cats/0002.bmp", "0002".to_owned()),
        ("dogs/0001.bmp", "a dog, wet, big".to_owned()),
    ];
    assert_eq!(captions(&dataset).iter().map(|(path, _)| *path).collect::<Vec<_>>(), expected.each_ref().map(|e| e.0));
    assert_eq!(captions(&dataset)[..2], expected[..2]);
    assert_eq!(dataset.samples[0].multiply.to_string(), "0.1000000000000000000000001");
    assert_eq!(dataset.samples[1].multiply, Decimal::ONE);
    let dog = &dataset.samples[2];
    assert_eq!((dog.loss_scale, dog.cond_dropout, dog.flip_p), (0.5, Some(0.0), Some(0.1)));
    assert_eq!(dog.batch_id.as_deref(), Some("dogs"));
    assert!(dataset.warnings.iter().any(|warning| warning.starts_with("gone/x.png was skipped")));
    assert_eq!(dataset.roots.locate("cats/0000.bmp").unwrap(), root.path().join("cats/0000.bmp"));
    // Together with a folder.
    let more = Root::new().images("more", 1);
    let dataset = scan(&[root.path().join("list.json"), more.path().join("more")]).unwrap();
    assert_eq!(paths(&dataset)[..2], ["list.json/cats/0000.bmp", "list.json/cats/0002.bmp"]);
    assert_eq!(dataset.roots.locate("list.json/cats/0000.bmp").unwrap(), root.path().join("cats/0000.bmp"));
}

#[test]
fn all_mistakes_of_a_manifest_are_named_at_once() {
    let root = Root::new().images("a", 2);
    let text = r#"[
        {"image": "a/0000.bmp"},
        {"image": "../secret.png"},
        {"picture": "a/0001.bmp"},
        7,
        {"image": "a/0001.bmp", "multiply": 0, "colour": "red"},
        {"image": "a/./0000.bmp"}]"#;
    let error = manifest(&root, text).unwrap_err();
    assert!(error.hint().is_some());
    let error = error.to_string();
    let list = root.path().join("list.json");
    let list = list.display();
    for (start, what) in [
        (format!("{list}, entry 2:3: "), "\"../secret.png\"; allowed: a path below"),
        (format!("{list}, entry 3:4: "), "has no \"image\"; allowed: "),
        (format!("{list}, entry 4:5: "), "is \"7\"; allowed: an object"),
        (format!("{list}, entry 5:6: "), "multiply is \"0\": "),
        (format!("{list}, entry 5:6: "), "\"colour\" is no key"),
        (format!("{list}, entry 6: "), "\"a/0000.bmp\" is listed already, as entry 1; allowed: each image once"),
    ] {
        assert!(
            error.lines().any(|line| line.trim().starts_with(&start) && line.contains(what)),
            "{start}{what}: {error}"
        );
    }
    let broken = manifest(&root, "[\n{\"image\": \"a/0000.bmp\"\n]").unwrap_err().to_string();
    assert!(broken.contains(&format!("{list}:3: a comma or }} is missing")), "{broken}");
    assert!(matches!(manifest(&root, "[]"), Err(DatasetError::NoImages { .. })));
    let utf16: Vec<u8> = "\u{feff}[{\"image\": \"a/0000.bmp\"}]".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(root.path().join("list.json"), utf16).unwrap();
    assert_eq!(scan(&[root.path().join("list.json")]).unwrap().samples.len(), 1);
}

#[test]
fn a_manifest_beside_a_folder_lists_none_of_its_images() {
    let root = Root::new().images("a", 1).images("b", 1).file("x.json", r#"[{"image": "a/0000.bmp"}]"#);
    let found = scan(&[root.path().join("x.json"), root.path().join("b")]).unwrap();
    assert_eq!(paths(&found), ["b/0000.bmp", "x.json/a/0000.bmp"]);
    let error = scan(&[root.path().join("x.json"), root.path().join("a")]).unwrap_err().to_string();
    assert!(error.contains("x.json, entry 1: \"a/0000.bmp\" lies in the data root "), "{error}");
}

#[test]
fn an_image_in_two_manifests_is_refused() {
    let root = Root::new().images("a", 1).file("x.json", r#"[{"image": "a/0000.bmp"}]"#);
    let root = root.file("y.json", r#"[{"image": "a/0000.bmp"}]"#);
    let error = scan(&[root.path().join("x.json"), root.path().join("y.json")]).unwrap_err().to_string();
    assert!(
        error.contains("y.json, entry 1") && error.contains("as entry 1 of ") && error.contains("x.json"),
        "{error}"
    );
}

#[test]
fn numbers_in_folder_names_count_when_asked_for() {
    let root = Root::new().images("3_a wuzzle", 2).images("1_klonk", 1).images("0_never", 1).images("plain", 1);
    let root = root.file("3_a wuzzle/0001.txt", "own").images("5_other", 1).file("5_other/multiply.txt", "0.5");
    let off = root.dataset();
    assert!(off.samples.iter().all(|sample| sample.multiply == Decimal::ONE || sample.path.starts_with("5_")));
    assert!(!off.warnings.iter().any(|warning| warning.contains("repeats_from_names")), "{:?}", off.warnings);
    let config = DataConfig { repeats_from_names: true, ..root.config() };
    let on = Dataset::scan(&config).unwrap();
    let found: Vec<(&str, String, String)> = on
        .samples
        .iter()
        .map(|sample| (sample.path.as_str(), sample.multiply.to_string(), sample.caption.text()))
        .collect();
    let expected = [
        ("0_never/0000.bmp", "1", "0000"),
        ("1_klonk/0000.bmp", "1", "klonk"),
        ("3_a wuzzle/0000.bmp", "3", "a wuzzle"),
        ("3_a wuzzle/0001.bmp", "3", "own"),
        ("5_other/0000.bmp", "0.5", "other"),
        ("plain/0000.bmp", "1", "0000"),
    ];
    assert_eq!(found, expected.map(|(path, multiply, caption)| (path, multiply.to_owned(), caption.to_owned())));
    assert!(on.warnings.iter().any(|warning| warning.starts_with("0_never: 0 in front of its name is not applied")));
    let applied = |path: &str| on.applied_files.iter().find(|file| file.path == path).map(|file| file.value.as_str());
    assert_eq!(applied("3_a wuzzle"), Some("multiply 3, caption \"a wuzzle\""));
    assert_eq!(applied("5_other"), Some("caption \"other\""));
}

#[test]
fn a_root_of_sd_scripts_is_recognised() {
    let root = Root::new().images("3_a wuzzle", 1).images("1_klonk", 1);
    let warnings = root.dataset().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("data.repeats_from_names = true")), "{warnings:?}");
}
