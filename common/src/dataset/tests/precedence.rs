//! Which of several files has the last word, and what they add to each other.

use super::*;

/// Returns what a sample ended up with, as one line.
fn settings(root: &Root, path: &str) -> String {
    let dataset = root.dataset();
    let sample = dataset.samples.iter().find(|sample| sample.path == path).expect("the image is there");
    let mut parts = vec![format!("multiply {}", sample.multiply), format!("loss_scale {}", sample.loss_scale)];
    let numbers = [("cond_dropout", sample.cond_dropout), ("flip_p", sample.flip_p), ("rating", sample.rating)];
    parts.extend(numbers.into_iter().filter_map(|(key, value)| value.map(|value| format!("{key} {value}"))));
    parts.extend(sample.batch_id.as_ref().map(|id| format!("batch_id {id}")));
    parts.extend(sample.caption.max_length.map(|length| format!("max {length}")));
    parts.extend(sample.caption.shuffle.then(|| "shuffle".to_owned()));
    parts.join(", ")
}

/// Makes `a/b/x_1.bmp` with some files, and returns its settings.
fn with(files: &[(&str, &str)]) -> String {
    let root = files.iter().fold(Root::new().image("a/b/x_1.bmp", 9, 9), |root, (path, text)| root.file(path, text));
    settings(&root, "a/b/x_1.bmp")
}

#[test]
fn every_key_by_every_route() {
    let all = "multiply: 2.50\nloss_scale: 0.5\ncond_dropout: 0.25\nflip_p: 1\nrating: 1.1\nbatch_id: faces\n\
               max_caption_length: 40\nshuffle_tags: yes\n";
    let expected =
        "multiply 2.5, loss_scale 0.5, cond_dropout 0.25, flip_p 1, rating 1.1, batch_id faces, max 40, shuffle";
    let places = [
        "global.yaml",
        "global.yml",
        "a/global.yaml",
        "a/b/global.yml",
        "a/b/local.yaml",
        "a/b/local.yml",
        "a/b/x_1.yml",
        "a/b/x_1.yaml",
    ];
    for place in places {
        assert_eq!(with(&[(place, all)]), expected, "{place}");
    }
    let nested = format!("caption:\n  {}", all.trim_end().replace('\n', "\n  "));
    assert_eq!(with(&[("a/b/x_1.yaml", &nested)]), expected);
    let texts = [
        ("a/b/multiply.txt", "2.50"),
        ("a/b/loss_scale.txt", ".5"),
        ("a/b/cond_dropout.txt", "0.25"),
        ("a/b/flip_p.txt", "1"),
        ("a/b/batch_id.txt", " faces \r\n"),
        ("a/b/shuffle_tags.txt", ""),
    ];
    let expected = "multiply 2.5, loss_scale 0.5, cond_dropout 0.25, flip_p 1, batch_id faces, shuffle";
    assert_eq!(with(&texts), expected);
}

#[test]
fn the_later_one_wins() {
    // Weakest first. Each pair of neighbours is tried alone, and then all together.
    let multiply = [
        ("global.yaml", "multiply: 1.25"),
        ("global.yml", "multiply: 1.5"),
        ("a/global.yaml", "multiply: 2"),
        ("a/b/global.yaml", "multiply: 3"),
        ("a/b/global.yml", "multiply: 4"),
        ("a/b/multiply.txt", "5"),
        ("a/b/local.yaml", "multiply: 6"),
        ("a/b/local.yml", "multiply: 7"),
        ("a/b/x_1.yml", "multiply: 8"),
        ("a/b/x_1.yaml", "multiply: 9"),
    ];
    let loss_scale = [
        ("global.yaml", "loss_scale: 2"),
        ("a/global.yml", "loss_scale: 3"),
        ("a/b/local.yaml", "loss_scale: 4"),
        ("a/b/local.yml", "loss_scale: 5"),
        ("a/b/loss_scale.txt", "6"), // unlike multiply.txt
        ("a/b/x_1.yaml", "loss_scale: 7"),
    ];
    let batch_id = [
        ("global.yaml", "batch_id: 2"),
        ("a/b/local.yaml", "batch_id: 4"),
        ("a/b/batch_id.txt", "6"), // unlike multiply.txt
        ("a/b/x_1.yaml", "batch_id: 7"),
    ];
    let chance = |key: &str| {
        let yaml = |value: &str| format!("{key}: {value}");
        [
            ("global.yaml".to_owned(), yaml("0.1")),
            (format!("a/b/{key}.txt"), "0.2".to_owned()),
            ("a/b/local.yaml".to_owned(), yaml("0.3")),
            ("a/b/x_1.yml".to_owned(), yaml("0.4")),
            ("a/b/x_1.yaml".to_owned(), yaml("0.5")),
        ]
    };
    let (cond_dropout, flip_p) = (chance("cond_dropout"), chance("flip_p"));
    fn check(key: &str, files: &[(&str, &str)]) {
        let value = |text: &str| text.rsplit(' ').next().unwrap().to_owned();
        for end in 2..=files.len() {
            for start in [0, end - 2] {
                let expected = format!("{key} {}", value(files[end - 1].1));
                let found = with(&files[start..end]);
                assert!(found.split(", ").any(|part| part == expected), "{:?}: {found}", &files[start..end]);
            }
        }
    }
    check("multiply", &multiply);
    check("loss_scale", &loss_scale);
    check("batch_id", &batch_id);
    for (key, files) in [("cond_dropout", &cond_dropout), ("flip_p", &flip_p)] {
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        check(key, &files);
    }
}

