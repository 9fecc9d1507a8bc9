//! Every form of a model on disk: what is written is what is read, what others write is read, and what is damaged,
//! hostile or of another kind is refused with its name.

mod damaged;
mod roundtrip;
mod torch;

use ballast_common::error_chain as told;
use ballast_model::{Checkpoint, CheckpointError, OpenOptions, SavePrecision, StableDiffusion, cpu_device};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

fn open(path: &Path, options: &OpenOptions) -> Result<StableDiffusion, CheckpointError> {
    Checkpoint::open(path, options)?.load(&cpu_device())
}

/// Why a model is not read.
#[track_caller]
fn refusal(path: &Path) -> String {
    told(&open(path, &OpenOptions::default()).expect_err("it should be refused"))
}

/// All weights by their original names, as bits.
fn weights(model: &StableDiffusion) -> BTreeMap<String, Vec<u32>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    model.save_single_file(&path, SavePrecision::Fp32, &BTreeMap::new()).unwrap();
    stored(&path).into_iter().map(|(key, (_, bits))| (key, bits)).collect()
}

/// Shapes and bits of a file in f32.
fn stored(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let bits = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    file.tensors().into_iter().map(|(key, view)| (key, (view.shape().to_vec(), bits(view.data())))).collect()
}

/// Writes a file in f32.
fn store(path: &Path, tensors: &BTreeMap<String, (Vec<usize>, Vec<u32>)>, metadata: &[(&str, &str)]) {
    let bytes: Vec<Vec<u8>> =
        tensors.values().map(|(_, bits)| bits.iter().flat_map(|b| b.to_le_bytes()).collect()).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((key, (shape, _)), bytes)| (key, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let metadata = metadata.iter().map(|(key, word)| ((*key).to_owned(), (*word).to_owned())).collect();
    std::fs::write(path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
}

/// All files below a folder with their content.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap().map(Result::unwrap) {
        let name = PathBuf::from(entry.file_name());
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(path, bytes)| (name.join(path), bytes)));
        } else {
            found.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// A file of `torch.save`, as `make_ckpt.py` made it.
fn ckpt(name: &str) -> Vec<u8> {
    saved_by_torch(&format!("{name}.ckpt"))
}

fn saved_by_torch(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(format!("{name}.zz"));
    let mut bytes = Vec::new();
    flate2::read::ZlibDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}
