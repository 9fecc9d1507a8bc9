//! Files of `torch.save`, made by PyTorch (`make_ckpt.py`): read as data, and refused where they are anything else.

use super::{ckpt, open, saved_by_torch, stored, told, weights};
use ballast_model::{
    Checkpoint, OpenOptions, PredictionType, Preset, SavePrecision, StableDiffusion, cpu_device, init_model,
};
use std::path::PathBuf;
use tempfile::TempDir;

/// A place with a model's folder, which knows the sizes that shapes do not tell, and a `.ckpt` beside it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new(preset: Preset, bytes: &[u8]) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        init_model(preset, 1).save_diffusers(&place.path("config"), SavePrecision::Fp32).unwrap();
        place.write(bytes);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(self.path("model.ckpt"), bytes).unwrap();
    }

    fn options(&self) -> OpenOptions {
        OpenOptions { config: Some(self.path("config")), ..OpenOptions::default() }
    }

    #[track_caller]
    fn refusal(&self) -> String {
        told(&open(&self.path("model.ckpt"), &self.options()).expect_err("it should be refused"))
    }
}

/// Number `j` of the tensor that is `i`-th by name, as `make_ckpt.py` has it.
#[track_caller]
fn assert_pattern(model: &StableDiffusion, unet_factor: f32) {
    for (i, (key, bits)) in weights(model).into_iter().enumerate() {
        let factor = if key.starts_with("model.diffusion_model.") { unet_factor } else { 1.0 };
        assert_pattern_of(i, &key, &bits, factor);
    }
}

#[track_caller]
fn assert_pattern_of(i: usize, key: &str, bits: &[u32], factor: f32) {
    for (j, bits) in bits.iter().enumerate() {
        let expected = (((7 * j + 13 * i) % 64) as f32 - 32.0) / 64.0 * factor;
        assert_eq!(f32::from_bits(*bits), expected, "{key}[{j}]");
    }
}

#[test]
fn the_format_from_before_pytorch_1_6_is_read() {
    let place = Place::new(Preset::Tiny, &ckpt("tiny_sd1_legacy"));
    let path = place.path("model.ckpt");
    assert_pattern(&open(&path, &place.options()).unwrap(), 1.0);
    assert_pattern(&open(&path, &OpenOptions { ema: true, ..place.options() }).unwrap(), 2.0);
}

/// One with checksums, one of the old format, and one whose writer was told to compute no checksums.
#[test]
fn pickles_in_the_place_of_safetensors_are_read_from_a_folder() {
    let place = Place::new(Preset::Tiny, &[]);
    let parts = [
        ("text_encoder", "model.safetensors", "pytorch_model.bin", "tiny_sd1_text_encoder.bin"),
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "tiny_sd1_vae.bin"),
        ("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "tiny_sd1_unet_without_crc.bin"),
    ];
    for (part, safetensors, pickle, fixture) in parts {
        std::fs::remove_file(place.path("config").join(part).join(safetensors)).unwrap();
        std::fs::write(place.path("config").join(part).join(pickle), saved_by_torch(fixture)).unwrap();
    }
    let again = place.path("again");
    let checkpoint = Checkpoint::open(&place.path("config"), &OpenOptions::default()).unwrap();
    checkpoint.write_diffusers(&again, SavePrecision::Fp32, false).unwrap();
    for (part, safetensors, ..) in parts {
        for (i, (key, (_, bits))) in stored(&again.join(part).join(safetensors)).into_iter().enumerate() {
            assert_pattern_of(i, &key, &bits, 1.0);
        }
    }
}

#[test]
fn a_single_safetensors_file_has_its_averages_too() {
    let place = Place::new(Preset::Tiny, &ckpt("tiny_sd1"));
    let plain = place.path("plain.safetensors");
    let checkpoint = Checkpoint::open(&place.path("model.ckpt"), &place.options()).unwrap();
    checkpoint.write_single_file(&plain, SavePrecision::Fp32, &Default::default(), false).unwrap();
    let mut tensors = stored(&plain);
    let unet: Vec<String> = tensors.keys().filter(|key| key.starts_with("model.diffusion_model.")).cloned().collect();
    for key in unet {
        let (shape, bits) = tensors[&key].clone();
        let doubled = bits.iter().map(|bits| (2.0 * f32::from_bits(*bits)).to_bits()).collect();
        tensors.insert(format!("model_ema.{}", key["model.".len()..].replace('.', "")), (shape, doubled));
    }
    let both = place.path("both.safetensors");
    super::store(&both, &tensors, &[]);
    assert_pattern(&open(&both, &place.options()).unwrap(), 1.0);
    let averages = OpenOptions { ema: true, ..place.options() };
    assert_pattern(&open(&both, &averages).unwrap(), 2.0);
    // One average that is missing is named, not taken from elsewhere.
    tensors.remove("model_ema.diffusion_modelout2bias").unwrap();
    super::store(&both, &tensors, &[]);
    let said = told(&open(&both, &averages).unwrap_err());
    assert!(said.contains("missing: `model.diffusion_model.out.2.bias`"), "{said}");
}

