//! Which words go with an image.

use super::*;

fn captions(root: &Root) -> Vec<String> {
    root.dataset().samples.iter().map(|sample| sample.caption.text()).collect()
}

#[test]
fn files_beside_the_image_then_its_name() {
    let root = Root::new().image("a b_1.bmp", 9, 9).image("c_1.bmp", 9, 9).image("d, e ,f_1.bmp", 9, 9);
    let root = root
        .file("a b_1.txt", " from text,  two ")
        .file("a b_1.caption", "from caption, three")
        .file("c_1.caption", "from caption\n");
    assert_eq!(captions(&root), ["from caption, three, two", "from caption", "d, e, f"]);
    let warnings = root.dataset().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("stronger file") && warning.contains("a b_1.txt")));
}

#[test]
fn an_empty_text_file_gives_way() {
    let root = Root::new().image("name_1.bmp", 9, 9).file("name_1.txt", "\u{feff} \r\n");
    assert_eq!(captions(&root), ["name"]);
    let root = root.file("name_1.caption", "better");
    assert_eq!(captions(&root), ["better"]);
}

#[test]
fn other_encodings() {
    let utf16: Vec<u8> = "\u{feff}größer".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let root = Root::new().image("a.bmp", 9, 9).file("a.txt", utf16).image("b.bmp", 9, 9).file("b.txt", b"caf\xe9");
    assert_eq!(captions(&root), ["größer", "café"]);
    assert!(root.dataset().warnings.iter().any(|warning| warning.starts_with("b.txt is neither UTF-8 nor UTF-16")));
}

#[test]
fn images_of_one_name_share_their_text() {
    let root = Root::new().image("a.bmp", 9, 9).image("a.png", 9, 9).file("a.txt", "both");
    assert_eq!(captions(&root), ["both", "both"]);
}

#[test]
fn nothing_to_say_is_said() {
    let root = Root::new().image("_1.bmp", 9, 9).image("multiply.bmp", 9, 9).file("multiply.txt", "2");
    assert_eq!(captions(&root), ["", "multiply"]);
    assert!(
        root.dataset()
            .warnings
            .iter()
            .any(|warning| warning.contains("1 file is without a caption") && warning.contains("_1.bmp"))
    );
}

#[test]
fn a_name_is_cut_at_its_first_underscore_and_split_at_commas() {
    for (name, caption) in [
        ("a cat on a mat_0012_b", "a cat on a mat"),
        ("one thing, tag a,tag b_12_x", "one thing, tag a, tag b"),
        ("plain", "plain"),
        ("_0012", ""),
        ("dots.in.names", "dots.in.names"),
    ] {
        assert_eq!(captions(&Root::new().image(&format!("{name}.bmp"), 9, 9)), [caption]);
    }
}

#[test]
fn texts_keep_their_underscores() {
    let root = Root::new().image("x_1.bmp", 9, 9).file("x_1.txt", " a cat ,blue_eyes,, \n");
    assert_eq!(captions(&root), ["a cat, blue_eyes"]);
    assert_eq!(captions(&root.file("x_1.txt", ", ,")), ["x"]);
}

/// Every route by which words reach an image, alone and together.
#[test]
fn prompts_and_tags_by_every_route() {
    let cases: [(&[(&str, &str)], &str); 18] = [
        (&[], "name, own"),
        (&[("a/x.yaml", "main_prompt: p")], "p"),
        (&[("a/x.yaml", "tags: [t, 7.50, null x]")], "name, t, 7.50, null x, own"),
        (&[("a/x.yaml", "main_prompt: p\ntags: [t, u]")], "p, t, u"),
        (&[("a/x.yaml", "caption: 'c, t'\nmain_prompt: p\ntags: [u, t]")], "c, t, u"),
        (&[("a/x.yaml", "caption: {main_prompt: c, tags: [t]}\nmain_prompt: p\ntags: [u]")], "c, t, u"),
        (&[("a/x.yaml", "caption: {tags: [t]}\nmain_prompt: p")], "p, t"),
        (&[("a/x.yaml", "main_prompt: [p, q]")], "p"),
        (&[("a/x.yaml", "main_prompt: 'p, q'")], "p, q"),
        (&[("a/local.yaml", "main_prompt: p")], "p"),
        (&[("a/local.yaml", "tags: [t]")], "name, t, own"),
        (&[("global.yaml", "main_prompt: g"), ("a/local.yaml", "tags: [t]")], "g, t"),
        (&[("global.yaml", "main_prompt: g\ntags: [u]"), ("a/x.txt", "p, t")], "p, t, u"),
        (
            &[("global.yaml", "tags: [g, t]"), ("a/global.yaml", "tags: [h]"), ("a/local.yaml", "tags: [t]")],
            "name, t, h, g, own",
        ),
        (
            &[("a/x.txt", "p, t"), ("a/x.caption", "q, u"), ("a/x.yml", "tags: [v]"), ("a/x.yaml", "tags: [w]")],
            "q, w, v, u, t",
        ),
        (&[("a/x.txt", "p, t"), ("a/x.caption", ""), ("a/x.yaml", "main_prompt: y")], "y, t"),
        (&[("a/x.txt", "p, t, u, t"), ("global.yaml", "tags: [u, g]")], "p, t, u, g"),
        (&[("a/local.yaml", "caption: 'l, m'"), ("a/local.yml", "caption: 'n, o'")], "n, o, m"),
    ];
    for (files, expected) in cases {
        // The image's name is `x` where files beside it are named, and says more where there are none.
        let root = Root::new().image("a/x.bmp", 9, 9).image("a/name, own_1.bmp", 9, 9);
        let root = files.iter().fold(root, |root, (path, text)| root.file(path, text));
        let dataset = root.dataset();
        let is_beside = files.iter().any(|(path, _)| path.starts_with("a/x."));
        let wanted = if is_beside { "a/x.bmp" } else { "a/name, own_1.bmp" };
        let sample = dataset.samples.iter().find(|sample| sample.path == wanted).unwrap();
        let expected = if is_beside { expected.replace("name", "x").replace(", own", "") } else { expected.to_owned() };
        assert_eq!(sample.caption.text(), expected, "{files:?}");
    }
}

