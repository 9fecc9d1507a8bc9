//! `ballast convert`: a model from one form into another, and what a model is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ballast_common::grouped;
use ballast_common::telemetry::{self, Options, Service};
use ballast_model::SavePrecision;
use ballast_model::checkpoint::{Description, Form};
use serde_json::json;

use crate::failure::Failure;
use crate::model_args::ModelArgs;
use crate::output::{print, say};
use crate::plan::Format;
use crate::summary::shown;
use crate::{OutputArgs, model_path};

/// Converts a model between the diffusers folder layout and the single-file layout, or shows what a model is.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The model: a diffusers folder, a .safetensors file or a .ckpt file.
    from: PathBuf,
    /// What to write: NAME.safetensors is a single file, any other name a diffusers folder.
    #[arg(required_unless_present = "dry_run")]
    to: Option<PathBuf>,
    /// What to write, whatever its name is.
    #[arg(long = "to", value_name = "FORM", value_enum)]
    form: Option<FormArg>,
    /// The number format to write [default: the model's own, fp32 if it is mixed].
    #[arg(long, value_enum)]
    precision: Option<PrecisionArg>,
    /// Writes KEY=VALUE into the metadata of a single file, e.g. modelspec.author=me. May be given many times.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    /// Replaces TO if it is there.
    #[arg(long)]
    force: bool,
    /// Only shows what the model is: kind, precision, sizes, metadata.
    #[arg(long, visible_alias = "inspect")]
    dry_run: bool,
    /// How to report: for people, or as one JSON object.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FormArg {
    /// A folder with a folder for each part.
    Diffusers,
    /// One .safetensors file.
    SingleFile,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PrecisionArg {
    /// 32 bits: to train further.
    Fp32,
    /// 16 bits, half the size: to make pictures.
    Fp16,
    /// 16 bits with the range of 32 and fewer digits than fp16.
    Bf16,
}

const AFTER_HELP: &str = "\
Examples:
  ballast convert model.ckpt models/mine                  a .ckpt to a folder; nothing in the pickle is executed
  ballast convert runs/boats/final boats.safetensors --precision fp16
                                                          half the size, for the tools that make pictures
  ballast convert v2-768.ckpt models/v2 --prediction-type v
  ballast convert model.ckpt models/mine --ema            the averaged weights instead of the last ones
  ballast convert model.safetensors --dry-run             what is it?

Weights pass through a piece of a tensor at a time: a model of any size takes a few megabytes of memory. TO appears when it is
complete. A single file has no configuration: one that ballast wrote carries its own, for any other it is derived from the
tensors' shapes, and what shapes cannot tell is named. SD 2.x models that predict the velocity are recognised by metadata, or by
a NAME.yaml beside NAME.ckpt that says `parameterization: \"v\"`; else say --prediction-type v.";

/// Runs the command.
pub(crate) fn run(args: Args, output: OutputArgs) -> Result<ExitCode, Failure> {
    let _telemetry = telemetry::init(Service::Cli, Options::new(output.verbosity()));
    let target = args.to.as_deref().map(|to| Target::new(to, args.form)).transpose()?;
    let checkpoint = model_path::open(&args.from, &args.model.options())?;
    let description = checkpoint.describe();
    if output.verbosity() >= 0 && args.format == Format::Text {
        description.notes.iter().for_each(|note| say(&format!("note: {note}")));
    }
    let precision = args.precision.map_or_else(|| checkpoint.precision(), PrecisionArg::save);
    if let (Some(target), false) = (&target, args.dry_run) {
        let written = match target.form {
            Form::Diffusers => checkpoint.write_diffusers(&target.path, precision, args.force),
            Form::SingleFile => {
                let metadata: BTreeMap<String, String> = args.metadata.iter().cloned().collect();
                checkpoint.write_single_file(&target.path, precision, &metadata, args.force)
            }
        };
        written.map_err(model_path::failure)?;
    }
    match args.format {
        Format::Json => {
            let to = target.map(|to| json!({"path": to.path, "form": to.form, "precision": precision.name()}));
            let report = json!({"from": description, "to": to, "written": !args.dry_run});
            print(&serde_json::to_string_pretty(&report).expect("a report is plain data"))?;
        }
        Format::Text if args.dry_run => print(described(&description).trim_end())?,
        Format::Text => print(&target.map_or_else(String::new, |target| shown(&target.path)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is to be written.
struct Target {
    path: PathBuf,
    form: Form,
}

impl Target {
    fn new(path: &Path, form: Option<FormArg>) -> Result<Self, Failure> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
        let form = match (form, extension.as_deref()) {
            (Some(FormArg::Diffusers), _) => Form::Diffusers,
            (Some(FormArg::SingleFile), _) => Form::SingleFile,
            (None, Some("safetensors")) => Form::SingleFile,
            (None, Some("ckpt" | "pt" | "pth" | "bin")) => {
                return Err(Failure::usage(format_args!("{} would be a pickle, which is only read", path.display()))
                    .hint("end the name in .safetensors: every tool that reads the one reads the other"));
            }
            (None, _) => Form::Diffusers,
        };
        Ok(Self { path: path.to_owned(), form })
    }
}

impl PrecisionArg {
    fn save(self) -> SavePrecision {
        match self {
            Self::Fp32 => SavePrecision::Fp32,
            Self::Fp16 => SavePrecision::Fp16,
            Self::Bf16 => SavePrecision::Bf16,
        }
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What the model is, for a person.
fn described(model: &Description) -> String {
    let form = match model.form {
        Form::Diffusers => "diffusers folder",
        Form::SingleFile => "single file",
    };
    let side = model.resolution;
    let mut text = format!(
        "{}\n{}, {form}, predicts {}, made for {side}x{side} pixels, {} tokens\n\n",
        shown(&model.path),
        model.family,
        if model.prediction_type == "epsilon" { "the noise (epsilon)" } else { "the velocity (v)" },
        grouped(model.tokens as u64),
    );
    for part in &model.parts {
        let total = part.parameters.max(1) as f64;
        let stored = part.stored.iter().map(|(format, count)| match *count == part.parameters {
            true => format.clone(),
            false => format!("{format} {:.0} %", *count as f64 / total * 100.0),
        });
        let stored: Vec<String> = stored.collect();
        text += &format!("  {:<13}{:>14} parameters  {}\n", part.name, grouped(part.parameters), stored.join(", "));
    }
    text += &format!("  {:<13}{:>14}\n", "together", grouped(model.parameters()));
    if model.has_ema {
        text += "\nWith moving averages of the UNet's weights (--ema).\n";
    }
    if !model.metadata.is_empty() {
        text += "\nMetadata:\n";
        for (key, value) in &model.metadata {
            text += &format!("  {key}: {}\n", shortened(value));
        }
    }
    text
}

/// A value of metadata on one line: some tools keep whole configurations there.
fn shortened(value: &str) -> String {
    const SHOWN: usize = 100;
    let line: String = value.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    let more = value.chars().count().saturating_sub(SHOWN);
    if more > 0 { format!("{line} … ({more} characters more)") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_guessed_from_the_name() {
        let form = |path: &str| Target::new(Path::new(path), None).map(|target| target.form).ok();
        assert_eq!(form("a/model.safetensors"), Some(Form::SingleFile));
        assert_eq!(form("a/MODEL.SafeTensors"), Some(Form::SingleFile));
        assert_eq!(form("a/model"), Some(Form::Diffusers));
        assert_eq!(form("a/sd-v1.5"), Some(Form::Diffusers));
        assert_eq!(form("a/model.ckpt"), None);
    }
}
