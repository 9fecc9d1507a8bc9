//! Names and shapes of the real models' tensors, against those of saved files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, ensure};
use flate2::read::ZlibDecoder;
use serde_json::Value;

use super::Size;

type Shapes = BTreeMap<String, Vec<u64>>;

/// The lists of `model/tests/fixtures`: component → diffusers key → single-file key, shape, and shape there if other.
pub(super) struct Lists(BTreeMap<String, BTreeMap<String, Value>>);

impl Lists {
    pub(super) fn of(size: Size) -> anyhow::Result<Self> {
        let packed: &[u8] = match size {
            Size::Sd15 => include_bytes!("../../../model/tests/fixtures/keys_sd15.zz"),
            Size::Sd21 => include_bytes!("../../../model/tests/fixtures/keys_sd21.zz"),
        };
        Ok(Self(serde_json::from_reader(ZlibDecoder::new(packed))?))
    }

    /// Compares a diffusers folder.
    pub(super) fn check_folder(&self, folder: &Path) -> anyhow::Result<String> {
        let mut count = 0;
        for (component, list) in &self.0 {
            let file = if component == "text_encoder" { "model" } else { "diffusion_pytorch_model" };
            let path = folder.join(component).join(format!("{file}.safetensors"));
            let expected: Shapes = list.iter().map(|(key, entry)| (key.clone(), shape(&entry[1]))).collect();
            compare(&expected, &path)?;
            count += expected.len();
        }
        Ok(format!("{}: {count} names and shapes as in diffusers", name(folder)))
    }

    /// Compares a single file under the original names.
    pub(super) fn check_single_file(&self, path: &Path) -> anyhow::Result<String> {
        let mut expected = Shapes::new();
        for entry in self.0.values().flat_map(|list| list.values()) {
            let key = entry[0].as_str().context("a list without the single file's name")?;
            let there = entry.get(2).filter(|shape| shape.is_array()).unwrap_or(&entry[1]);
            // Rows a..b of a fused tensor: it has as many rows as the last of its parts ends with.
            let Some((fused, rows)) = key.strip_suffix(']').and_then(|key| key.split_once('[')) else {
                expected.insert(key.to_owned(), shape(there));
                continue;
            };
            let end: u64 = rows.split_once(':').context("a range of rows")?.1.parse()?;
            let mut shape = shape(&entry[1]);
            shape[0] = end.max(expected.get(fused).map_or(0, |shape| shape[0]));
            expected.insert(fused.to_owned(), shape);
        }
        compare(&expected, path)?;
        Ok(format!("{}: {} names and shapes as in the original file", name(path), expected.len()))
    }
}

fn name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn shape(json: &Value) -> Vec<u64> {
    json.as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

fn compare(expected: &Shapes, path: &Path) -> anyhow::Result<()> {
    let found = header(path).with_context(|| format!("cannot read {}", path.display()))?;
    let missing: Vec<_> = expected.keys().filter(|key| !found.contains_key(*key)).collect();
    let surplus: Vec<_> = found.keys().filter(|key| !expected.contains_key(*key)).collect();
    let differ: Vec<_> = expected
        .iter()
        .filter_map(|(key, shape)| Some((key, shape, found.get(key)?)))
        .filter(|(_, shape, found)| shape != found)
        .collect();
    ensure!(
        missing.is_empty() && surplus.is_empty() && differ.is_empty(),
        "{}: {} names are missing, {} too many, {} shapes differ; the first: {:?} {:?} {:?}",
        path.display(),
        missing.len(),
        surplus.len(),
        differ.len(),
        missing.first(),
        surplus.first(),
        differ.first()
    );
    Ok(())
}

/// Names and shapes in the header of a safetensors file.
fn header(path: &Path) -> anyhow::Result<Shapes> {
    let mut file = File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = Vec::new();
    file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
    let tensors: BTreeMap<String, Value> = serde_json::from_slice(&header)?;
    let named = tensors.into_iter().filter(|(key, _)| key != "__metadata__");
    Ok(named.map(|(key, info)| (key, shape(&info["shape"]))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, shapes: &Shapes) {
        let infos: BTreeMap<_, _> = shapes
            .iter()
            .map(|(key, shape)| (key, serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [0, 0]})))
            .collect();
        let header = serde_json::to_vec(&infos).unwrap();
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(path, [length.as_slice(), &header].concat()).unwrap();
    }

    #[test]
    fn a_missing_name_and_another_shape_are_found() {
        let path = std::env::temp_dir().join(format!("ballast-names-{}", std::process::id()));
        let list = serde_json::json!({"unet": {
            "a": ["x.a", [2, 3]], "q": ["x.qkv[0:4]", [4, 5]], "k": ["x.qkv[4:8]", [4, 5]], "b": ["x.b", [1, 7], [1, 7, 1]],
        }});
        let lists = Lists(serde_json::from_value(list).unwrap());
        let mut shapes: Shapes =
            [("x.a", vec![2, 3]), ("x.qkv", vec![8, 5]), ("x.b", vec![1, 7, 1])].map(|(k, s)| (k.to_owned(), s)).into();
        write(&path, &shapes);
        lists.check_single_file(&path).unwrap();
        shapes.insert("x.a".to_owned(), vec![3, 2]);
        write(&path, &shapes);
        assert!(lists.check_single_file(&path).unwrap_err().to_string().contains("1 shapes differ"));
        shapes.remove("x.a");
        write(&path, &shapes);
        assert!(lists.check_single_file(&path).unwrap_err().to_string().contains("1 names are missing"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_lists_are_whole() {
        for (size, count) in [(Size::Sd15, 1130), (Size::Sd21, 1306)] {
            let found: usize = Lists::of(size).unwrap().0.values().map(BTreeMap::len).sum();
            assert_eq!(found, count, "{size:?}");
        }
    }
}
