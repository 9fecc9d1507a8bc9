//! For tests: plans run on the CPU, with the kernels' own text under them.
//!
//! The texts are compiled into a library by the C++ compiler of the machine (`c++`, or what `CXX` names) against
//! `emulation/emulated.h`, which says how a block of threads is imitated and what that shows.

#![expect(unsafe_code, reason = "calls the library it has compiled, with pointers to buffers of that library's")]

use crate::Kernel;
use crate::plan::{Launch, Plan, Role};
use libloading::Library;
use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, fs, slice};

const EMULATED: &str = include_str!("../emulation/emulated.h");
const LIBRARY: &str = include_str!("../emulation/library.h");

/// The order in which the threads of a block take turns. What depends on it is a race.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The first thread first.
    Forwards,
    /// The last thread first.
    Backwards,
}

/// Compiled kernels.
pub struct Emulation {
    library: Library,
    /// The library has one block, and its fibers, at a time.
    turn: Mutex<()>,
    _folder: tempfile::TempDir,
}

impl Emulation {
    /// All kernels, compiled once in a process.
    ///
    /// # Panics
    ///
    /// When there is no C++ compiler, or the kernels do not compile.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Emulation> = OnceLock::new();
        SHARED.get_or_init(|| Self::compile(&crate::all()))
    }

    /// Compiles these kernels, which may be others than those of this crate: tests change their texts.
    ///
    /// # Panics
    ///
    /// As [`shared`](Self::shared).
    pub fn compile(kernels: &[Kernel]) -> Self {
        let folder = tempfile::tempdir().expect("a scratch folder");
        for (name, text) in [("emulated.h", EMULATED), ("library.h", LIBRARY), ("library.cpp", &*source(kernels))] {
            fs::write(folder.path().join(name), text).expect("a text can be written");
        }
        let path = compiled(folder.path());
        // SAFETY: the library was compiled from the texts above, and loading it runs no code but constructors of
        // containers.
        let library = unsafe { Library::new(&path) }.expect("the library can be loaded");
        Self { library, turn: Mutex::new(()), _folder: folder }
    }

    /// Runs a plan; returns the outputs in order.
    ///
    /// # Panics
    ///
    /// When the inputs are not those of the plan. The process ends when a kernel touches memory that is not its own, or
    /// its threads wait for each other in vain.
    pub fn run(&self, plan: &Plan, inputs: &[&[u8]], order: Order) -> Vec<Vec<u8>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inputs = inputs.iter();
        let memories = plan.buffers.iter().map(|buffer| {
            let mut memory = Memory::new(&self.library, buffer.bytes());
            let given = match &buffer.role {
                Role::Input => Some(*inputs.next().expect("an input for every buffer that wants one")),
                Role::Settings(bytes) => Some(&bytes[..]),
                Role::Output | Role::Temporary => None,
            };
            if let Some(given) = given {
                assert_eq!(given.len() as u64, buffer.bytes(), "{}", buffer.name);
                memory.bytes().copy_from_slice(given);
            }
            memory
        });
        let mut memories: Vec<_> = memories.collect();
        assert!(inputs.next().is_none(), "more inputs than the plan has");
        for launch in &plan.launches {
            self.launch(launch, &memories, order);
        }
        let outputs = plan.buffers.iter().zip(&mut memories).filter(|(buffer, _)| buffer.role == Role::Output);
        outputs.map(|(_, memory)| memory.bytes().to_vec()).collect()
    }

    fn launch(&self, launch: &Launch, memories: &[Memory<'_>], order: Order) {
        type Launched = unsafe extern "C" fn(*const c_char, *const c_int, c_int, *mut *mut c_void) -> c_int;
        let name = CString::new(launch.kernel.name.as_str()).expect("a name without a zero");
        let grid = launch.grid.map(|blocks| c_int::try_from(blocks).expect("a grid of the plan"));
        let mut arguments: Vec<_> = launch.arguments.iter().map(|argument| memories[argument.buffer].data).collect();
        let backwards = c_int::from(order == Order::Backwards);
        // SAFETY: the signature is that of `source` below; every argument is a buffer of the library, and the kernel has as
        // many parameters as the launch has arguments (`plan::tests`).
        let found = unsafe {
            let launched = self.library.get::<Launched>(b"emulated_launch\0").expect("the library has it");
            launched(name.as_ptr(), grid.as_ptr(), backwards, arguments.as_mut_ptr())
        };
        assert_eq!(found, 1, "{} is among the compiled kernels", launch.kernel.name);
    }
}

