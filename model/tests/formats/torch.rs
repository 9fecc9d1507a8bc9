//! Files of `torch.save`, made by PyTorch (`make_ckpt.py`): read as data, and refused where they are anything else.

use super::{ckpt, open, told, weights};
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
        for (j, bits) in bits.into_iter().enumerate() {
            let expected = (((7 * j + 13 * i) % 64) as f32 - 32.0) / 64.0 * factor;
            assert_eq!(f32::from_bits(bits), expected, "{key}[{j}]");
        }
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
    let legacy = [b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".as_slice(), &[0; 100]].concat();
    let cases: [(Vec<u8>, &str); 10] = [
        (replaced(&sound, b"collections\nOrderedDict", b"importlib\nimport_module"), "`importlib.import_module`"),
        (replaced(&sound, b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"), "`torch._utils._rebuild_tensor_v9`"),
        (replaced(&sound, b"FloatStorage", b"FlootStorage"), "`torch.FlootStorage`"),
        (patched(10, &8u16.to_le_bytes()), "`archive/data/0` is compressed"),
        (patched(8, &1u16.to_le_bytes()), "`archive/data/0` is encrypted"),
        (patched(20, &[huge, huge].concat()), "`archive/data/0` claims 4294967280 bytes"),
        (patched(46, b"archive/data/Z"), "`archive/data/0`, are not in the file"),
        (sound[..sound.len() - 30].to_vec(), "cut short"),
        (sound[..sound.len() / 2].to_vec(), "cut short"),
        (legacy, "before PyTorch 1.6"),
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
    place.write(&replaced(&sound, b"K\x10K\x04K\x03K\x03", b"K\xffK\xffK\xffK\xff"));
    let said = place.refusal();
    assert!(said.contains(".weight`: shape [255, 255, 255, 255]") && said.contains("do not fit a storage"), "{said}");
}
