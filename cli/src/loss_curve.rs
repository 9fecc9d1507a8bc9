//! The loss curve of a run as an SVG file: a point per picture, a smoothed line per folder.
//!
//! Single losses scatter widely, since each has its own random timestep; only the smoothed lines say something.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ballast_coordinator::LossPoint;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 40.0;

/// Colours that people with colour blindness can tell apart (Okabe & Ito, 2008).
const COLOURS: [&str; 7] = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];

/// Standard deviation of the smoothing, as a fraction of the run.
const SMOOTHING: f64 = 0.03;

/// Sections of a smoothed line.
const LINE_PLACES: u64 = 150;

/// Most points that are drawn one by one; the lines use all.
const POINTS_MAX: usize = 1500;

/// Draws the curve. Returns none when there are too few losses to draw a line.
pub(crate) fn svg(points: &[LossPoint]) -> Option<String> {
    let (first, last) = (points.first()?.step, points.last()?.step);
    if last < first + 2 {
        return None;
    }
    let mut sorted: Vec<f64> = points.iter().map(|point| point.loss).collect();
    sorted.sort_by(f64::total_cmp);
    // The top of the axis leaves out the wildest twentieth, which would press everything else down.
    let axis = Axis::up_to(sorted[(sorted.len() - 1) * 95 / 100].max(f64::MIN_POSITIVE));
    let plot = Plot { first, last, axis };
    let mut svg = String::new();
    plot.frame(&mut svg);
    let shown = points.iter().step_by(points.len().div_ceil(POINTS_MAX));
    for point in shown.filter(|point| point.loss <= plot.axis.top) {
        let (x, y) = plot.place(point.step, point.loss);
        let _ = write!(svg, "<circle cx='{x:.1}' cy='{y:.1}' r='1.2' fill='#bbb' fill-opacity='0.5'/>");
    }
    let mut by_folder: BTreeMap<&str, Vec<(u64, f64)>> = BTreeMap::new();
    for point in points {
        by_folder.entry(&point.folder).or_default().push((point.step, point.loss));
    }
    let mut legend_x = LEFT;
    for (index, (folder, points)) in by_folder.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let line: Vec<_> = smooth(points, (last - first) as f64 * SMOOTHING)
            .map(|(step, loss)| plot.place(step, loss))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = write!(svg, "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2'/>", line.join(" "));
        let _ = write!(
            svg,
            "<rect x='{legend_x:.0}' y='12' width='14' height='4' fill='{colour}'/><text x='{:.0}' y='18'>{}</text>",
            legend_x + 19.0,
            escape(folder)
        );
        legend_x += 40.0 + 7.5 * folder.chars().count() as f64;
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

/// The mean loss around each of the places of a line, weighted by a Gaussian of the distance in steps. Looks both ways, so
/// that a line does not begin with the noise of its first loss.
fn smooth(points: &[(u64, f64)], width: f64) -> impl Iterator<Item = (u64, f64)> {
    let (first, last) = (points.first().map_or(0, |point| point.0), points.last().map_or(0, |point| point.0));
    (0..=LINE_PLACES).map(move |place| {
        let step = first + (last - first) * place / LINE_PLACES;
        let weigh = |at: u64| (-0.5 * (at.abs_diff(step) as f64 / width.max(1.0)).powi(2)).exp();
        // Far from all points every weight may vanish; the floor leaves their plain mean then.
        let weighted = points.iter().map(|(at, loss)| (weigh(*at).max(f64::MIN_POSITIVE), loss));
        let (sum, weight) =
            weighted.fold((0.0, 0.0), |(sum, total), (weight, loss)| (sum + weight * loss, total + weight));
        (step, sum / weight)
    })
}

/// A vertical axis from 0 with round numbers.
struct Axis {
    top: f64,
    spacing: f64,
}

impl Axis {
    fn up_to(value: f64) -> Self {
        let magnitude = 10f64.powf((value / 4.0).log10().floor());
        let spacing = [1.0, 2.0, 5.0, 10.0].map(|round| round * magnitude).into_iter().find(|s| s * 5.0 >= value);
        let spacing = spacing.unwrap_or(10.0 * magnitude);
        Self { top: (value / spacing).ceil() * spacing, spacing }
    }
}

struct Plot {
    first: u64,
    last: u64,
    axis: Axis,
}

impl Plot {
    fn place(&self, step: u64, loss: f64) -> (f64, f64) {
        let across = (step - self.first) as f64 / (self.last - self.first) as f64;
        let up = (loss / self.axis.top).min(1.0);
        (LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn frame(&self, svg: &mut String) {
        let _ = write!(
            svg,
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' font-family='sans-serif' \
             font-size='12' fill='#333'><rect width='{WIDTH}' height='{HEIGHT}' fill='#fff'/>"
        );
        let lines = (self.axis.top / self.axis.spacing).round() as u32;
        for line in 0..=lines {
            let loss = f64::from(line) * self.axis.spacing;
            let (_, y) = self.place(self.first, loss);
            let digits = (-self.axis.spacing.log10().floor()).max(0.0) as usize;
            let _ = write!(
                svg,
                "<line x1='{LEFT}' x2='{}' y1='{y:.1}' y2='{y:.1}' stroke='#e4e4e4'/>\
                 <text x='{}' y='{:.1}' text-anchor='end'>{loss:.digits$}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0
            );
        }
        for tick in 0..=4 {
            let step = self.first + (self.last - self.first) * tick / 4;
            let (x, _) = self.place(step, 0.0);
            let _ = write!(svg, "<text x='{x:.1}' y='{}' text-anchor='middle'>{step}</text>", HEIGHT - BOTTOM + 16.0);
        }
        let _ = write!(
            svg,
            "<text x='{:.0}' y='{}' text-anchor='middle'>step</text>\
             <text x='14' y='{:.0}' text-anchor='middle' transform='rotate(-90 14 {:.0})'>loss (unweighted)</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 6.0,
            (TOP + HEIGHT - BOTTOM) / 2.0,
            (TOP + HEIGHT - BOTTOM) / 2.0
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(losses: impl Iterator<Item = (u64, f64)>) -> Vec<LossPoint> {
        losses
            .map(|(step, loss)| LossPoint { step, folder: if step % 2 == 0 { "a<b" } else { "c" }.to_owned(), loss })
            .collect()
    }

    #[test]
    fn a_line_per_folder_within_the_frame() {
        let svg = svg(&points((10..60).map(|step| (step, 0.3 / (step - 9) as f64)))).unwrap();
        assert_eq!(
            (svg.matches("<polyline").count(), svg.matches("<circle").count()),
            (2, 47),
            "the wildest are left out"
        );
        assert!(svg.contains("a&lt;b") && svg.ends_with("</svg>\n"));
        for line in svg.split("points='").skip(1) {
            for place in line.split('\'').next().unwrap().split(' ') {
                let (x, y) = place.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y), "{place}");
            }
        }
    }

    #[test]
    fn axes_are_round_and_reach_the_value() {
        for (value, top, spacing) in [(0.37, 0.4, 0.1), (0.09, 0.1, 0.02), (4.2, 5.0, 1.0), (1.0, 1.0, 0.2)] {
            let axis = Axis::up_to(value);
            assert!(
                (axis.top - top).abs() < 1e-9 && (axis.spacing - spacing).abs() < 1e-9,
                "{value}: {} {}",
                axis.top,
                axis.spacing
            );
        }
    }

    #[test]
    fn too_few_losses_make_no_curve() {
        assert_eq!(svg(&[]), None);
        assert_eq!(svg(&points([(3, 0.1), (4, 0.2)].into_iter())), None);
    }
}