/// Memory that the library has allocated: NaN at first, with a page after it that cannot be touched.
struct Memory<'a> {
    library: &'a Library,
    data: *mut c_void,
    bytes: usize,
}

impl<'a> Memory<'a> {
    fn new(library: &'a Library, bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).expect("a size of this machine");
        // SAFETY: the signature is that of `library.h`.
        let data = unsafe {
            let alloc = library.get::<unsafe extern "C" fn(usize) -> *mut c_void>(b"emulated_alloc\0");
            alloc.expect("the library has it")(bytes)
        };
        Self { library, data, bytes }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `data` has as many bytes, all written when they were allocated, and nobody else holds them.
        unsafe { slice::from_raw_parts_mut(self.data.cast(), self.bytes) }
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: the signature is that of `library.h`, and the memory is that library's.
        unsafe {
            let free = self.library.get::<unsafe extern "C" fn(*mut c_void, usize)>(b"emulated_free\0");
            free.expect("the library has it")(self.data, self.bytes);
        }
    }
}

/// One text that has all kernels in namespaces of their own, and a table of them.
fn source(kernels: &[Kernel]) -> String {
    let mut text = String::from("#include \"library.h\"\n#undef ALL_KERNELS\n");
    let mut table = String::new();
    let mut spaces: Vec<&str> = Vec::new();
    for kernel in kernels {
        let space = spaces.iter().position(|source| *source == kernel.source).unwrap_or_else(|| {
            let body = kernel.source.replace(crate::PRELUDE, "");
            let _ = writeln!(text, "namespace text{} {{\n{body}\n}}", spaces.len());
            for name in defined(&body) {
                let _ = writeln!(text, "#undef {name}");
            }
            spaces.push(&kernel.source);
            spaces.len() - 1
        });
        let Kernel { name, entry, threads, .. } = kernel;
        let run = format!("[](void **a) {{ emulation::call(text{space}::{entry}, a); }}");
        let _ = writeln!(table, "    {{\"{name}\", {threads}, {run}}},");
    }
    text + "static const emulation::Entry TABLE[] = {\n"
        + &table
        + "};\n\
        extern \"C\" int emulated_launch(const char *name, const int *grid, int backwards, void **arguments) {\n\
        \x20   for (auto &entry : TABLE) {\n\
        \x20       if (strcmp(entry.name, name)) continue;\n\
        \x20       emulation::block.backwards = backwards;\n\
        \x20       emulation::launch(grid[0], grid[1], grid[2], entry.threads, [&] { entry.run(arguments); });\n\
        \x20       return 1;\n\
        \x20   }\n\
        \x20   return 0;\n\
        }\n"
}

/// The names that a text defines, which the next may define again.
fn defined(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("#define "));
    lines.filter_map(|line| line.split([' ', '(']).next()).collect()
}

fn compiled(folder: &Path) -> PathBuf {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let library = folder.join("library.so");
    // The checks of `_FORTIFY_SOURCE` take a jump from one fiber to another for a mistake.
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O2", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-w", "-o"])
        .args([&library, &folder.join("library.cpp")])
        .output()
        .unwrap_or_else(|error| panic!("{compiler:?} does not start ({error}): install a C++ compiler, or set CXX"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library
}
