//! Pictures that are there twice.

use super::*;

fn find(root: &Root, cache: Option<ScanCache>) -> (Dataset, Vec<(Vec<String>, bool)>) {
    let dataset = root.dataset();
    let options = ScanOptions { threads: 2, cache, progress: &|_| {} };
    let name = |index: &usize| dataset.samples[*index].path.clone();
    let found = dataset.exact_duplicates(&options);
    let found = found.iter().map(|found| (found.samples.iter().map(name).collect(), found.captions_differ)).collect();
    (dataset, found)
}

#[test]
fn equal_files_are_found_whatever_their_names() {
    let with = |tail: &str| [bmp(40, 50), tail.as_bytes().to_vec()].concat();
    let root = Root::new().file("a/1.bmp", with("one")).file("b/2.png", with("one")).file("c/1.bmp", with("one"));
    let root = root.file("a/other.bmp", with("two")).file("b/x_1.bmp", with("three")).file("c/x_2.bmp", with("three"));
    let root = root.file("a/longer.bmp", with("longer"));
    let expected = vec![
        (vec!["a/1.bmp".to_owned(), "b/2.png".to_owned(), "c/1.bmp".to_owned()], true),
        (vec!["b/x_1.bmp".to_owned(), "c/x_2.bmp".to_owned()], false),
    ];
    assert_eq!(find(&root, None).1, expected);
    let folder = tempfile::tempdir().unwrap();
    let cache = || Some(ScanCache::at(folder.path()).trusting_at_once());
    assert_eq!(find(&root, cache()).1, expected);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(find(&root, cache()).1, expected);
    // A change is noticed, and a file that is gone is equal to none.
    fs::write(root.path().join("a/new.bmp"), with("three")).unwrap();
    fs::remove_file(root.path().join("b/x_1.bmp")).unwrap();
    assert_eq!(find(&root, cache()).1[0].0, ["a/1.bmp", "b/2.png", "c/1.bmp"]);
    assert_eq!(find(&root, cache()).1[1].0, ["a/new.bmp", "c/x_2.bmp"]);
    let (dataset, _) = find(&root, None);
    fs::remove_file(root.path().join("a/new.bmp")).unwrap();
    let options = ScanOptions { threads: 2, cache: None, progress: &|_| {} };
    assert_eq!(dataset.exact_duplicates(&options).len(), 1);
}