/// Where the content of an entry lies, and its entry in the directory.
fn entry(file: &[u8], name: &str) -> (std::ops::Range<usize>, usize) {
    let u = |at: usize, width: usize| file[at..at + width].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte));
    let is_entry = |at: &usize| {
        file[*at..].starts_with(b"PK\x01\x02")
            && u(at + 28, 2) == name.len()
            && file[at + 46..].starts_with(name.as_bytes())
    };
    let at = (0..file.len() - 46).rev().find(is_entry).expect("the directory has it");
    let header = u(at + 42, 4);
    let start = header + 30 + u(header + 26, 2) + u(header + 28, 2);
    (start..start + u(at + 24, 4), at)
}

/// With a checksum of the pickle that is right: whoever means harm would see to that.
fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    let (content, at) = entry(&file, "archive/data.pkl");
    let crc = crc32fast::hash(&file[content]);
    file[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
    file
}

#[test]
fn a_byte_that_changed_is_told_by_the_checksum_of_its_entry() {
    let sound = ckpt("tiny_sd1");
    let place = Place::new(Preset::Tiny, &sound);
    for name in ["archive/data/0", "archive/data/17", "archive/data.pkl"] {
        let (content, _) = entry(&sound, name);
        for at in [content.start, content.start + content.len() / 2, content.end - 1] {
            let mut changed = sound.clone();
            changed[at] ^= 0x10;
            place.write(&changed);
            let said = place.refusal();
            assert!(said.contains(&format!("`{name}` is damaged: the checksum of its bytes is")), "{said}");
        }
    }
    assert_eq!(sealed(sound.clone()), sound);
}

#[test]
fn a_damaged_file_of_the_old_format_is_refused_with_the_reason() {
    let sound = ckpt("tiny_sd1_legacy");
    let place = Place::new(Preset::Tiny, &sound);
    let cases = [
        (sound[..sound.len() - 1].to_vec(), "claims"),
        (sound[..sound.len() / 2].to_vec(), "claims"),
        (sound[..40].to_vec(), "pickle is damaged"),
        (replaced(&sound, b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe8\x03."), "version is not 1001"),
        (replaced(&sound, b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "big-endian"),
        (replaced(&sound, b"collections\nOrderedDict", b"importlib\nimport_module"), "`importlib.import_module`"),
    ];
    for (bytes, expected) in cases {
        place.write(&bytes);
        let said = place.refusal();
        assert!(said.contains(expected) && said.contains("model.ckpt"), "{expected}: {said}");
    }
}

#[test]
fn sd1_with_averages_callbacks_and_views_is_read() {
    let place = Place::new(Preset::Tiny, &ckpt("tiny_sd1"));
    let path = place.path("model.ckpt");
    let checkpoint = Checkpoint::open(&path, &place.options()).unwrap();
    let described = checkpoint.describe();
    assert_eq!((described.family, described.has_ema), ("Stable Diffusion 1.x", true));
    let notes = checkpoint.notes().to_vec();
    assert!(notes.len() == 1 && notes[0].contains("--ema"), "schedule buffers and ids are known: {notes:?}");
    assert_pattern(&checkpoint.load(&cpu_device()).unwrap(), 1.0);
    let averages = OpenOptions { ema: true, ..place.options() };
    assert_pattern(&open(&path, &averages).unwrap(), 2.0);
}

#[test]
fn sd2_with_its_unused_last_layer_is_read() {
    let place = Place::new(Preset::TinyV2, &ckpt("tiny_sd2"));
    let path = place.path("model.ckpt");
    assert_pattern(&open(&path, &place.options()).unwrap(), 1.0);
    let stated = OpenOptions { prediction_type: Some(PredictionType::VPrediction), ..OpenOptions::default() };
    let derived = Checkpoint::open(&path, &stated).unwrap();
    assert_eq!(derived.describe().prediction_type, "v_prediction");
    assert_pattern(&derived.load(&cpu_device()).unwrap(), 1.0);
}

#[test]
fn averages_are_asked_for_only_where_there_are_any() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    init_model(Preset::Tiny, 1).save_single_file(&path, SavePrecision::Fp32, &Default::default()).unwrap();
    let averages = OpenOptions { ema: true, ..OpenOptions::default() };
    assert!(told(&open(&path, &averages).unwrap_err()).contains("no EMA weights in it"));
}

#[test]
fn a_pickle_in_a_diffusers_folder_is_read_as_data_too() {
    // Of the pickle only the names and sizes matter here: every tensor of the UNet under its original name is unknown.
    let place = Place::new(Preset::Tiny, &ckpt("tiny_sd1"));
    let unet = place.path("config/unet");
    std::fs::remove_file(unet.join("diffusion_pytorch_model.safetensors")).unwrap();
    std::fs::copy(place.path("model.ckpt"), unet.join("diffusion_pytorch_model.bin")).unwrap();
    let error = told(&open(&place.path("config"), &OpenOptions::default()).unwrap_err());
    assert!(error.contains("diffusion_pytorch_model.bin") && error.contains("missing: `conv_in.weight`"), "{error}");
    assert!(error.contains("not expected: `betas`"), "{error}");
}

/// Replaces the first occurrence of some bytes by as many others.
fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|window| window == old).expect("the fixture has it");
    let mut changed = bytes.to_vec();
    changed[at..at + new.len()].copy_from_slice(new);
    changed
}

