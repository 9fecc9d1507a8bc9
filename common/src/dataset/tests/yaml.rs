//! YAML as people make it, as they get it wrong, and as an enemy would write it.

use super::*;

/// Returns the complaint about a file beside the images of the folder `a`.
fn complaint(name: &str, text: impl AsRef<[u8]>) -> String {
    let error = Root::new().images("a", 1).file(&format!("a/{name}"), text).error();
    let (head, rest) = error.split_once("\n  ").expect("a line per problem");
    assert_eq!(head, "1 file in the data root cannot be understood");
    rest.to_owned()
}

fn multiply_of(text: impl AsRef<[u8]>) -> String {
    Root::new().images("a", 1).file("a/local.yaml", text).dataset().samples[0].multiply.to_string()
}

#[test]
fn a_multiplier_keeps_every_digit() {
    // Neither of them is a double.
    for digits in ["0.100000000000000000000000001", "9999.999999999999999999999999999", "0.300000000000000004"] {
        assert_eq!(multiply_of(format!("multiply: {digits}\n")), digits);
        assert_eq!(multiply_of(format!("multiply: '{digits}'\n")), digits);
        assert_eq!(multiply_of(format!("caption: {{multiply: {digits}}}\n")), digits);
    }
    assert_eq!(multiply_of("multiply: +2.50e0"), "2.5");
}

#[test]
fn every_usual_encoding_and_line_end_is_read() {
    let text = "# größer\r\nmultiply: 2.5\r\nmain_prompt: ein Käfer 🪲\r\n";
    let utf16 = |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(bytes).collect()
    };
    let forms = [
        text.as_bytes().to_vec(),
        text.replace("\r\n", "\n").into_bytes(),
        [b"\xef\xbb\xbf".as_slice(), text.as_bytes()].concat(),
        utf16(u16::to_le_bytes),
        utf16(u16::to_be_bytes),
    ];
    for form in forms {
        for name in ["a/local.yaml", "a/0000.yml", "global.yml"] {
            let dataset = Root::new().images("a", 1).file(name, &form).dataset();
            let sample = &dataset.samples[0];
            assert_eq!(
                (sample.multiply.to_string(), sample.caption.text()),
                ("2.5".to_owned(), "ein Käfer 🪲".to_owned())
            );
            assert!(dataset.warnings.is_empty(), "{:?}", dataset.warnings);
        }
    }
    let dataset = Root::new().images("a", 1).file("a/local.yaml", b"main_prompt: caf\xe9").dataset();
    assert_eq!(dataset.samples[0].caption.text(), "café");
    assert!(dataset.warnings[0].starts_with("a/local.yaml is neither UTF-8 nor UTF-16"), "{:?}", dataset.warnings);
}

#[test]
fn nothing_in_a_file_is_no_setting() {
    for text in ["", "\n", "# later\n", "---\n", "null\n", "~"] {
        let dataset = Root::new().images("a", 1).file("a/local.yaml", text).file("a/0000.yaml", text).dataset();
        assert_eq!(dataset.samples[0].multiply, Decimal::ONE);
        assert_eq!(dataset.warnings, ["a/local.yaml has no effect: it is empty"], "{text:?}");
    }
    assert_eq!(multiply_of("multiply: null\nflip_p: ~\n"), "1");
}

#[test]
fn unknown_keys_get_the_nearest_known_one() {
    let text = complaint("local.yaml", "# ours\nmultiply: 2\nmultipy: 3\n");
    assert!(
        text.starts_with("a/local.yaml:3: \"multipy\" is no key (did you mean `multiply`?); allowed: main_prompt, "),
        "{text}"
    );
    assert!(text.ends_with("batch_id, loss_scale"), "{text}");
    assert!(complaint("0000.yml", "Tags: [a]").starts_with("a/0000.yml:1: \"Tags\" is no key (did you mean `tags`?)"));
    assert!(!complaint("local.yaml", "entirely: else").contains("did you mean"));
    let text = complaint("local.yaml", "tags:\n- red\n- {tag: blue, wieght: 2}\n");
    assert!(
        text.starts_with("a/local.yaml:3: \"wieght\" is no key (did you mean `weight`?); allowed: tag, weight"),
        "{text}"
    );
    assert!(complaint("0000.yaml", "caption:\n  prompt: a cat\n").starts_with("a/0000.yaml:2: \"prompt\" is no key"));
}

