//! Damage of any kind is answered with an error or with the same model, never with a panic, and costs no memory.

use super::{ckpt, open, refusal, store, stored, told, weights};
use ballast_model::{OpenOptions, Preset, SavePrecision, TextSettings, init_model};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A single file, a folder beside it, and a `.ckpt`: made once.
struct Sound {
    place: TempDir,
    single: Vec<u8>,
    unet: Vec<u8>,
    ckpt: Vec<u8>,
    legacy: Vec<u8>,
    weights: BTreeMap<String, Vec<u32>>,
    /// Of the two pickles.
    pickled: BTreeMap<String, Vec<u32>>,
}

fn sound() -> &'static Sound {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    SOUND.get_or_init(|| {
        let place = tempfile::tempdir().unwrap();
        let model = init_model(Preset::Tiny, 8);
        let single = place.path().join("single.safetensors");
        model.save_single_file(&single, SavePrecision::Fp32, &BTreeMap::new()).unwrap();
        model.save_diffusers(&place.path().join("config"), SavePrecision::Fp32).unwrap();
        Sound {
            single: std::fs::read(&single).unwrap(),
            unet: std::fs::read(place.path().join("config/unet/diffusion_pytorch_model.safetensors")).unwrap(),
            ckpt: ckpt("tiny_sd1"),
            legacy: ckpt("tiny_sd1_legacy"),
            weights: weights(&model),
            pickled: pickled(place.path()),
            place,
        }
    })
}

/// The weights of the pickles; also divides the folder's UNet, for the files of an index.
fn pickled(place: &Path) -> BTreeMap<String, Vec<u32>> {
    let path = place.join("sound.ckpt");
    std::fs::write(&path, ckpt("tiny_sd1")).unwrap();
    let options = OpenOptions { config: Some(place.join("config")), ..OpenOptions::default() };
    let found = weights(&open(&path, &options).unwrap());
    copy(&place.join("config"), &place.join("shards"));
    super::roundtrip::divide(&place.join("shards/unet"));
    found
}

impl Sound {
    fn options(&self) -> OpenOptions {
        OpenOptions { config: Some(self.place.path().join("config")), ..OpenOptions::default() }
    }
}

/// Damage at a place, which is given as a share of the file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(u8),
    Overwrite(Vec<u8>),
    Cut(u16),
    Insert(Vec<u8>),
    Truncate,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (0..8u8).prop_map(Damage::Flip),
        3 => proptest::collection::vec(any::<u8>(), 1..12).prop_map(Damage::Overwrite),
        1 => (1..300u16).prop_map(Damage::Cut),
        1 => proptest::collection::vec(any::<u8>(), 1..12).prop_map(Damage::Insert),
        1 => Just(Damage::Truncate),
    ]
}

/// Places at the front, where headers and pickles are, at the end, where a zip's directory is, and anywhere.
fn place() -> impl Strategy<Value = (u8, f64)> {
    (0..4u8, 0.0..1.0)
}

fn damaged(bytes: &[u8], (region, share): (u8, f64), damage: &Damage) -> (usize, Vec<u8>) {
    let length = bytes.len();
    let within = |start: usize, end: usize| start + ((end - start) as f64 * share) as usize;
    let at = match region {
        0 => within(0, 64),
        1 => within(0, length.min(60_000)),
        2 => within(length - 60_000, length),
        _ => within(0, length),
    };
    let at = at.min(length - 1);
    let mut changed = bytes.to_vec();
    match damage {
        Damage::Flip(bit) => changed[at] ^= 1 << bit,
        Damage::Overwrite(new) => {
            let end = (at + new.len()).min(length);
            changed[at..end].copy_from_slice(&new[..end - at]);
        }
        Damage::Cut(count) => drop(changed.drain(at..(at + usize::from(*count)).min(length))),
        Damage::Insert(new) => drop(changed.splice(at..at, new.iter().copied())),
        Damage::Truncate => changed.truncate(at),
    }
    (at, changed)
}

fn header_end(file: &[u8]) -> usize {
    8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize
}

/// Whether the damage lies among numbers that have no checksum: then they may be others, but as many.
fn check(path: &Path, options: &OpenOptions, is_among_numbers: bool) -> Result<(), TestCaseError> {
    check_for(&sound().weights, path, options, is_among_numbers)
}

