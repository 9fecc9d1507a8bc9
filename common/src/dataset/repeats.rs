//! Folders named `3_a subject`, as sd-scripts has them: the number is how often the folder's images are used per epoch, the
//! rest their caption where they have no other. Only when the config asks for it, and weaker than every file.

use super::AppliedFile;
use super::DataRoots;
use super::decimal::Decimal;
use super::settings::Overrides;
use super::sidecar::Findings;
use super::walk::WalkedFolder;

const MAX_REPEATS: u64 = 10_000;

/// Applies the names of folders, if that is asked for; else warns of a root whose folders all have such names.
pub(super) fn repeats_from_names(
    walked: &[WalkedFolder],
    roots: &DataRoots,
    is_on: bool,
    settings: &mut [Overrides],
    findings: &mut Findings,
) {
    if !is_on {
        findings.warnings.extend((0..roots.iter().count()).filter_map(|root| unused(walked, roots, root)));
        return;
    }
    for (folder, settings) in walked.iter().zip(settings) {
        let below = roots.get(folder.root).below(&folder.path);
        if folder.images.is_empty() || folder.entries.is_some() {
            continue;
        }
        let Some((repeats, caption)) = below.rsplit('/').next().and_then(split) else { continue };
        let path = folder.path.clone();
        let Some(repeats) = repeats.parse().ok().filter(|repeats| (1..=MAX_REPEATS).contains(repeats)) else {
            let warning = format!("{path}: {repeats} in front of its name is not applied; allowed: 1 to {MAX_REPEATS}");
            findings.warnings.push(warning);
            continue;
        };
        let mut applied = Vec::new();
        if settings.multiply.is_none() {
            settings.multiply = Some(Decimal::from(repeats));
            applied.push(format!("multiply {repeats}"));
        }
        if settings.main_prompt.is_none() && !caption.is_empty() {
            settings.main_prompt = Some(caption.to_owned());
            applied.push(format!("caption {caption:?}"));
        }
        if !applied.is_empty() {
            findings.applied.push(AppliedFile { path, value: applied.join(", ") });
        }
    }
}

/// Splits `3_a subject`.
fn split(name: &str) -> Option<(&str, &str)> {
    let (number, caption) = name.split_once('_')?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some((number, caption.trim()))
}

/// Returns a warning if all folders directly below a root are named so.
fn unused(walked: &[WalkedFolder], roots: &DataRoots, root: usize) -> Option<String> {
    let direct = |folder: &&WalkedFolder| {
        let below = roots.get(root).below(&folder.path);
        folder.root == root && folder.entries.is_none() && !below.is_empty() && !below.contains('/')
    };
    let mut folders = walked.iter().filter(direct).peekable();
    let first = folders.peek()?.path.clone();
    let is_named_so = |folder: &WalkedFolder| split(roots.get(root).below(&folder.path)).is_some();
    folders.all(is_named_so).then(|| {
        format!(
            "the number in front of the folder names, as in {first:?}, has no effect: with data.repeats_from_names = true \
             it says how often the images are used, and the rest of the name is their caption"
        )
    })
}
