//! Operations beside the CPU.

use ballast_model::Device;
use ballast_model::check::{self, Comparison, Format, Sizes};
use serde_json::json;

use crate::device::Formats;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number formats to compare in
    #[arg(long, value_enum, num_args = 1.., default_values = ["bf16", "f32"])]
    format: Vec<Formats>,
    /// Few rows, for a try on a CPU
    #[arg(long)]
    small: bool,
}

/// Whether every comparison is within its limit.
pub(crate) fn run(args: &Args, device: &Device) -> bool {
    let sizes = if args.small { Sizes::Small } else { Sizes::Real };
    let (mut good, mut count) = (true, 0);
    for format in &args.format {
        let format = match format {
            Formats::F32 => Format::F32,
            Formats::Bf16 => Format::Bf16,
        };
        check::operations(device, format, sizes, &mut |comparison| {
            let is_good = comparison.is_good();
            let Comparison { name, part, difference, limit } = comparison;
            println!(
                "{}",
                json!({"operation": name, "format": format.name(), "part": part, "difference": difference,
                       "limit": limit, "good": is_good})
            );
            good &= is_good;
            count += 1;
        });
    }
    println!("{}", json!({ "comparisons": count, "good": good }));
    good
}
