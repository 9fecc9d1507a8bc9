//! What to launch for an operation: kernels, grids, and the buffers they are given. Plans are values: nothing here knows a
//! device, and what runs them (`emulation` in tests, CubeCL on a GPU) knows nothing of an operation.
//!
//! A plan's inputs and outputs are in the order of its [`buffers`](Plan::buffers). Where no kernel covers a shape, the
//! functions here return `None`.

mod attention;
mod geglu;
mod group_norm;
mod layer_norm;

pub use attention::{AttentionShape, attention_backward, attention_forward};
pub use geglu::{geglu_backward, geglu_forward};
pub use group_norm::{GroupNormShape, group_norm_backward, group_norm_forward};
pub use layer_norm::{LayerNormShape, layer_norm_backward, layer_norm_forward};

use crate::Kernel;

/// Blocks that a grid can have in its second and third direction.
const MAX_BLOCKS: u64 = 65_535;

/// The launches of one operation, in order, and all their buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What the launches read and write.
    pub buffers: Vec<Buffer>,
    /// Each sees what those before it wrote.
    pub launches: Vec<Launch>,
}

/// A buffer of a plan, at a multiple of 16 bytes. Inputs in bf16 are rows with a stride (in elements) that the caller
/// says, since CubeCL pads rows; all others are contiguous.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// What the operation calls it: `dquery`.
    pub name: &'static str,
    /// Where it comes from, or where it goes.
    pub role: Role,
    /// What an element is.
    pub kind: Kind,
    /// Number of elements, from the first to the last.
    pub count: u64,
}

impl Buffer {
    /// The size in bytes.
    pub fn bytes(&self) -> u64 {
        self.count * self.kind.bytes()
    }
}

/// Where a buffer comes from, or where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Given by the caller.
    Input,
    /// Given to the caller.
    Output,
    /// Only for the launches of the plan.
    Temporary,
    /// Sizes and factors, as the kernel reads them.
    Settings(Vec<u8>),
}

/// What an element of a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// bf16, two bytes.
    Bf16,
    /// f32, four bytes.
    F32,
    /// A word of settings, four bytes.
    Word,
}

impl Kind {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::Word => 4,
        }
    }
}

/// A kernel on a grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// What is launched; [`Kernel::threads`] are a block's.
    pub kernel: &'static Kernel,
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Buffers in the order of the kernel's parameters.
    pub arguments: Vec<Argument>,
}

/// A buffer that is given to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    /// Its place in [`Plan::buffers`].
    pub buffer: usize,
    /// Whether the kernel writes it; it reads the others.
    pub written: bool,
}

impl Plan {
    /// The buffers that the caller gives.
    pub fn inputs(&self) -> impl Iterator<Item = &Buffer> {
        self.buffers.iter().filter(|buffer| buffer.role == Role::Input)
    }

    /// The buffers that the caller gets.
    pub fn outputs(&self) -> impl Iterator<Item = &Buffer> {
        self.buffers.iter().filter(|buffer| buffer.role == Role::Output)
    }

    fn new() -> Self {
        Self { buffers: Vec::new(), launches: Vec::new() }
    }

    fn buffer(&mut self, name: &'static str, role: Role, kind: Kind, count: u64) -> Slot {
        self.buffers.push(Buffer { name, role, kind, count });
        Slot(self.buffers.len() - 1)
    }

    fn input(&mut self, name: &'static str, kind: Kind, count: u64) -> Slot {
        self.buffer(name, Role::Input, kind, count)
    }

    /// An input of bf16 rows. `None` when rows of this stride cannot be read in pieces of `unit` elements.
    fn rows(&mut self, name: &'static str, [rows, width]: [u64; 2], stride: u64, unit: u64) -> Option<Slot> {
        let whole = stride >= width && stride.is_multiple_of(unit) && rows > 0;
        whole.then(|| self.input(name, Kind::Bf16, (rows - 1) * stride + width))
    }

    fn output(&mut self, name: &'static str, kind: Kind, count: u64) -> Slot {
        self.buffer(name, Role::Output, kind, count)
    }

    fn temporary(&mut self, name: &'static str, kind: Kind, count: u64) -> Slot {
        self.buffer(name, Role::Temporary, kind, count)
    }

    fn settings(&mut self, words: &[u32]) -> Slot {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.buffer("settings", Role::Settings(bytes), Kind::Word, words.len() as u64)
    }

    /// `None` when there is no such kernel, or when a grid cannot be as large.
    fn launch(&mut self, kernel: &str, grid: [u64; 3], arguments: &[Argument]) -> Option<()> {
        let kernel = crate::kernel(kernel)?;
        let [x, y, z] = grid;
        if x >= 1 << 31 || y > MAX_BLOCKS || z > MAX_BLOCKS || x * y * z == 0 {
            return None;
        }
        let grid = grid.map(|blocks| u32::try_from(blocks).expect("compared with the largest grid"));
        self.launches.push(Launch { kernel, grid, arguments: arguments.to_vec() });
        Some(())
    }
}

