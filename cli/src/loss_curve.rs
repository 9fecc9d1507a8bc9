//! The loss curve of a run as an SVG file: a dot per picture, a smoothed line per folder.
//!
//! Single losses scatter widely, since each has its own random timestep; only the smoothed lines say something.

use ballast_coordinator::report::{LossPart, LossReport, RunReport};

use crate::plot::{LineChart, Point, Series, Titles, smooth};

/// Standard deviation of the smoothing, as a fraction of the run.
const SMOOTHING: f64 = 0.03;

/// Draws the curve. Returns none when there are too few steps to draw a line.
pub(crate) fn svg(report: &RunReport) -> Option<String> {
    let titles = Titles {
        title: "Loss by folder".to_owned(),
        subtitle: "unweighted; dots are single pictures, lines their mean nearby, bands where that mean may well lie"
            .to_owned(),
        across: "step".to_owned(),
        up: "loss".to_owned(),
    };
    let chart = LineChart { titles: &titles, scatter: &report.scatter, reference: None, ..by_folder(report, raw)? };
    Some(chart.draw())
}

/// Makes a chart with a line per folder, those with the most uses first.
pub(crate) fn by_folder(report: &RunReport, value: fn(&LossPart) -> (f64, f64)) -> Option<LineChart<'static>> {
    let mut folders: Vec<_> = report.folders.iter().collect();
    folders.sort_by(|a, b| b.exposures.delivered.cmp(&a.exposures.delivered).then(a.path.cmp(&b.path)));
    chart(report, folders.into_iter().map(|folder| (folder.path.clone(), &folder.loss)), value)
}

/// Makes a chart with a line for each of some losses. None when there are too few steps.
pub(crate) fn chart<'a>(
    report: &RunReport,
    lines: impl Iterator<Item = (String, &'a LossReport)>,
    value: fn(&LossPart) -> (f64, f64),
) -> Option<LineChart<'static>> {
    let steps = report.run.committed_steps;
    let series = lines.filter(|(_, loss)| loss.over_time.len() > 1).map(|(name, loss)| {
        let points: Vec<_> = loss.over_time.iter().map(|part| point(part, value)).collect();
        Series { name, line: smooth(&points, steps as f64 * SMOOTHING) }
    });
    let series: Vec<_> = series.collect();
    const NO_TITLES: &Titles =
        &Titles { title: String::new(), subtitle: String::new(), across: String::new(), up: String::new() };
    (steps > 2 && !series.is_empty()).then(|| LineChart {
        titles: NO_TITLES,
        steps: (0.0, (steps - 1) as f64),
        series,
        scatter: &[],
        reference: None,
    })
}

/// The losses as they are.
pub(crate) fn raw(part: &LossPart) -> (f64, f64) {
    (part.mean, part.deviation)
}

/// The losses adjusted for their timesteps.
pub(crate) fn adjusted(part: &LossPart) -> (f64, f64) {
    (part.adjusted, part.adjusted_deviation)
}

fn point(part: &LossPart, value: fn(&LossPart) -> (f64, f64)) -> Point {
    let (mean, deviation) = value(part);
    Point { at: (part.from_step + part.to_step - 1) as f64 / 2.0, count: part.losses, mean, deviation }
}