#[test]
fn folders_hand_down_what_is_global_and_nothing_else() {
    let root = Root::new().image("x.bmp", 9, 9).image("a/x.bmp", 9, 9).image("a/b/x.bmp", 9, 9).image("ab/x.bmp", 9, 9);
    let root = root
        .file("a/global.yaml", "multiply: 2")
        .file("a/local.yaml", "flip_p: 1")
        .file("a/b/flip_p.txt", "0.1234")
        .file("a/b/global.yml", "cond_dropout: 0");
    let found = ["x.bmp", "a/x.bmp", "a/b/x.bmp", "ab/x.bmp"].map(|path| settings(&root, path));
    let expected = [
        "multiply 1, loss_scale 1",
        "multiply 2, loss_scale 1, flip_p 1",
        "multiply 2, loss_scale 1, cond_dropout 0, flip_p 0.1234",
        "multiply 1, loss_scale 1",
    ];
    assert_eq!(found, expected);
    let dataset = root.dataset();
    let folders: Vec<String> = dataset.folders.iter().map(|folder| folder.multiply.to_string()).collect();
    assert_eq!(folders, ["1", "2", "2", "1"]);
    let applied: Vec<String> =
        dataset.applied_files.iter().map(|file| format!("{} {}", file.path, file.value)).collect();
    let expected = [
        "a/global.yaml multiply: 2",
        "a/local.yaml flip_p: 1",
        "a/b/global.yml cond_dropout: 0",
        "a/b/flip_p.txt 0.1234",
    ];
    assert_eq!(applied, expected);
    assert!(dataset.warnings.iter().all(|warning| warning.contains("enlarged")), "{:?}", dataset.warnings);
}

#[test]
fn shuffling_is_switched_on_by_any_level_and_off_by_none() {
    assert!(
        with(&[("global.yaml", "shuffle_tags: true"), ("a/b/x_1.yaml", "shuffle_tags: false")]).contains("shuffle")
    );
    assert!(with(&[("a/b/shuffle_tags.txt", "off"), ("a/b/local.yaml", "shuffle_tags: no")]).contains("shuffle"));
    assert!(!with(&[("a/shuffle_tags.txt", ""), ("global.yaml", "shuffle_tags: false")]).contains("shuffle"));
}

#[test]
fn an_image_has_its_own_multiplier_and_weight() {
    let root =
        Root::new().images("a", 3).file("a/multiply.txt", "2").file("a/0001.yaml", "multiply: 0.5\nloss_scale: -1");
    let dataset = root.dataset();
    let found: Vec<(String, f64)> =
        dataset.samples.iter().map(|sample| (sample.multiply.to_string(), sample.loss_scale)).collect();
    assert_eq!(found, [("2".to_owned(), 1.0), ("0.5".to_owned(), -1.0), ("2".to_owned(), 1.0)]);
    assert_eq!((dataset.folders[0].multiply, dataset.folders[0].loss_scale), (2.into(), 1.0));
    let applied: Vec<&str> = dataset.applied_files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(applied, ["a/multiply.txt", "a/*.yaml"]);
    let negative =
        dataset.warnings.iter().filter(|warning| warning.contains("NEGATIVE") && warning.contains("a/0001.yaml"));
    assert_eq!(negative.count(), 1, "{:?}", dataset.warnings);
}

#[test]
fn what_is_overruled_or_without_effect_is_named() {
    let root =
        Root::new().images("a/b", 1).file("a/b/multiply.txt", "3").file("a/b/local.yaml", "multiply: 5\nloss_scale: 2");
    let root =
        root.file("a/b/loss_scale.txt", "2.0").file("a/local.yaml", "multiply: 7").file("c/global.yaml", "flip_p: 1");
    let warnings = root.file("a/b/local.yml", "# nothing yet\n").dataset().warnings;
    let has = |text: &str| warnings.iter().filter(|warning| warning.starts_with(text)).count();
    assert_eq!(has("a/b/multiply.txt: multiply 3 is overruled by a/b/local.yaml, which says 5"), 1, "{warnings:?}");
    assert_eq!(has("a/b/local.yaml: loss_scale"), 0, "the same value is no contradiction");
    assert_eq!(has("a/local.yaml has no effect: there are no images beside it"), 1, "{warnings:?}");
    assert_eq!(has("c/global.yaml has no effect: there are no images in its folder or below"), 1, "{warnings:?}");
    assert_eq!(has("a/b/local.yml has no effect: it is empty"), 1, "{warnings:?}");
}

#[test]
fn a_negative_or_missing_weight_is_loud_wherever_it_stands() {
    let root = Root::new()
        .images("a", 2)
        .images("b", 1)
        .file("a/local.yaml", "loss_scale: -0.5")
        .file("global.yaml", "loss_scale: 0");
    let root = root.file("b/0000.yaml", "loss_scale: 0");
    let warnings = root.dataset().warnings;
    assert!(warnings.iter().any(|warning| warning.starts_with("a/local.yaml: loss_scale IS NEGATIVE")), "{warnings:?}");
    assert!(warnings.iter().any(|warning| warning.starts_with("global.yaml: loss_scale is 0")), "{warnings:?}");
    assert!(warnings.iter().any(|warning| warning.contains("loss_scale 0") && warning.contains("b/0000.yaml")));
}

#[test]
fn a_rating_is_kept_and_said_to_have_no_effect() {
    let dataset =
        Root::new().images("a", 3).file("a/local.yaml", "rating: 1.5").file("a/0002.yaml", "rating: -2").dataset();
    let ratings: Vec<Option<f64>> = dataset.samples.iter().map(|sample| sample.rating).collect();
    assert_eq!(ratings, [Some(1.5), Some(1.5), Some(-2.0)]);
    assert_eq!(
        dataset.warnings.iter().filter(|warning| warning.contains("rating")).count(),
        1,
        "{:?}",
        dataset.warnings
    );
}
