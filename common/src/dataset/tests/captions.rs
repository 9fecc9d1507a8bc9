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
