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