#[test]
fn bad_values_name_line_text_and_what_is_allowed() {
    let cases = [
        (
            "multiply: 2,5",
            "a/local.yaml:1: multiply is \"2,5\": a comma is no decimal point (write 2.5); allowed: one number above 0",
        ),
        ("multiply: 0", "a/local.yaml:1: multiply is \"0\": 0 is no use of an image"),
        ("multiply: .inf", "a/local.yaml:1: multiply is \".inf\": not a number"),
        ("multiply: [1, 2]", "a/local.yaml:1: multiply is a list of 2: not a single value; allowed: one number"),
        ("multiply:\n", "a/local.yaml:1: multiply is \"\": empty; allowed: one number"),
        ("\n\nflip_p: 50%", "a/local.yaml:3: flip_p is \"50%\": not a number; allowed: one number from 0 to 1"),
        ("cond_dropout: 1.5", "a/local.yaml:1: cond_dropout is \"1.5\": over 1; allowed: one number from 0 to 1"),
        ("loss_scale: nan", "a/local.yaml:1: loss_scale is \"nan\": not a number; allowed: one number"),
        ("rating: good", "a/local.yaml:1: rating is \"good\": not a number"),
        ("max_caption_length: 1.5", "a/local.yaml:1: max_caption_length is \"1.5\": not a whole number above 0"),
        ("shuffle_tags: 1", "a/local.yaml:1: shuffle_tags is \"1\": neither; allowed: true or false"),
        ("batch_id: ''", "a/local.yaml:1: batch_id is \"\": empty; allowed: one line of text"),
        ("batch_id: |\n  a\n  b\n", "a/local.yaml:2: batch_id is \"a\\nb\\n\": more than one line; allowed: one line"),
        ("tags: red, blue", "a/local.yaml:1: tags is \"red, blue\"; allowed: a list of texts"),
        ("tags: [red, '']", "a/local.yaml:1: a tag is \"\"; allowed: a list of texts"),
        ("tags: [[red]]", "a/local.yaml:1: a tag is a list of 1; allowed: a list of texts"),
        ("tags: [{weight: 2}]", "a/local.yaml:1: a tag has no text; allowed: a list of texts"),
        ("tags: [{tag: red, weight: -1}]", "a/local.yaml:1: weight is \"-1\": below 0; allowed: one number, 0 or more"),
        ("main_prompt: {a: b}", "a/local.yaml:1: main_prompt is a mapping; allowed: text, or a list of texts"),
        ("main_prompt: []", "a/local.yaml:1: main_prompt is an empty list; allowed: text, or a list of texts"),
        ("caption: [a]", "a/local.yaml:1: caption is a list of 1; allowed: text, or a mapping of the same keys"),
        ("- multiply: 2", "a/local.yaml:1: is a list of 1; allowed: keys with values"),
        ("just text", "a/local.yaml:1: is \"just text\"; allowed: keys with values"),
        ("multiply: 2\nflip_p: 0\nmultiply: 3", "a/local.yaml:3: multiply comes a second time; allowed: each key once"),
        ("a: b: c", "a/local.yaml:1: not valid YAML: "),
        ("multiply: 2\n---\nmultiply: 3", "a/local.yaml:2: a second document begins"),
    ];
    for (text, expected) in cases {
        let found = complaint("local.yaml", text);
        assert!(found.starts_with(expected), "{text:?}: {found}");
    }
}

#[test]
fn all_bad_files_of_all_kinds_come_at_once() {
    let root =
        Root::new().images("a", 2).image("b/x.bmp", 9, 9).file("a/cond_dropout.txt", "2").file("a/flip_p.txt", "half");
    let root = root
        .file("a/batch_id.txt", " \n")
        .file("global.yaml", "flip: 1")
        .file("b/local.yml", "multiply: 0\nloss_scale: x");
    let error = root.file("a/0001.yaml", "tags: x").file("b/batch_id.txt", "one\ntwo").error();
    assert!(error.starts_with("7 files in the data root cannot be understood\n"), "{error}");
    for line in [
        "  global.yaml:1: \"flip\" is no key (did you mean `flip_p`?)",
        "  a/cond_dropout.txt: contains \"2\": over 1; allowed: one number from 0 to 1",
        "  a/flip_p.txt: contains \"half\": not a number; allowed: one number from 0 to 1",
        "  a/batch_id.txt: contains \" \\n\": empty; allowed: one line of text",
        "  b/batch_id.txt: contains \"one\\ntwo\": more than one line; allowed: one line of text",
        "  b/local.yml:1: multiply is \"0\"",
        "  b/local.yml:2: loss_scale is \"x\": not a number",
        "  a/0001.yaml:1: tags is \"x\"",
    ] {
        assert!(error.lines().any(|found| found.starts_with(line)), "{line}\n{error}");
    }
}

#[test]
fn a_hundred_bad_files_are_named_and_the_rest_counted() {
    let root =
        (0..130).fold(Root::new().images("a", 130), |root, number| root.file(&format!("a/{number:04}.yaml"), "x"));
    let error = root.error();
    assert!(
        error.starts_with("130 files") && error.ends_with("… and 30 more") && error.lines().count() == 102,
        "{error}"
    );
}

#[test]
fn bombs_are_refused_at_their_first_line() {
    let mut bomb = "tags: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 0..20 {
        let next = char::from(b'b' + level);
        let one = char::from(b'a' + level);
        bomb += &format!("k{next}: &{next} [*{one}, *{one}, *{one}, *{one}, *{one}]\n");
    }
    assert!(complaint("local.yaml", &bomb).starts_with("a/local.yaml:1: anchors (&) and aliases (*) are not read"));
    assert!(complaint("0000.yaml", "tags: [*cat]").starts_with("a/0000.yaml:1: anchors"));
    assert!(
        complaint("local.yaml", "multiply: !!python/object:os.system 2").starts_with("a/local.yaml:1: type tags (!)")
    );
    let deep = format!("caption: {}multiply: 2{}", "{caption: ".repeat(50), "}".repeat(50));
    assert!(complaint("local.yaml", deep).contains("nested more than 16 deep"));
    for deep in ["[".repeat(500_000), "- ".repeat(400_000), "a: {".repeat(200_000)] {
        assert!(complaint("local.yaml", deep).starts_with("a/local.yaml:1: "));
    }
}

#[test]
fn a_megabyte_is_the_most() {
    let fits = format!("multiply: 3\n#{}", "x".repeat((1 << 20) - 13));
    assert_eq!(fits.len(), 1 << 20);
    assert_eq!(multiply_of(&fits), "3");
    for name in ["local.yaml", "0000.yaml", "multiply.txt"] {
        let text = complaint(name, format!("{fits}x"));
        assert_eq!(text, format!("a/{name}: cannot be read: longer than a megabyte"));
    }
    let dataset = Root::new().images("a", 1).file("a/0000.txt", "x".repeat((1 << 20) + 1)).dataset();
    assert_eq!(dataset.warnings, ["a/0000.txt cannot be read: longer than a megabyte"]);
}
