//! The CUDA C++ kernels of the operations that a training step spends its time in, as complete texts, and [`plan`]: which of
//! them to launch for an operation, on which grids, with which buffers.
//!
//! NVRTC compiles them on the machine that runs them, for its card; no header of the CUDA toolkit is needed. A kernel
//! takes pointers only: sizes come in a small buffer (`settings`), so that one compilation serves all shapes, and so
//! that a runtime which passes nothing but buffers can launch it. Shared memory is static, at most 48 KiB.
//!
//! What is known of them without a GPU: `tests/emulation.rs` runs their own text on the CPU against the plain formulas;
//! `.ci/cuda-kernels` compiles them by NVRTC, assembles them for sm_80 and sm_90a, and holds registers, shared memory
//! and spills to `limits.tsv`.

use std::collections::HashMap;
use std::sync::LazyLock;

#[cfg(feature = "emulation")]
pub mod emulation;
pub mod plan;

/// Widths of attention heads that there are kernels for: SD 1.x has 40, 80 and 160, SD 2.x and the text encoders 64.
pub const HEAD_WIDTHS: [u32; 4] = [40, 64, 80, 160];

/// Rows of the side that a block of the attention kernels keeps; the grid is made of such tiles.
pub const ATTENTION_ROWS: u32 = 64;

/// Pixels of one piece of the group norm's sums; the grid is made of such pieces.
pub const GROUP_NORM_PIXELS: u32 = 32;

/// Channels that the group norm's kernels can have at most.
pub const GROUP_NORM_MAX_CHANNELS: u32 = 2560;

/// Rows of one piece of the layer norm's backward sums.
pub const LAYER_NORM_ROWS: u32 = 64;

/// Threads of a block of every kernel but attention's.
const THREADS: u64 = 256;

/// Elements of one partial sum of the gradient's norm, as on the CPU.
pub const NORM_CHUNK: u64 = 1 << 16;

/// Elements of one digest of a flat buffer.
pub const DIGEST_CHUNK: u64 = 1 << 16;

const PRELUDE: &str = include_str!("cuda/prelude.cuh");
const ATTENTION: &str = include_str!("cuda/attention.cu");
const GROUP_NORM: &str = include_str!("cuda/group_norm.cu");
const LAYER_NORM: &str = include_str!("cuda/layer_norm.cu");
const GEGLU: &str = include_str!("cuda/geglu.cu");
const OPTIMIZER: &str = include_str!("cuda/optimizer.cu");
const FLAT: &str = include_str!("cuda/flat.cu");

/// A kernel, ready to be compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// A name of its own among all kernels: `attention_forward_40`.
    pub name: String,
    /// The function to launch: `attention_forward`.
    pub entry: &'static str,
    /// Threads of a block.
    pub threads: u32,
    /// The complete text.
    pub source: String,
    /// A hash of the text: the same in every process, another for another text.
    pub fingerprint: u64,
}

impl Kernel {
    fn new(name: String, entry: &'static str, threads: u32, source: String) -> Self {
        // FNV-1a.
        let fingerprint = source.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { name, entry, threads, source, fingerprint }
    }
}

/// Returns a kernel by its name. Texts are put together once in a process.
pub fn kernel(name: &str) -> Option<&'static Kernel> {
    static KERNELS: LazyLock<HashMap<String, Kernel>> =
        LazyLock::new(|| all().into_iter().map(|kernel| (kernel.name.clone(), kernel)).collect());
    KERNELS.get(name)
}

/// The attention kernels of one width of heads.
#[derive(Debug, Clone)]
pub struct AttentionKernels {
    /// `(query, key, value, result, log_sums, settings)`
    pub forward: Kernel,
    /// `(result, gradient, means, settings)`
    pub means: Kernel,
    /// `(query, key, value, gradient, log_sums, means, dquery, settings)`
    pub backward_query: Kernel,
    /// `(query, key, value, gradient, log_sums, means, dkey, dvalue, settings)`: one kernel for both gradients, or one
    /// for each, in any order.
    pub backward_key: Vec<Kernel>,
}