fn check_for(
    expected: &BTreeMap<String, Vec<u32>>,
    path: &Path,
    options: &OpenOptions,
    is_among_numbers: bool,
) -> Result<(), TestCaseError> {
    let result = open(path, options);
    if let Some(taken) = memory_taken() {
        prop_assert!(taken < MEMORY_MAX, "{taken} bytes of memory");
    }
    match result {
        Err(error) => prop_assert!(!told(&error).is_empty()),
        Ok(model) => {
            let found = weights(&model);
            if !is_among_numbers {
                prop_assert!(&found == expected, "another model");
            }
            let finite = found.values().flatten().all(|bits| f32::from_bits(*bits).is_finite());
            prop_assert!(finite && found.keys().eq(expected.keys()));
            // The text encoder has a vector for whatever the tokenizer says.
            let settings = TextSettings { clip_skip: 1, long_prompts: true };
            let states = model.encode_prompts(&["a red boat, <|endoftext|> größer!", ""], settings).unwrap();
            prop_assert!(states.iter().all(|states| states.dims()[1] % 77 == 0));
        }
    }
    Ok(())
}

/// The tests of this program need a hundred megabytes, side by side.
const MEMORY_MAX: u64 = 1 << 30;

/// The most that this process has had in memory so far, where the system says.
fn memory_taken() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// More by `PROPTEST_CASES=5000`.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_single_file_is_refused_or_the_same(place in place(), damage in damage()) {
        let (at, bytes) = damaged(&sound().single, place, &damage);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        check(&path, &sound().options(), at + 12 > header_end(&sound().single))?;
        // With the configurations of its own metadata, which may be damaged too.
        check(&path, &OpenOptions::default(), at + 12 > header_end(&sound().single))?;
    }

    #[test]
    fn a_damaged_file_of_a_folder_is_refused_or_the_same(place in place(), damage in damage()) {
        let (at, bytes) = damaged(&sound().unet, place, &damage);
        let folder = tempfile::tempdir().unwrap();
        copy(&sound().place.path().join("config"), folder.path());
        std::fs::write(folder.path().join("unet/diffusion_pytorch_model.safetensors"), bytes).unwrap();
        check(folder.path(), &OpenOptions::default(), at + 12 > header_end(&sound().unet))?;
    }

    #[test]
    fn a_damaged_archive_of_a_pickle_is_refused_or_the_same(place in place(), damage in damage()) {
        let (_, bytes) = damaged(&sound().ckpt, place, &damage);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.ckpt");
        std::fs::write(&path, bytes).unwrap();
        check_for(&sound().pickled, &path, &sound().options(), false)?;
    }

    /// Without checksums, a pickle can be damaged into another sound one (the numbers of two tensors exchanged), so only
    /// that it is read whole or refused.
    #[test]
    fn a_damaged_pickle_of_the_old_format_is_refused_or_whole(place in place(), damage in damage()) {
        let (_, bytes) = damaged(&sound().legacy, place, &damage);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.ckpt");
        std::fs::write(&path, bytes).unwrap();
        check_for(&sound().pickled, &path, &sound().options(), true)?;
    }

    /// A name that became another's is refused: every file has its own tensors.
    #[test]
    fn a_damaged_index_is_refused_or_the_same(share in 0.0..1.0, damage in damage()) {
        let folder = tempfile::tempdir().unwrap();
        copy(&sound().place.path().join("shards"), folder.path());
        let path = folder.path().join("unet/diffusion_pytorch_model.safetensors.index.json");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, damaged_small(&bytes, share, &damage)).unwrap();
        check(folder.path(), &OpenOptions::default(), false)?;
    }

    #[test]
    fn damaged_tokenizer_files_are_refused_or_fit(file in 0..4usize, share in 0.0..1.0, damage in damage()) {
        let name = ["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"][file];
        let folder = tempfile::tempdir().unwrap();
        copy(&sound().place.path().join("config"), folder.path());
        let path = folder.path().join("tokenizer").join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, damaged_number_or_byte(&bytes, share, &damage)).unwrap();
        check(folder.path(), &OpenOptions::default(), false)?;
    }

    #[test]
    fn damaged_configurations_are_refused_or_fit(file in 0..5usize, share in 0.0..1.0, damage in damage()) {
        let name = [
            "unet/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "scheduler/scheduler_config.json",
            "model_index.json",
        ][file];
        let folder = tempfile::tempdir().unwrap();
        copy(&sound().place.path().join("config"), folder.path());
        let path: PathBuf = folder.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, damaged_number_or_byte(&bytes, share, &damage)).unwrap();
        check(folder.path(), &OpenOptions::default(), true)?;
    }
}

