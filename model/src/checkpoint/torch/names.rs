//! The names that a pickle may mention. Nothing behind a name is ever called: a name only says how the arguments
//! that follow it are read.

use super::pickle::PickleError;

/// What stands behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    /// `torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, …)`
    Tensor,
    /// `torch._utils._rebuild_parameter(tensor, …)`
    Parameter,
    /// `collections.OrderedDict(…)`
    Dict,
    /// `torch.FloatStorage` and its kind: the number format of a storage.
    Storage(StorageType),
    /// A harmless container of something that a model does not need, such as the state of a training framework's
    /// callbacks: read over.
    Opaque,
}

/// Number format of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StorageType {
    F64,
    F32,
    F16,
    Bf16,
    /// Integers and others: name, and bytes per number.
    Other(&'static str, u64),
}

impl StorageType {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(_, bytes) => bytes,
        }
    }
}

const STORAGES: [(&str, StorageType); 15] = [
    ("DoubleStorage", StorageType::F64),
    ("FloatStorage", StorageType::F32),
    ("HalfStorage", StorageType::F16),
    ("BFloat16Storage", StorageType::Bf16),
    ("LongStorage", StorageType::Other("I64", 8)),
    ("IntStorage", StorageType::Other("I32", 4)),
    ("ShortStorage", StorageType::Other("I16", 2)),
    ("CharStorage", StorageType::Other("I8", 1)),
    ("ByteStorage", StorageType::Other("U8", 1)),
    ("BoolStorage", StorageType::Other("BOOL", 1)),
    ("ComplexFloatStorage", StorageType::Other("C64", 8)),
    ("ComplexDoubleStorage", StorageType::Other("C128", 16)),
    ("QInt8Storage", StorageType::Other("QI8", 1)),
    ("QUInt8Storage", StorageType::Other("QU8", 1)),
    ("QInt32Storage", StorageType::Other("QI32", 4)),
];

/// Values and containers of Python and its libraries.
const HARMLESS: [(&str, &[&str]); 10] = [
    ("collections", &["defaultdict", "Counter", "deque"]),
    ("builtins", BUILTINS),
    ("__builtin__", BUILTINS),
    ("numpy", &["dtype", "ndarray"]),
    ("numpy.core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy._core.multiarray", &["scalar", "_reconstruct"]),
    ("_codecs", &["encode"]),
    ("torch", TORCH),
    ("torch.serialization", &["_get_layout"]),
    ("argparse", &["Namespace"]),
];

const BUILTINS: &[&str] =
    &["set", "frozenset", "dict", "list", "tuple", "int", "long", "float", "bool", "str", "bytes", "bytearray"];

const TORCH: &[&str] = &[
    "Size", "device", "dtype", "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8",
    "bool",
];

/// Frameworks whose objects stand in checkpoints beside the weights: configurations, counters, schedules.
const FRAMEWORKS: [&str; 5] =
    ["pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.", "omegaconf."];

/// Looks up a name, and refuses every other one by name.
pub(crate) fn resolve(module: &str, name: &str) -> Result<Global, PickleError> {
    let known = match (module, name) {
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Some(Global::Tensor),
        ("torch._utils", "_rebuild_parameter") => Some(Global::Parameter),
        ("collections", "OrderedDict") => Some(Global::Dict),
        ("torch", storage) => STORAGES.iter().find(|(s, _)| *s == storage).map(|(_, kind)| Global::Storage(*kind)),
        _ => None,
    };
    let is_harmless = || {
        let listed = HARMLESS.iter().any(|(m, names)| *m == module && names.contains(&name));
        listed || FRAMEWORKS.iter().any(|framework| module.starts_with(framework)) && !name.contains('.')
    };
    match known {
        Some(global) => Ok(global),
        None if is_harmless() => Ok(Global::Opaque),
        None => Err(PickleError::Refused { name: shown(&format!("{module}.{name}")) }),
    }
}

/// A name from a file, fit for a message.
fn shown(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_debug).collect()
}
