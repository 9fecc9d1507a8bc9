//! The kernels' own text, compiled for the CPU and compared with the plain formulas; and that the comparison notices
//! when they are wrong.
//!
//! Needs a C++17 compiler (`c++`, or what `CXX` names). What this shows: the algorithms, the indices, the fragments as
//! the PTX manual draws them, the barriers and the waits for copies, at shapes that fill tiles and that do not. What it
//! cannot show: that a GPU's instructions do what the manual says, speed, and races within a warp.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs, thread};

const FILES: [&str; 10] = [
    "emulation/main.cpp",
    "emulation/emulated.h",
    "emulation/undefine.h",
    "src/cuda/prelude.cuh",
    "src/cuda/attention.cu",
    "src/cuda/group_norm.cu",
    "src/cuda/layer_norm.cu",
    "src/cuda/geglu.cu",
    "src/cuda/optimizer.cu",
    "src/cuda/flat.cu",
];

#[test]
fn kernels_compute_the_plain_formulas() {
    let output = run(None);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("attention 1x2x144x144, width 160, fused"), "{text}");
    assert!(text.contains("\n0 of "), "{text}");
}

/// A line of a kernel changed for the worse: file, what stands there (once), what takes its place.
const MUTATIONS: [(&str, &str, &str); 13] = [
    // The running softmax is not brought to the new maximum.
    ("src/cuda/attention.cu", "            total[half] *= shrink;\n", ""),
    // Copies are used before they have arrived.
    ("src/cuda/attention.cu", "copies_wait<0>();\n    sync_block();\n    u32 own[STEPS][4];\n", "u32 own[STEPS][4];\n"),
    // A stage is overwritten while others still read it.
    ("src/cuda/attention.cu", "keys + TILE * STRIDE);\n        sync_block();\n", "keys + TILE * STRIDE);\n"),
    // The fragments of two halves are exchanged.
    ("src/cuda/attention.cu", "mma(to[column], a, b[0], b[1]);", "mma(to[column], a, b[1], b[0]);"),
    // The gradient of the softmax lacks its second term.
    ("src/cuda/attention.cu", "* (products[i][j] - mean[j / 2]);", "* products[i][j];"),
    // A causal mask that is off by one.
    ("src/cuda/attention.cu", "own_key + j / 2 * 8 > row", "own_key + j / 2 * 8 >= row"),
    ("src/cuda/group_norm.cu", "- mean[0] - a * mean[1]", "- mean[0]"),
    ("src/cuda/group_norm.cu", "squares / count - mean * mean", "squares / count"),
    ("src/cuda/layer_norm.cu", "piece += 32) sum +=", "piece += 32) sum ="),
    (
        "src/cuda/optimizer.cu",
        "mul_rn(mul_rn(g, g), group.one_minus_beta2)",
        "mul_rn(g, mul_rn(g, group.one_minus_beta2))",
    ),
    // A digest that does not know the order.
    ("src/cuda/flat.cu", "mixed(i << 32 | bits[i])", "mixed(bits[i])"),
    // A gradient that is clipped where it must not be.
    ("src/cuda/flat.cu", "bool clips = norm[1] < 1;", "bool clips = norm[1] < 0;"),
    ("src/cuda/flat.cu", "i += THREADS) {\n        u64 h", "i += THREADS + 1) {\n        u64 h"),
];

#[test]
fn wrong_kernels_are_noticed() {
    let unnoticed: Vec<_> = thread::scope(|scope| {
        let runs = MUTATIONS.map(|mutation| scope.spawn(move || (mutation, run(Some(mutation)))));
        let runs = runs.into_iter().map(|run| run.join().expect("the run does not panic"));
        runs.filter(|(_, output)| output.status.success()).map(|(mutation, _)| mutation).collect()
    });
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

/// Compiles and runs the emulation in a folder of its own, with one text changed.
fn run(mutation: Option<(&str, &str, &str)>) -> Output {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    for file in FILES {
        let mut text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect("a source");
        if let Some((_, old, new)) = mutation.filter(|(changed, _, _)| *changed == file) {
            assert_eq!(text.matches(old).count(), 1, "{old:?} stands once in {file}");
            text = text.replace(old, new);
        }
        let to = scratch.path().join(file);
        fs::create_dir_all(to.parent().expect("a folder")).expect("a folder can be made");
        fs::write(to, text).expect("a source can be written");
    }
    let program = compile(scratch.path());
    Command::new(program).output().expect("the emulation starts")
}

fn compile(folder: &Path) -> PathBuf {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let program = folder.join("emulation/run");
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-ffp-contract=off", "-o"])
        .args([&program, &folder.join("emulation/main.cpp")])
        .output()
        .unwrap_or_else(|error| panic!("{compiler:?} does not start ({error}): install a C++ compiler, or set CXX"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}