/// A buffer while a plan is made.
#[derive(Clone, Copy)]
struct Slot(usize);

impl Slot {
    fn read(self) -> Argument {
        Argument { buffer: self.0, written: false }
    }

    fn write(self) -> Argument {
        Argument { buffer: self.0, written: true }
    }
}

/// A size as the kernels read it.
fn word(size: u64) -> Option<u32> {
    i32::try_from(size).ok().map(|size| size as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention(width: u64) -> AttentionShape {
        AttentionShape { batch: 2, rows: 130, keys: 77, heads: 3, width, causal: false }
    }

    fn group_norm(channels: u64, groups: u64) -> GroupNormShape {
        GroupNormShape { batch: 2, pixels: 100, channels, groups, eps: 1e-5, silu: true }
    }

    /// Every kernel gets as many buffers as it has parameters, and writes only what its text does not call constant.
    #[test]
    fn arguments_are_the_kernels_parameters() {
        let norm = LayerNormShape { rows: 130, width: 320, eps: 1e-5 };
        let mut plans = vec![
            group_norm_forward(group_norm(320, 32), 512),
            group_norm_backward(group_norm(320, 32), [320, 512]),
            layer_norm_forward(norm, 320),
            layer_norm_backward(norm, [512, 320]),
            geglu_forward([77, 1280], 2560),
            geglu_backward([77, 1280], [2560, 1536]),
        ];
        for width in crate::HEAD_WIDTHS {
            plans.push(attention_forward(attention(width.into()), [512; 3]));
            plans.push(attention_backward(attention(width.into()), [512; 4]));
        }
        for plan in plans {
            let plan = plan.expect("kernels cover these shapes");
            for launch in &plan.launches {
                let (_, text) = launch.kernel.source.split_once(&format!("\n{}(", launch.kernel.entry)).unwrap();
                let parameters: Vec<_> = text.split_once(')').unwrap().0.split(',').collect();
                assert_eq!(parameters.len(), launch.arguments.len(), "{}", launch.kernel.name);
                for (parameter, argument) in parameters.iter().zip(&launch.arguments) {
                    let buffer = &plan.buffers[argument.buffer];
                    let of_type = match buffer.kind {
                        Kind::Bf16 => "u16 *",
                        Kind::F32 => "float *",
                        Kind::Word => "int *",
                    };
                    let place = format!("{parameter} of {} gets {buffer:?}", launch.kernel.name);
                    assert!(parameter.contains(of_type), "{place}");
                    assert_eq!(!parameter.contains("const"), argument.written, "{place}");
                    assert!(!argument.written || !matches!(buffer.role, Role::Input | Role::Settings(_)), "{place}");
                }
            }
        }
    }

    /// What is read was given or written before, and every output is written.
    #[test]
    fn nothing_is_read_before_it_is_written() {
        let shapes = [group_norm_forward(group_norm(64, 32), 64), group_norm_backward(group_norm(64, 32), [64; 2])];
        let others = [attention_forward(attention(40), [120; 3]), attention_backward(attention(160), [480; 4])];
        for plan in shapes.into_iter().chain(others).flatten() {
            let given = |buffer: &Buffer| matches!(buffer.role, Role::Input | Role::Settings(_));
            let mut filled: Vec<bool> = plan.buffers.iter().map(given).collect();
            for launch in &plan.launches {
                assert!(launch.arguments.iter().all(|argument| argument.written || filled[argument.buffer]));
                launch.arguments.iter().for_each(|argument| filled[argument.buffer] = true);
            }
            assert!(filled.iter().all(|filled| *filled));
        }
    }

    #[test]
    fn shapes_without_a_kernel_have_no_plan() {
        let forward = |shape| attention_forward(shape, [512; 3]);
        assert_eq!(forward(attention(8)), None);
        assert_eq!(attention_backward(attention(48), [512; 4]), None);
        assert_eq!(forward(AttentionShape { batch: 70_000, ..attention(40) }), None, "more than a grid has");
        assert_eq!(forward(AttentionShape { rows: 0, ..attention(40) }), None);
        assert_eq!(attention_forward(attention(40), [512, 124, 512]), None, "rows not at multiples of 16 bytes");
        assert_eq!(attention_forward(attention(40), [64; 3]), None, "rows that overlap");
        assert_eq!(group_norm_forward(group_norm(96, 32), 96), None, "three channels in a group");
        assert_eq!(group_norm_backward(group_norm(5120, 32), [5120; 2]), None, "more channels than the kernel keeps");
        assert_eq!(layer_norm_forward(LayerNormShape { rows: 4, width: 33, eps: 1e-5 }, 34), None);
        assert_eq!(layer_norm_forward(LayerNormShape { rows: 4, width: 32, eps: 1e-5 }, 33), None);
        assert_eq!(geglu_forward([4, 33], 66), None);
        assert_eq!(geglu_forward([1 << 40, 2], 4), None, "a size that is no word");
    }
}