#[test]
fn further_main_prompts_are_named() {
    let root = Root::new().images("a", 2).file("a/local.yaml", "main_prompt: [one, two, three]");
    let warnings = root.file("a/0001.yaml", "main_prompt: [x, y]").dataset().warnings;
    assert_eq!(warnings[0], "a/local.yaml: of the main_prompt list only the first is used, not: \"two\", \"three\"");
    assert!(warnings[1].contains("a/0001.yaml (\"y\")"), "{warnings:?}");
}

#[test]
fn other_writing_systems_in_names_and_captions() {
    let words =
        ["一只猫, 红色", "قطة على سجادة, أحمر", "🐈‍⬛🧶, 👩🏽‍🚀", "e\u{301}te\u{301}, n\u{303}", "кошка, рыжая", "แมว"];
    let root = words.iter().enumerate().fold(Root::new(), |root, (index, word)| {
        let root = root.image(&format!("{word}_{index}.bmp"), 9, 9).image(&format!("ж{index}.bmp"), 9, 9);
        root.file(&format!("ж{index}.txt"), word)
    });
    let found = captions(&root);
    for word in words {
        assert_eq!(found.iter().filter(|caption| *caption == word).count(), 2, "{word}: {found:?}");
    }
    let root = Root::new()
        .image("猫/x.bmp", 9, 9)
        .file("猫/local.yaml", "main_prompt: 猫\ntags: [\"赤\", {tag: 青, weight: 2}]");
    assert_eq!(captions(&root), ["猫, 青, 赤"]);
}

#[test]
fn long_names_and_paths() {
    let stem = format!("{}, {}_1", "long ".repeat(24).trim(), "tag".repeat(41));
    assert_eq!(stem.len(), 246); // the disk takes 255 bytes with the extension
    let folder = format!("{}/{}", "f".repeat(120), "g".repeat(120));
    let path = format!("{folder}/{stem}");
    assert!(path.len() > 300);
    let root = Root::new().image(&format!("{path}.bmp"), 9, 9);
    assert_eq!(captions(&root), [stem.trim_end_matches("_1")]);
    let root =
        root.file(&format!("{path}.yaml"), "multiply: 2\nmain_prompt: short").file(&format!("{path}.txt"), "a, b");
    let dataset = root.dataset();
    assert_eq!((dataset.samples[0].multiply, dataset.samples[0].caption.text()), (2.into(), "short, b".to_owned()));
}

#[test]
fn texts_that_miss_their_image_by_the_extension_are_told_so() {
    let root = Root::new().image("a.bmp", 9, 9).image("b.bmp", 9, 9).image("c.bmp", 9, 9).image("d.bmp", 9, 9);
    let root = root.file("a.bmp.txt", "x").file("b.TXT", "x").file("c.yaml.txt", "x").file("e.txt", "x");
    let warnings = root.dataset().warnings;
    let misspelt = warnings.iter().find(|warning| warning.contains("not named exactly as its image")).unwrap();
    for text in
        ["3 files", "a.bmp.txt (rename it to a.txt)", "b.TXT (rename it to b.txt)", "c.yaml.txt (rename it to c.yaml)"]
    {
        assert!(misspelt.contains(text), "{misspelt}");
    }
    assert!(warnings.iter().any(|warning| warning.contains("no image has that name: e.txt")), "{warnings:?}");
}
