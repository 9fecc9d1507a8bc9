//! Reads the data root for a command, with a bar on a terminal when that takes a while.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use ballast_common::UsageError;
use ballast_common::config::RunConfig;
use ballast_common::dataset::{Dataset, ScanOptions, ScanProgress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::Failure;

/// What takes less long needs no bar.
const BAR_DELAY: Duration = Duration::from_millis(400);

/// Reads all that lies under the config's data roots.
pub(crate) fn scan(config: &RunConfig) -> Result<Dataset, Failure> {
    let bar = Bar::new();
    let progress = |at| bar.show(at);
    let result =
        Dataset::scan_with(&config.data, &ScanOptions { progress: &progress, ..ScanOptions::new(&config.data) });
    bar.clear();
    Ok(result.map_err(UsageError::from)?)
}

/// Finds the images whose files are the same, byte by byte.
pub(crate) fn duplicates(config: &RunConfig, dataset: &Dataset) -> Vec<Vec<usize>> {
    let found = dataset.exact_duplicates(&ScanOptions::new(&config.data));
    found.into_iter().map(|duplicates| duplicates.samples).collect()
}

struct Bar {
    bar: Option<ProgressBar>,
    start: Instant,
}

impl Bar {
    fn new() -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // Who wants errors only wants no bar.
        let is_live = std::io::stderr().is_terminal() && !is_dumb && tracing::enabled!(tracing::Level::WARN);
        let bar = is_live.then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8)));
        Self { bar, start: Instant::now() }
    }

    fn show(&self, at: ScanProgress) {
        let Some(bar) = self.bar.as_ref().filter(|_| self.start.elapsed() >= BAR_DELAY) else { return };
        match at {
            ScanProgress::Listing { folders, images } => {
                bar.set_style(style("{spinner} {wide_msg}"));
                bar.set_message(format!("listing the data root: {folders} folders, {images} images"));
            }
            // What is said next must not stand behind a bar.
            ScanProgress::Done { .. } => self.clear(),
            ScanProgress::Comparing { .. } => {}
            ScanProgress::Reading { done, total } => {
                if bar.length().is_none() {
                    bar.set_style(style(
                        "{bar:24.cyan/blue} reading images: {human_pos}/{human_len}, {per_sec}, {eta} left",
                    ));
                    bar.set_message("");
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well formed")
}
