//! Prints what this machine has, as JSON; what `tests/machine.rs` runs, a process for each machine it makes up.

fn main() {
    let machine = ballast_cuda::machine::Machine::probe();
    println!("{}", serde_json::json!({ "machine": machine, "can_train": machine.can_train() }));
}
