//! The single-file layout of the original Stable Diffusion repositories: all components in one safetensors file, under
//! the original names.

use super::precision::encode;
use super::tensors::{Outgoing, write_header};
use super::values::{ComponentShapes, Values};
use super::{CheckpointError, ModelParts, SavePrecision, atomic, metadata};
use crate::clip::ClipTextConfig;
use crate::params::NamedShape;
use crate::{clip, unet, vae};
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor of a single file, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SingleFileTensor {
    /// Key in the file.
    pub(crate) key: String,
    /// Shape in the file.
    pub(crate) shape: Vec<usize>,
    /// diffusers keys (within the component) whose values follow each other.
    pub(crate) parts: Vec<String>,
}

impl SingleFileTensor {
    /// One parameter, in its own shape.
    pub(crate) fn same(key: String, param: &NamedShape) -> Self {
        Self { key, shape: param.shape.clone(), parts: vec![param.path.clone()] }
    }
}

/// All tensors of a single file, sorted by key. Parts carry the component's name: `unet.conv_in.weight`.
pub(crate) fn layout(shapes: &ComponentShapes, text_config: &ClipTextConfig) -> Vec<SingleFileTensor> {
    let components = [
        ("unet", unet::keys::single_file(&shapes.unet)),
        ("vae", vae::keys::single_file(&shapes.vae)),
        ("text_encoder", clip::keys::single_file(&shapes.text_encoder, text_config)),
    ];
    let mut all = Vec::new();
    for (component, tensors) in components {
        all.extend(tensors.into_iter().map(|mut tensor| {
            tensor.parts.iter_mut().for_each(|part| *part = format!("{component}.{part}"));
            tensor
        }));
    }
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

/// Writes one safetensors file with the original names.
pub(crate) fn write(
    parts: &ModelParts,
    values: &dyn Values,
    path: &Path,
    precision: SavePrecision,
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let tensors = layout(parts.shapes, &parts.configs.text_encoder);
    let outgoing: Vec<Outgoing> =
        tensors.iter().map(|t| Outgoing { key: t.key.clone(), shape: t.shape.clone() }).collect();
    let mut all_metadata = metadata::of_model(parts);
    all_metadata.extend(metadata.clone());
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| atomic::failed(folder, source))?;
    }
    atomic::write(path, |out| {
        write_header(out, &outgoing, precision, &all_metadata).map_err(|source| atomic::failed(path, source))?;
        tensors.iter().flat_map(|tensor| &tensor.parts).try_for_each(|part| {
            values.read(part, &mut |numbers| encode(out, numbers, precision, part).map_err(|error| error.at(path)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PredictionType;
    use crate::checkpoint::check as check_configs;
    use crate::checkpoint::derive::{self, Stated};
    use crate::checkpoint::recognise::{self, Family};
    use crate::checkpoint::stored::{NumberType, StoredTensor};
    use crate::init::{Preset, full_size_shapes};
    use std::collections::{BTreeSet, HashMap};
    use std::io::Read;

    /// Component, diffusers key → key, shape, and shape in the single file where it is another.
    type Lists = HashMap<String, HashMap<String, (String, Vec<usize>, Option<Vec<usize>>)>>;

    fn lists(packed: &[u8]) -> Lists {
        let mut text = String::new();
        flate2::read::ZlibDecoder::new(packed).read_to_string(&mut text).unwrap();
        let lists: HashMap<String, HashMap<String, Vec<serde_json::Value>>> = serde_json::from_str(&text).unwrap();
        let shape = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap();
        let entry =
            |row: Vec<serde_json::Value>| (row[0].as_str().unwrap().to_owned(), shape(&row[1]), row.get(2).map(shape));
        let rows = |rows: HashMap<String, Vec<_>>| rows.into_iter().map(|(key, row)| (key, entry(row))).collect();
        lists.into_iter().map(|(component, table)| (component, rows(table))).collect()
    }

    fn check(preset: Preset, packed: &[u8]) {
        let lists = lists(packed);
        let (shapes, configs) = full_size_shapes(preset);
        let mut parts = HashMap::new();
        for (component, named) in [("unet", &shapes.unet), ("vae", &shapes.vae), ("text_encoder", &shapes.text_encoder)]
        {
            let ours: BTreeSet<_> = named.iter().map(|n| (n.path.clone(), n.shape.clone())).collect();
            let theirs: BTreeSet<_> = lists[component].iter().map(|(k, row)| (k.clone(), row.1.clone())).collect();
            assert_eq!(ours, theirs, "{component}");
            parts.extend(named.iter().map(|n| (format!("{component}.{}", n.path), n.shape.clone())));
        }
        let tensors = layout(&shapes, &configs.text_encoder);
        assert!(tensors.is_sorted_by(|a, b| a.key < b.key));
        let mut rows = 0;
        for tensor in &tensors {
            let mut start = 0;
            for part in &tensor.parts {
                let (component, key) = part.split_once('.').unwrap();
                let (listed, shape, there) = &lists[component][key];
                let end = start + shape[0];
                let fused = tensor.parts.len() > 1;
                let expected = if fused { format!("{}[{start}:{end}]", tensor.key) } else { tensor.key.clone() };
                assert_eq!(*listed, expected);
                if !fused {
                    assert_eq!(tensor.shape, *there.as_ref().unwrap_or(shape), "{key}");
                }
                start = end;
                rows += 1;
            }
            assert_eq!(start, tensor.shape[0], "{}", tensor.key);
        }
        assert_eq!(rows, parts.len(), "every parameter is in the file once");
    }

    /// What is known of a file of the original repositories: names and shapes, from the list alone.
    fn original_file(packed: &[u8]) -> BTreeMap<String, StoredTensor> {
        let mut tensors: BTreeMap<String, StoredTensor> = BTreeMap::new();
        for (original, shape, there) in lists(packed).into_values().flat_map(HashMap::into_values) {
            let shape = there.unwrap_or(shape);
            match original.split_once('[') {
                Some((name, _)) => {
                    let empty = || stored(vec![0].into_iter().chain(shape[1..].iter().copied()).collect());
                    tensors.entry(name.to_owned()).or_insert_with(empty).shape[0] += shape[0];
                }
                None => drop(tensors.insert(original, stored(shape))),
            }
        }
        tensors
    }

    fn stored(shape: Vec<usize>) -> StoredTensor {
        StoredTensor { number_type: NumberType::F32, shape, start: 0, strides: None }
    }

    /// From the file's names and shapes to the kind, the configurations, and every parameter.
    fn check_back(preset: Preset, packed: &[u8], prediction_type: PredictionType, extras: &[(&str, &[usize])]) {
        let (shapes, configs) = full_size_shapes(preset);
        let mut tensors = original_file(packed);
        let ours: BTreeMap<_, _> =
            layout(&shapes, &configs.text_encoder).into_iter().map(|tensor| (tensor.key, tensor.shape)).collect();
        let theirs: BTreeMap<_, _> = tensors.iter().map(|(key, tensor)| (key.clone(), tensor.shape.clone())).collect();
        assert_eq!(ours, theirs);
        tensors.extend(extras.iter().map(|(key, shape)| ((*key).to_owned(), stored(shape.to_vec()))));
        let family = recognise::single_file(&tensors).unwrap();
        let derived = derive::configs(&tensors, family, Stated { prediction_type, zero_terminal_snr: false }).unwrap();
        assert_eq!(derived.guesses, [""; 0]);
        let again = check_configs(&derived.raw).unwrap();
        assert_eq!(again.text_encoder, configs.text_encoder);
        assert_eq!(again.vae, configs.vae);
        assert_eq!(again.unet, configs.unet);
        assert_eq!(again.noise_scheduler.config(), configs.noise_scheduler.config());
    }

    #[test]
    fn sd15_is_known_by_its_names_and_shapes() {
        let extras: [(&str, &[usize]); 1] =
            [("cond_stage_model.transformer.text_model.embeddings.position_ids", &[1, 77])];
        let packed = include_bytes!("../../tests/fixtures/keys_sd15.zz");
        check_back(Preset::Sd15, packed, PredictionType::Epsilon, &extras);
    }

    #[test]
    fn sd21_is_known_by_its_names_and_shapes_with_and_without_the_unused_layer() {
        let packed = include_bytes!("../../tests/fixtures/keys_sd21.zz");
        let extras: [(&str, &[usize]); 3] = [
            ("cond_stage_model.model.transformer.resblocks.23.ln_1.weight", &[1024]),
            ("cond_stage_model.model.text_projection", &[1024, 1024]),
            ("cond_stage_model.model.logit_scale", &[]),
        ];
        check_back(Preset::Sd21, packed, PredictionType::VPrediction, &extras);
        check_back(Preset::Sd21, packed, PredictionType::VPrediction, &[]);
    }

    #[test]
    fn sd21_base_differs_in_size_and_prediction_and_its_relatives_are_refused() {
        let packed = include_bytes!("../../tests/fixtures/keys_sd21.zz");
        let mut tensors = original_file(packed);
        let [base, v] = [PredictionType::Epsilon, PredictionType::VPrediction].map(|prediction_type| {
            derive::configs(&tensors, Family::Sd2, Stated { prediction_type, zero_terminal_snr: false }).unwrap()
        });
        assert_eq!((&base.raw.unet["sample_size"], &v.raw.unet["sample_size"]), (&64.into(), &96.into()));
        assert_eq!(base.raw.scheduler["prediction_type"], "epsilon");
        let [base, v] = [base, v].map(|derived| check_configs(&derived.raw).unwrap());
        assert_eq!((base.unet, base.vae, base.text_encoder), (v.unet, v.vae, v.text_encoder));
        // The same network with more input channels: inpainting and depth of 2.x.
        for (channels, name) in [(9, "inpainting"), (5, "depth")] {
            tensors.get_mut("model.diffusion_model.input_blocks.0.0.weight").unwrap().shape[1] = channels;
            assert!(recognise::single_file(&tensors).unwrap_err().contains(name));
        }
    }

    #[test]
    fn sd15_has_the_original_names_and_shapes() {
        check(Preset::Sd15, include_bytes!("../../tests/fixtures/keys_sd15.zz"));
    }

    #[test]
    fn sd21_has_the_original_names_and_shapes() {
        check(Preset::Sd21, include_bytes!("../../tests/fixtures/keys_sd21.zz"));
    }
}
