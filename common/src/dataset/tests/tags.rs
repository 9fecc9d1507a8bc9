//! Tags that change their order: by key, by weight, and within a length.

use std::collections::BTreeSet;

use super::*;
use crate::rng::Streams;

fn sample(yaml: &str) -> Sample {
    Root::new().image("a/x.bmp", 9, 9).file("a/x.yaml", yaml).dataset().samples.remove(0)
}

fn config(keep_tags: u32) -> DataConfig {
    DataConfig { shuffle_tags: true, keep_tags, ..DataConfig::default() }
}

fn draw(sample: &Sample, config: &DataConfig, epoch: u64, copy: u32) -> String {
    sample.caption_for(config, &Streams::new(7), epoch, copy)
}

#[test]
fn the_order_is_keyed_by_seed_epoch_image_and_copy() {
    let sample = sample("main_prompt: p\ntags: [a, b, c, d, e, f, g, h]");
    let draws: Vec<String> = (0..20)
        .flat_map(|epoch| (0..3).map(move |copy| (epoch, copy)))
        .map(|(epoch, copy)| draw(&sample, &config(0), epoch, copy))
        .collect();
    assert_eq!(draws.iter().collect::<BTreeSet<_>>().len(), draws.len(), "8! orders, 60 draws");
    for text in &draws {
        let (main, rest) = text.split_once(", ").unwrap();
        let mut tags: Vec<&str> = rest.split(", ").collect();
        tags.sort_unstable();
        assert_eq!((main, tags.concat().as_str()), ("p", "abcdefgh"));
    }
    assert_eq!(draw(&sample, &config(0), 3, 1), draws[10], "the same key, the same order");
    assert_ne!(sample.caption_for(&config(0), &Streams::new(8), 3, 1), draws[10]);
    let other = Sample { path: "a/y.bmp".to_owned(), ..sample.clone() };
    assert_ne!(draw(&other, &config(0), 3, 1), draws[10]);
    assert_eq!(draw(&sample, &DataConfig::default(), 3, 1), "p, a, b, c, d, e, f, g, h", "nobody asked for it");
}

#[test]
fn a_folder_shuffles_on_its_own() {
    let root = Root::new().image("a/x.bmp", 9, 9).file("a/x.txt", "p, a, b, c, d, e, f").file("a/shuffle_tags.txt", "");
    let sample = root.dataset().samples.remove(0);
    let draws: BTreeSet<String> = (0..10).map(|epoch| draw(&sample, &DataConfig::default(), epoch, 0)).collect();
    assert!(draws.len() > 5 && draws.iter().all(|text| text.starts_with("p, ")), "{draws:?}");
}

#[test]
fn the_first_tags_may_be_kept() {
    let sample = sample("main_prompt: p\ntags: [a, b, c, d, e, f]");
    let draws: BTreeSet<String> = (0..100).map(|epoch| draw(&sample, &config(2), epoch, 0)).collect();
    assert!(draws.iter().all(|text| text.starts_with("p, a, b, ")), "{draws:?}");
    assert!(draws.len() > 20, "24 orders of the other four");
    assert_eq!(draw(&sample, &config(100), 0, 0), "p, a, b, c, d, e, f");
}

#[test]
fn weights_sort_and_equal_ones_are_none() {
    assert_eq!(sample("tags: [a, {tag: b, weight: 2}, c, {tag: d, weight: 0.5}]").caption.text(), "x, b, a, c, d");
    assert_eq!(sample("tags: [{tag: a, weight: 3}, {tag: b, weight: 3}]").caption.text(), "x, a, b");
}

#[test]
fn the_heavy_ones_come_first_in_proportion() {
    let sample = sample("main_prompt: p\ntags: [{tag: a, weight: 1}, {tag: b, weight: 3}, {tag: c, weight: 0}]");
    let draws: Vec<String> = (0..4000).map(|epoch| draw(&sample, &config(0), epoch, 0)).collect();
    let first_b = draws.iter().filter(|text| *text == "p, b, a, c").count();
    let first_a = draws.iter().filter(|text| *text == "p, a, b, c").count();
    assert_eq!(first_a + first_b, 4000, "what weighs nothing comes last");
    // Three quarters of 4000, four standard deviations: 110.
    assert!((2890..=3110).contains(&first_b), "{first_b}");
}

#[test]
fn a_caption_stays_within_its_length() {
    // 猫 is one character of three bytes; the comma and the space behind it count.
    let sample = sample("main_prompt: 猫\ntags: [ab, cdefgh, 犬]\nmax_caption_length: 8");
    assert_eq!(
        sample.caption.text(),
        "猫, ab",
        "dropped from the end: what follows the one that does not fit goes too"
    );
    let fits = Sample { caption: Caption { max_length: Some(5), ..sample.caption.clone() }, ..sample.clone() };
    assert_eq!(fits.caption.text(), "猫, ab");
    let cut = Sample { caption: Caption { max_length: Some(4), ..sample.caption.clone() }, ..sample.clone() };
    assert_eq!(cut.caption.text(), "猫");
    let none = Sample { caption: Caption { main: "a long prompt".to_owned(), ..sample.caption.clone() }, ..sample };
    assert_eq!(none.caption.text(), "a long prompt", "the main prompt is never cut");
}

#[test]
fn a_weighted_tag_that_does_not_fit_leaves_room_for_the_next() {
    let text = "main_prompt: p\nmax_caption_length: 8\ntags: [{tag: abc, weight: 9}, {tag: long one, weight: 8}, {tag: d, weight: 1}]";
    let sample = sample(text);
    assert_eq!(sample.caption.text(), "p, abc");
    let wider = Sample { caption: Caption { max_length: Some(9), ..sample.caption.clone() }, ..sample };
    assert_eq!(wider.caption.text(), "p, abc, d");
    for epoch in 0..200 {
        let text = draw(&wider, &config(0), epoch, 0);
        assert!(text.chars().count() <= 9 && text.starts_with("p, "), "{text}");
    }
}
