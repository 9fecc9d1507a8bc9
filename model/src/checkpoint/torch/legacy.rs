//! What `torch.save` wrote before PyTorch 1.6, and still does when asked to: five pickles one behind the other (a magic
//! number, a version, what machine it was, the object, the keys of its storages), then for each key the count of its numbers
//! and the numbers. There are no checksums.

use super::archive::MAX_PICKLE_BYTES;
use super::pickle::{Pickle, Value};
use super::{Extent, TorchError, zip};
use std::collections::HashMap;
use std::fs::File;

/// The only version there has been.
const PROTOCOL: i64 = 1001;

/// Reads the pickles, and finds the storages by their keys.
pub(super) fn open(file: &mut File, length: u64) -> Result<(Pickle, HashMap<Box<str>, Extent>), TorchError> {
    let front = zip::read_at(file, 0, length.min(MAX_PICKLE_BYTES))?;
    let mut at = 0;
    let mut next = || -> Result<(Pickle, usize), TorchError> {
        let (pickle, used) = Pickle::parse_first(&front[at..]).map_err(TorchError::Pickle)?;
        at += used;
        Ok((pickle, at))
    };
    next()?; // the magic number, by which the file was recognised
    if !matches!(next()?.0.root(), Value::Int(PROTOCOL)) {
        return Err(damaged("its version is not 1001"));
    }
    let (machine, _) = next()?;
    if machine.entries(machine.root()).any(|(key, value)| key == "little_endian" && matches!(value, Value::Bool(false)))
    {
        return Err(TorchError::BigEndian);
    }
    let (object, _) = next()?;
    let (keys, end) = next()?;
    let storages = storages(file, length, &object, &keys, end as u64)?;
    Ok((object, storages))
}

fn storages(
    file: &mut File,
    length: u64,
    object: &Pickle,
    keys: &Pickle,
    mut at: u64,
) -> Result<HashMap<Box<str>, Extent>, TorchError> {
    let kinds = object.values().iter().filter_map(|value| match value {
        Value::Storage(storage) => Some((&*storage.key, storage.kind)),
        _ => None,
    });
    let kinds: HashMap<&str, _> = kinds.collect();
    let Value::List(keys_in_order) = keys.root() else { return Err(damaged("the keys of its storages are no list")) };
    let mut found = HashMap::new();
    for key in keys_in_order {
        let Value::Text(key) = keys.get(*key) else { return Err(damaged("a key that is no text")) };
        let kind = kinds.get(&**key).ok_or_else(|| damaged(&format!("nothing mentions its storage `{key}`")))?;
        let end_of_count = at.checked_add(8).filter(|end| *end <= length);
        let start = end_of_count.ok_or_else(|| damaged(&format!("it ends ahead of its storage `{key}`")))?;
        let count = zip::read_at(file, at, 8)?;
        let count = u64::from_le_bytes(count.try_into().expect("eight bytes were asked for"));
        let extent = count.checked_mul(kind.bytes()).map(|length| Extent { start, length });
        let end = extent.as_ref().and_then(|extent| start.checked_add(extent.length)).filter(|end| *end <= length);
        let (Some(extent), Some(end)) = (extent, end) else {
            return Err(damaged(&format!(
                "its storage `{key}` claims {count} numbers at {start} in a file of {length}"
            )));
        };
        at = end;
        if found.insert(key.clone(), extent).is_some() {
            return Err(damaged(&format!("its storage `{key}` is there twice")));
        }
    }
    Ok(found)
}

fn damaged(problem: &str) -> TorchError {
    TorchError::Legacy { problem: problem.to_owned() }
}