/// Returns the attention kernels of a head's width, where there are any ([`HEAD_WIDTHS`]).
pub fn attention(width: u32) -> Option<AttentionKernels> {
    HEAD_WIDTHS.contains(&width).then(|| {
        let kernel = |entry, gradients: &str, of_key, of_value| {
            // At width 160 the sums of 16 rows of keys and values would take 160 registers: one after the other.
            let tile = if width > 80 { 32 } else { 64 };
            // Two registers more than three blocks have would be used otherwise.
            let three = (entry, width) == ("attention_backward_key", 64);
            let blocks = if three { "#define BLOCKS 3\n" } else { "" };
            let defines = format!(
                "#define HEAD_WIDTH {width}\n#define TILE {tile}\n#define OF_KEY {of_key}\n#define OF_VALUE {of_value}\n\
                 #define WANT_{entry} 1\n{blocks}"
            );
            Kernel::new(format!("{entry}{gradients}_{width}"), entry, 128, defines + PRELUDE + ATTENTION)
        };
        let backward_key = "attention_backward_key";
        AttentionKernels {
            forward: kernel("attention_forward", "", 1, 1),
            means: kernel("attention_means", "", 1, 1),
            backward_query: kernel("attention_backward_query", "", 1, 1),
            backward_key: if width > 80 {
                vec![kernel(backward_key, "_only", 1, 0), kernel(backward_key, "_value", 0, 1)]
            } else {
                vec![kernel(backward_key, "", 1, 1)]
            },
        }
    })
}

/// Returns a kernel of one of the other sources by the name of its function.
pub fn by_entry(entry: &str) -> Option<Kernel> {
    let (entry, text) = ENTRIES.iter().find(|(name, _)| *name == entry)?;
    // Without it 8 to 13 registers more than four blocks have.
    let defines = if *entry == "group_norm_backward_pieces" { "#define BLOCKS 4\n" } else { "" };
    Some(Kernel::new((*entry).to_owned(), entry, THREADS as u32, [defines, PRELUDE, text].concat()))
}

const ENTRIES: [(&str, &str); 21] = [
    ("group_norm_pieces", GROUP_NORM),
    ("group_norm_statistics", GROUP_NORM),
    ("group_norm_apply", GROUP_NORM),
    ("group_norm_backward_pieces", GROUP_NORM),
    ("group_norm_backward_sums", GROUP_NORM),
    ("group_norm_backward_apply", GROUP_NORM),
    ("group_norm_backward_weights", GROUP_NORM),
    ("layer_norm_forward", LAYER_NORM),
    ("layer_norm_backward", LAYER_NORM),
    ("layer_norm_backward_weights", LAYER_NORM),
    ("geglu_forward", GEGLU),
    ("geglu_backward", GEGLU),
    ("norm_chunks", OPTIMIZER),
    ("norm_finish", OPTIMIZER),
    ("adamw", OPTIMIZER),
    ("flat_clear", FLAT),
    ("flat_put_f32", FLAT),
    ("flat_put_bf16", FLAT),
    ("flat_add", FLAT),
    ("flat_digest", FLAT),
    ("flat_adamw", FLAT),
];

/// Returns every kernel.
pub fn all() -> Vec<Kernel> {
    let attention = HEAD_WIDTHS.into_iter().filter_map(attention).flat_map(|of_width| {
        let AttentionKernels { forward, means, backward_query, backward_key } = of_width;
        [forward, means, backward_query].into_iter().chain(backward_key)
    });
    attention.chain(ENTRIES.iter().filter_map(|(entry, _)| by_entry(entry))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kernel_is_defined_in_its_source_and_named_once() {
        let all = all();
        for kernel in &all {
            assert!(kernel.source.contains(&format!("KERNEL(THREADS)\n{}(", kernel.entry)), "{}", kernel.name);
            assert!(kernel.source.contains(&format!("#define THREADS {}", kernel.threads)), "{}", kernel.name);
        }
        assert_eq!(all.iter().map(|kernel| &kernel.name).collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(all.len(), 4 * 4 + 1 + ENTRIES.len());
    }

    /// The functions of the sources are all reachable, and the constants here are those of the texts.
    #[test]
    fn texts_and_tables_agree() {
        let named: BTreeSet<&str> = all().iter().map(|kernel| kernel.entry).collect();
        for text in [ATTENTION, GROUP_NORM, LAYER_NORM, GEGLU, OPTIMIZER, FLAT] {
            for rest in text.split("KERNEL(THREADS)\n").skip(1) {
                let entry = rest.split('(').next().unwrap_or_default();
                assert!(named.contains(entry), "{entry} is in no table");
            }
        }
        for (text, name, value) in [
            (ATTENTION, "OWN", u64::from(ATTENTION_ROWS)),
            (GROUP_NORM, "PIXELS", u64::from(GROUP_NORM_PIXELS)),
            (GROUP_NORM, "MAX_CHANNELS", u64::from(GROUP_NORM_MAX_CHANNELS)),
            (LAYER_NORM, "ROWS", u64::from(LAYER_NORM_ROWS)),
            (OPTIMIZER, "CHUNK", NORM_CHUNK),
            (FLAT, "DIGEST_CHUNK", DIGEST_CHUNK),
        ] {
            assert!(text.contains(&format!("#define {name} {value}")), "{name} is {value}");
        }
    }
}
