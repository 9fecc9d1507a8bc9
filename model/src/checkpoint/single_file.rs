//! The single-file layout of the original Stable Diffusion repositories: all components in one safetensors file.

use super::diffusers::{byte_width, to_bytes};
use super::tensors::{Outgoing, write_header};
use super::{CheckpointError, SavePrecision, StableDiffusion, atomic};
use crate::clip::ClipTextConfig;
use crate::params::{NamedShape, NamedTensor};
use crate::{clip, params, unet, vae};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
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

/// Keys and shapes of the components' parameters.
pub(crate) struct ComponentShapes {
    pub(crate) unet: Vec<NamedShape>,
    pub(crate) vae: Vec<NamedShape>,
    pub(crate) text_encoder: Vec<NamedShape>,
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

pub(crate) fn save(
    model: &StableDiffusion,
    path: &Path,
    precision: SavePrecision,
    metadata: &BTreeMap<String, String>,
) -> Result<(), CheckpointError> {
    let shapes = ComponentShapes {
        unet: params::shapes(&model.unet),
        vae: params::shapes(&model.vae),
        text_encoder: params::shapes(&model.text_encoder),
    };
    let text_config = ClipTextConfig::from_json(&model.configs.text_encoder).expect("checked when it was loaded");
    let tensors = layout(&shapes, &text_config);
    let values = named_values(model);
    let width = byte_width(precision);
    let outgoing: Vec<Outgoing> =
        tensors.iter().map(|t| Outgoing { key: t.key.clone(), shape: t.shape.clone(), width }).collect();
    let mut metadata = metadata.clone();
    metadata.insert("format".to_owned(), "pt".to_owned());
    if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| atomic::failed(folder, source))?;
    }
    atomic::write(path, |out| {
        write_header(out, &outgoing, &metadata).map_err(|source| atomic::failed(path, source))?;
        for part in tensors.iter().flat_map(|tensor| &tensor.parts) {
            let bytes = to_bytes(&values[part.as_str()], precision)?;
            out.write_all(&bytes).map_err(|source| atomic::failed(path, source))?;
        }
        Ok(())
    })
}

fn named_values(model: &StableDiffusion) -> HashMap<String, NamedTensor> {
    let components = [
        ("unet", params::tensors(&model.unet)),
        ("vae", params::tensors(&model.vae)),
        ("text_encoder", params::tensors(&model.text_encoder)),
    ];
    let named = components.into_iter().flat_map(|(component, tensors)| {
        tensors.into_iter().map(move |tensor| (format!("{component}.{}", tensor.path), tensor))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{Preset, full_size_shapes};
    use std::collections::BTreeSet;
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
        let (shapes, text_config) = full_size_shapes(preset);
        let mut parts = HashMap::new();
        for (component, named) in [("unet", &shapes.unet), ("vae", &shapes.vae), ("text_encoder", &shapes.text_encoder)]
        {
            let ours: BTreeSet<_> = named.iter().map(|n| (n.path.clone(), n.shape.clone())).collect();
            let theirs: BTreeSet<_> = lists[component].iter().map(|(k, row)| (k.clone(), row.1.clone())).collect();
            assert_eq!(ours, theirs, "{component}");
            parts.extend(named.iter().map(|n| (format!("{component}.{}", n.path), n.shape.clone())));
        }
        let tensors = layout(&shapes, &text_config);
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

    #[test]
    fn sd15_has_the_original_names_and_shapes() {
        check(Preset::Sd15, include_bytes!("../../tests/fixtures/keys_sd15.zz"));
    }

    #[test]
    fn sd21_has_the_original_names_and_shapes() {
        check(Preset::Sd21, include_bytes!("../../tests/fixtures/keys_sd21.zz"));
    }
}
