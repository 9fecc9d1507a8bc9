//! `multiply.txt`, `loss_scale.txt`, and what only looks like them.

use proptest::prelude::*;

use super::*;
use crate::config::Remainder;
use crate::schedule::{EpochReport, EpochSchedule, ScheduleOptions};

#[test]
fn the_table_of_the_documentation() {
    let root = Root::new().images("a", 200).images("b", 50).images("c", 100).images("d", 1000).images("b/below", 20);
    let root = root.file("b/multiply.txt", "4").file("c/multiply.txt", "2.5\n").file("d/multiply.txt", " +0.05 ");
    let dataset = root.dataset();
    assert!(dataset.warnings.is_empty(), "{:?}", dataset.warnings);
    let options = ScheduleOptions { seed: 1, micro_batch_size: 4, slots: 4, remainder: Remainder::Deck };
    for epoch in 0..3 {
        let report = EpochReport::new(&dataset, &EpochSchedule::compute(&dataset, &options, epoch));
        let counts: Vec<(&str, u64)> = report.folders.iter().map(|folder| (&*folder.path, folder.scheduled)).collect();
        assert_eq!(counts, [("a", 200), ("b", 200), ("b/below", 20), ("c", 250), ("d", 50)]);
    }
    let applied = [("b/multiply.txt", "4"), ("c/multiply.txt", "2.5"), ("d/multiply.txt", "0.05")];
    let applied = applied.map(|(path, value)| AppliedFile { path: path.to_owned(), value: value.to_owned() });
    assert_eq!(dataset.applied_files, applied);
}

#[test]
fn files_hold_for_their_own_folder_only() {
    let root = Root::new().image("x.bmp", 9, 9).image("in/y.bmp", 9, 9);
    let dataset = root.file("multiply.txt", "3").file("in/loss_scale.txt", "0.5").dataset();
    let settings: Vec<(&str, String, f64)> =
        dataset.folders.iter().map(|folder| (&*folder.path, folder.multiply.to_string(), folder.loss_scale)).collect();
    assert_eq!(settings, [(".", "3".to_owned(), 1.0), ("in", "1".to_owned(), 0.5)]);
    let of = |path: &str| dataset.samples.iter().find(|sample| sample.path == path).unwrap();
    assert_eq!((of("x.bmp").multiply, of("x.bmp").loss_scale), (3.into(), 1.0));
    assert_eq!((of("in/y.bmp").multiply, of("in/y.bmp").loss_scale), (1.into(), 0.5));
}

#[test]
fn numbers_are_read_in_every_usual_encoding() {
    let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(bytes).collect()
    };
    let forms = [b"\xef\xbb\xbf2.5\r\n".to_vec(), utf16("2.5\r\n", u16::to_le_bytes), utf16("2.5", u16::to_be_bytes)];
    for form in forms {
        let dataset = Root::new().images("a", 1).file("a/multiply.txt", form).dataset();
        assert_eq!(dataset.folders[0].multiply.to_string(), "2.5");
    }
}

#[test]
fn all_bad_files_are_reported_in_one_go() {
    let bad = [
        ("a", "2,5"),
        ("b", "0"),
        ("c", "-1"),
        ("d", "nan"),
        ("e", "inf"),
        ("f", ""),
        ("g", "two"),
        ("h", "1\n2"),
        ("i", "10001"),
    ];
    let root = bad
        .iter()
        .fold(Root::new(), |root, (folder, text)| root.images(folder, 1).file(&format!("{folder}/multiply.txt"), text));
    let root = root.images("j", 1).file("j/loss_scale.txt", "much").file("k/multiply.txt", b"\xff\xfe2");
    let error = root.error();
    assert!(error.starts_with("11 files in the data root cannot be understood\n"), "{error}");
    for (folder, text) in bad {
        let line = error.lines().find(|line| line.starts_with(&format!("  {folder}/multiply.txt: "))).unwrap();
        assert!(
            line.contains(&format!("contains {text:?}: ")) && line.contains("; allowed: one number above 0"),
            "{line}"
        );
    }
    assert!(error.contains("j/loss_scale.txt: contains \"much\": not a number; allowed: one number"));
    assert!(root.scan().unwrap_err().hint().is_some());
}

#[test]
fn a_negative_loss_scale_is_allowed_and_loud() {
    let root = Root::new().images("a", 1).file("a/loss_scale.txt", "-0.5").images("b", 1).file("b/loss_scale.txt", "0");
    let dataset = root.dataset();
    assert_eq!(dataset.samples[0].loss_scale, -0.5);
    assert!(dataset.warnings[0].starts_with("a/loss_scale.txt IS NEGATIVE"), "{:?}", dataset.warnings);
    assert!(dataset.warnings[1].starts_with("b/loss_scale.txt is 0"), "{:?}", dataset.warnings);
}