#[test]
fn a_hostile_or_damaged_file_is_refused_with_the_reason() {
    let sound = ckpt("tiny_sd1");
    let place = Place::new(Preset::Tiny, &sound);
    // The directory's entry of the first storage: method, and the sizes.
    let name = b"archive/data/0";
    let entry = sound.windows(name.len()).rposition(|window| window == name).unwrap() - 46;
    assert_eq!(&sound[entry..entry + 4], b"PK\x01\x02");
    let patched = |at: usize, bytes: &[u8]| {
        let mut changed = sound.clone();
        changed[entry + at..entry + at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let huge = [0xF0, 0xFF, 0xFF, 0xFF];
    let pickled = |old: &[u8], new: &[u8]| sealed(replaced(&sound, old, new));
    let cases: [(Vec<u8>, &str); 9] = [
        (pickled(b"collections\nOrderedDict", b"importlib\nimport_module"), "`importlib.import_module`"),
        (pickled(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"), "`torch._utils._rebuild_tensor_v9`"),
        (pickled(b"FloatStorage", b"FlootStorage"), "`torch.FlootStorage`"),
        (patched(10, &8u16.to_le_bytes()), "`archive/data/0` is compressed"),
        (patched(8, &1u16.to_le_bytes()), "`archive/data/0` is encrypted"),
        (patched(20, &[huge, huge].concat()), "`archive/data/0` claims 4294967280 bytes"),
        (patched(46, b"archive/data/Z"), "`archive/data/0`, are not in the file"),
        (sound[..sound.len() - 30].to_vec(), "cut short"),
        (sound[..sound.len() / 2].to_vec(), "cut short"),
    ];
    for (bytes, expected) in cases {
        place.write(&bytes);
        let said = place.refusal();
        assert!(said.contains(expected) && said.contains("model.ckpt"), "{expected}: {said}");
    }
}

#[test]
fn a_tensor_larger_than_its_numbers_is_refused_by_its_key() {
    // Shape (16, 4, 3, 3) of the first convolution, as pickled small integers: K\x10K\x04K\x03K\x03.
    let sound = ckpt("tiny_sd1");
    let place = Place::new(Preset::Tiny, &sound);
    place.write(&sealed(replaced(&sound, b"K\x10K\x04K\x03K\x03", b"K\xffK\xffK\xffK\xff")));
    let said = place.refusal();
    assert!(said.contains(".weight`: shape [255, 255, 255, 255]") && said.contains("do not fit a storage"), "{said}");
}