/// A digit for a digit is the damage that parses.
fn damaged_number_or_byte(bytes: &[u8], share: f64, damage: &Damage) -> Vec<u8> {
    let digits: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
    match (damage, digits.is_empty()) {
        (Damage::Overwrite(new), false) => {
            let at = digits[(digits.len() as f64 * share) as usize];
            let mut changed = bytes.to_vec();
            changed.splice(at..=at, new.iter().map(|byte| b'0' + byte % 10));
            changed
        }
        _ => damaged_small(bytes, share, damage),
    }
}

fn damaged_small(bytes: &[u8], share: f64, damage: &Damage) -> Vec<u8> {
    let padded = [bytes, &vec![b' '; 60_000]].concat();
    let at = (bytes.len() as f64 * share) / padded.len() as f64;
    damaged(&padded, (3, at), damage).1
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in super::files(from) {
        let target = to.join(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, bytes).unwrap();
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    copy(&sound().place.path().join("config"), folder.path());
    let vocab = folder.path().join("tokenizer/vocab.json");
    let mut tokens: serde_json::Value = serde_json::from_slice(&std::fs::read(&vocab).unwrap()).unwrap();
    let count = tokens.as_object().unwrap().len();
    tokens["one-too-many</w>"] = count.into();
    std::fs::write(&vocab, tokens.to_string()).unwrap();
    let said = refusal(folder.path());
    assert!(said.contains(&format!("has {} tokens, its text encoder knows {count}", count + 1)), "{said}");
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_their_key() {
    let folder = tempfile::tempdir().unwrap();
    for (value, key) in [
        (f32::NAN, "first_stage_model.decoder.conv_out.bias"),
        (f32::INFINITY, "model.diffusion_model.out.2.weight"),
        (f32::NEG_INFINITY, "cond_stage_model.transformer.text_model.final_layer_norm.weight"),
    ] {
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, &sound().single).unwrap();
        let mut tensors = stored(&path);
        *tensors.get_mut(key).unwrap().1.last_mut().unwrap() = value.to_bits();
        store(&path, &tensors, &[]);
        let said = refusal(&path);
        assert!(said.contains(&format!("`{key}` has a value that is NaN or infinite")), "{said}");
    }
}

#[test]
fn headers_that_ask_for_terabytes_are_refused_with_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = br#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    let write = |claimed: u64| {
        std::fs::write(&path, [&claimed.to_le_bytes()[..], header, &[0; 64]].concat()).unwrap();
    };
    write(header.len() as u64);
    assert!(refusal(&path).contains("`a` lies beyond its end"), "{}", refusal(&path));
    write(1 << 40);
    assert!(refusal(&path).contains("a header of 1099511627776 bytes"), "{}", refusal(&path));
    // A configuration that asks for them.
    copy(&sound().place.path().join("config"), folder.path());
    let config = folder.path().join("text_encoder/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let scheduler = folder.path().join("scheduler/scheduler_config.json");
    let schedule = std::fs::read_to_string(&scheduler).unwrap();
    std::fs::write(&scheduler, schedule.replace("1000", "1000000000000")).unwrap();
    assert!(refusal(folder.path()).contains("num_train_timesteps is 1000000000000"), "{}", refusal(folder.path()));
    std::fs::write(&scheduler, schedule).unwrap();
    for (key, value) in [("num_hidden_layers", 1u64 << 40), ("vocab_size", 1 << 60), ("intermediate_size", 1 << 21)] {
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[key] = value.into();
        std::fs::write(&config, json.to_string()).unwrap();
        let said = refusal(folder.path());
        assert!(said.contains(&format!("{key} is {value}")) && said.contains("text_encoder/config.json"), "{said}");
    }
}

#[test]
fn keys_that_do_not_fit_a_single_file_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &sound().single).unwrap();
    let mut tensors = stored(&path);
    let gone: Vec<String> =
        tensors.keys().filter(|key| key.starts_with("first_stage_model.decoder.mid")).cloned().collect();
    gone.iter().for_each(|key| drop(tensors.remove(key)));
    tensors.get_mut("model.diffusion_model.out.2.weight").unwrap().0 = vec![16, 4, 3, 3];
    tensors.insert("model.diffusion_model.extra.weight".to_owned(), (vec![1], vec![0]));
    store(&path, &tensors, &[]);
    let options = sound().options();
    let said = told(&open(&path, &options).unwrap_err());
    for part in [
        "missing: `first_stage_model.decoder.mid.",
        &format!("and {} more", gone.len() - 8),
        "not expected: `model.diffusion_model.extra.weight`",
        "`model.diffusion_model.out.2.weight: [16, 4, 3, 3] instead of [4, 16, 3, 3]`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