#[test]
fn misnamed_files_get_the_name_that_works() {
    let wrong = ["Multiply.txt", "multiply.txt.txt", "multiply.text", "multipy.txt", "lossscale.txt"];
    for name in wrong {
        let dataset = Root::new().images("a", 1).file(&format!("a/{name}"), "3").dataset();
        let meant = if name.starts_with('l') { "loss_scale.txt" } else { "multiply.txt" };
        assert_eq!(dataset.warnings.len(), 1, "{:?}", dataset.warnings);
        let warning = &dataset.warnings[0];
        assert!(
            warning.starts_with(&format!("a/{name} is ignored")) && warning.contains(&format!("rename it to {meant}"))
        );
        assert_eq!(dataset.folders[0].multiply, Decimal::ONE);
    }
    for (name, meant) in [
        ("cond_dropout.txt.txt", "cond_dropout.txt"),
        ("Flip_P.txt", "flip_p.txt"),
        ("batchid.txt", "batch_id.txt"),
        ("shuffle_tags", "shuffle_tags.txt"),
        ("Local.yaml", "local.yaml"),
        ("local.yml.txt", "local.yml"),
        ("globals.yaml", "global.yaml"),
    ] {
        let warnings = Root::new().images("a", 1).file(&format!("a/{name}"), "multiply: 3").dataset().warnings;
        assert_eq!(warnings, [format!("a/{name} is ignored: if it is meant to be {meant}, rename it to {meant}")]);
    }
    // The caption of an image of that name is no mistake.
    let dataset = Root::new().image("multiple.bmp", 9, 9).file("multiple.txt", "many cats").dataset();
    assert_eq!(
        (dataset.samples[0].caption.text().as_str(), dataset.warnings.iter().any(|w| w.contains("rename"))),
        ("many cats", false)
    );
}

#[test]
fn a_file_without_images_beside_it_is_named() {
    let dataset = Root::new().images("a/b", 1).file("a/multiply.txt", "3").dataset();
    assert!(dataset.warnings[0].starts_with("a/multiply.txt has no effect"), "{:?}", dataset.warnings);
    assert_eq!((dataset.samples[0].multiply, dataset.applied_files.len()), (Decimal::ONE, 0));
}

#[test]
fn ignored_files_are_counted_and_named_once() {
    let root = Root::new()
        .images("a", 1)
        .file("a/x.gif", "")
        .file("a/lonely.txt", "text")
        .file("notes.md", "")
        .file("z.zip", "");
    let warnings = root.file(".hidden/multiply.txt", "x").file("a/.DS_Store", "").dataset().warnings;
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("1 file is ignored: no image has that name: a/lonely.txt"), "{warnings:?}");
    assert!(
        warnings[1].contains("a/x.gif")
            && warnings[2].contains("2 files are ignored")
            && warnings[2].contains("notes.md, z.zip")
    );
}

/// A way to give the images of a folder their multiplier.
fn give(root: Root, route: usize, folder: &str, images: u32, multiply: &str) -> Root {
    let yaml = format!("multiply: {multiply}\n");
    let beside = |root: Root, extension: &str, text: &str| {
        (0..images).fold(root, |root, number| root.file(&format!("{folder}/{number:04}.{extension}"), text))
    };
    match route {
        0 => root.file(&format!("{folder}/multiply.txt"), multiply),
        1 => root.file(&format!("{folder}/local.yaml"), yaml),
        2 => root.file(&format!("{folder}/local.yml"), format!("caption:\n  multiply: '{multiply}'\n")),
        3 => root.file(&format!("{folder}/global.yaml"), yaml),
        4 => beside(root, "yaml", &yaml),
        5 => beside(root, "yml", &format!("{{\"multiply\": {multiply}}}")).file(&format!("{folder}/multiply.txt"), "9"),
        _ => {
            root.file(&format!("{folder}/global.yml"), "multiply: 8").file(&format!("{folder}/multiply.txt"), multiply)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn counts_are_exact_by_whatever_route_the_multiplier_came(
        folders in prop::collection::vec((1u32..6, 0usize..7, 0u64..3, 1u64..1_000_000_000), 1..5),
    ) {
        let root = folders.iter().enumerate().fold(Root::new(), |root, (index, (images, route, whole, billionths))| {
            let folder = format!("f{index}");
            give(root.images(&folder, *images), *route, &folder, *images, &format!("{whole}.{billionths:09}"))
        });
        let dataset = root.dataset();
        let options = ScheduleOptions { seed: 3, micro_batch_size: 2, slots: 2, remainder: Remainder::Deck };
        let mut totals = vec![0u64; folders.len()];
        for epoch in 0..4 {
            let report = EpochReport::new(&dataset, &EpochSchedule::compute(&dataset, &options, epoch));
            for (index, (images, _, whole, billionths)) in folders.iter().enumerate() {
                totals[index] += report.folders[index].scheduled;
                let uses = u128::from(epoch + 1) * u128::from(*images) * u128::from(whole * 1_000_000_000 + billionths);
                prop_assert_eq!(u128::from(totals[index]), (uses * 2 + 1_000_000_000) / 2_000_000_000);
            }
        }
    }
}

#[test]
fn impossible_epochs_are_refused() {
    let dataset = Root::new().images("a", 1).file("a/multiply.txt", "10000").dataset();
    let most = vec![dataset.samples[0].clone(); 200_000];
    assert!(super::super::scan::check_occurrences(&most).unwrap_err().to_string().contains("2000000000 occurrences"));
    // What counts is the image's own multiplier, not its folder's.
    let root = Root::new().images("a", 2).file("a/multiply.txt", "10000").file("a/0000.yaml", "multiply: 0.5");
    let samples: Vec<Sample> = root.dataset().samples;
    assert!(super::super::scan::check_occurrences(&vec![samples[0].clone(); 200_000]).is_ok());
}
