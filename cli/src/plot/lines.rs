//! Lines over the steps of a run, each with its name beside its end.

use super::axis::Axis;
use super::svg::{Anchor, Svg, shortened, width_of};
use super::{COLOURS, Titles};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 62.0;
const TOP: f64 = 66.0;
const BOTTOM: f64 = 50.0;

/// Height of a line's name.
const NAME_HEIGHT: f64 = 16.0;

/// Longest name that is written out.
const NAME_MAX: usize = 30;

/// Grey of the lines that have no colour of their own.
const OTHERS: &str = "#c4c4c4";

/// Paler still, where they are so many that they would cover the sheet.
const CROWD: &str = "#e6e6e6";

/// A line: its name and its (place, mean, half the band's width).
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) line: Vec<(f64, f64, f64)>,
}

/// Lines over a range of steps.
pub(crate) struct LineChart<'a> {
    pub(crate) titles: &'a Titles,
    /// First and last step.
    pub(crate) steps: (f64, f64),
    /// The most important ones first: those beyond the colours are grey.
    pub(crate) series: Vec<Series>,
    /// Dots behind the lines.
    pub(crate) scatter: &'a [(u64, f64)],
    /// A value to compare with, drawn as a dark line. Without one the axis begins at 0.
    pub(crate) reference: Option<f64>,
}

impl LineChart<'_> {
    /// Draws the chart.
    pub(crate) fn draw(&self) -> String {
        let coloured = self.series.len().min(COLOURS.len());
        let names: Vec<String> = self.series[..coloured].iter().map(|s| shortened(&s.name, NAME_MAX)).collect();
        let others = self.series.len() - coloured;
        let more = (others > 0).then(|| format!("{others} more"));
        let widest = names.iter().chain(&more).map(|name| width_of(name)).fold(40.0, f64::max);
        let frame = Frame {
            across: Axis::of_counts(self.steps.0, self.steps.1, 8),
            up: self.up(),
            right: WIDTH - widest - 46.0,
        };
        let mut svg = Svg::new(WIDTH, HEIGHT, self.titles);
        frame.draw(&mut svg, self);
        for (step, value) in self.scatter.iter().filter(|(_, value)| *value <= frame.up.high) {
            svg.dot(frame.place(*step as f64, *value), 1.4, "#999", 0.35);
        }
        for series in self.series[coloured..].iter().rev() {
            svg.polyline(&frame.line(series), if others > 30 { CROWD } else { OTHERS }, 1.0);
        }
        for (series, colour) in self.series[..coloured].iter().zip(COLOURS).rev() {
            svg.area(&frame.band(series), colour, 0.13);
        }
        for (series, colour) in self.series[..coloured].iter().zip(COLOURS).rev() {
            svg.polyline(&frame.line(series), colour, 2.2);
        }
        let named = self.series[..coloured].iter().zip(names).zip(COLOURS);
        let mut labels: Vec<_> = named.map(|((series, name), colour)| (frame.end(series), name, colour)).collect();
        labels.extend(more.map(|name| ((f64::NAN, HEIGHT - BOTTOM), name, OTHERS)));
        frame.name(&mut svg, labels);
        svg.finish()
    }

    /// Finds the vertical axis: wide enough for every line, and for a coloured one's band unless that is very wide.
    fn up(&self) -> Axis {
        let lines = || self.series.iter().flat_map(|series| &series.line);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for (_, mean, band) in lines() {
            let band = band.min(0.25 * mean.abs());
            low = low.min(mean - band);
            high = high.max(mean + band);
        }
        if let Some(reference) = self.reference {
            let high = high.max(reference + 0.05);
            return Axis::covering(low.min(reference - 0.05).max(0.0), if high.is_finite() { high } else { 1.0 }, 6);
        }
        // The wildest twentieth of the dots would press everything else down.
        let mut dots: Vec<f64> = self.scatter.iter().map(|(_, value)| *value).collect();
        dots.sort_by(f64::total_cmp);
        let dots = dots.get(dots.len().saturating_sub(1) * 95 / 100).copied().unwrap_or(0.0);
        Axis::covering(0.0, if high.is_finite() { high.max(dots) } else { dots }, 5)
    }
}

/// Where things lie on the sheet.
struct Frame {
    across: Axis,
    up: Axis,
    right: f64,
}

impl Frame {
    fn place(&self, step: f64, value: f64) -> (f64, f64) {
        let up = self.up.share(value).clamp(0.0, 1.0);
        (LEFT + self.across.share(step) * (self.right - LEFT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))
    }

    fn line(&self, series: &Series) -> Vec<(f64, f64)> {
        series.line.iter().map(|(step, mean, _)| self.place(*step, *mean)).collect()
    }

    fn band(&self, series: &Series) -> Vec<(f64, f64)> {
        let upper = series.line.iter().map(|(step, mean, band)| self.place(*step, mean + band));
        upper.chain(series.line.iter().rev().map(|(step, mean, band)| self.place(*step, mean - band))).collect()
    }

    fn end(&self, series: &Series) -> (f64, f64) {
        series.line.last().map_or((LEFT, TOP), |(step, mean, _)| self.place(*step, *mean))
    }

    fn draw(&self, svg: &mut Svg, chart: &LineChart<'_>) {
        let floor = HEIGHT - BOTTOM;
        for tick in self.up.ticks() {
            let (_, y) = self.place(self.across.low, tick);
            svg.line((LEFT, y), (self.right, y), "#e8e8e8", 1.0);
            svg.text((LEFT - 8.0, y + 4.0), Anchor::End, "#555", &self.up.label(tick));
        }
        for tick in self.across.ticks() {
            let (x, _) = self.place(tick, self.up.low);
            svg.line((x, floor), (x, floor + 4.0), "#999", 1.0);
            svg.text((x, floor + 18.0), Anchor::Middle, "#555", &self.across.label(tick));
        }
        svg.line((LEFT, floor), (self.right, floor), "#999", 1.0);
        if let Some(reference) = chart.reference {
            let (_, y) = self.place(self.across.low, reference);
            svg.line((LEFT, y), (self.right, y), "#888", 1.2);
        }
        svg.text(((LEFT + self.right) / 2.0, HEIGHT - 12.0), Anchor::Middle, "#666", &chart.titles.across);
        svg.text_upwards((18.0, (TOP + floor) / 2.0), &chart.titles.up);
    }

    /// Writes the names beside the ends of their lines, moved apart where they would overlap.
    fn name(&self, svg: &mut Svg, mut labels: Vec<((f64, f64), String, &str)>) {
        labels.sort_by(|((_, a), ..), ((_, b), ..)| a.total_cmp(b));
        let wanted: Vec<f64> = labels.iter().map(|((_, y), ..)| *y).collect();
        for (((x, y), name, colour), place) in labels.iter().zip(moved_apart(&wanted, TOP, HEIGHT - BOTTOM)) {
            let start = self.right + 12.0;
            if x.is_finite() && ((place - y).abs() > 3.0 || start - x > 20.0) {
                svg.line((*x + 2.0, *y), (start, place), colour, 0.7);
            }
            svg.line((start, place), (start + 14.0, place), colour, 3.0);
            svg.text((start + 19.0, place + 4.0), Anchor::Start, "#222", name);
        }
    }
}

/// Moves places, which are in order, so far apart that names fit, within the limits as long as there is room.
fn moved_apart(wanted: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut places = wanted.to_vec();
    let mut least = top;
    for place in &mut places {
        *place = place.max(least);
        least = *place + NAME_HEIGHT;
    }
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - NAME_HEIGHT;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(count: usize) -> String {
        let series = |number: usize| Series {
            name: format!("folder <{number}> with a name that goes on and on and on"),
            line: (0..=10).map(|step| (f64::from(step), 0.2 + number as f64 * 0.001, 0.01)).collect(),
        };
        let titles = Titles { title: "a & b".to_owned(), ..Titles::default() };
        let series = (0..count).map(series).collect();
        LineChart { titles: &titles, steps: (0.0, 10.0), series, scatter: &[(3, 0.1), (4, 9.0)], reference: None }
            .draw()
    }

    #[test]
    fn a_line_per_series_and_names_for_those_with_a_colour() {
        let few = chart(3);
        assert_eq!((few.matches("<polyline").count(), few.matches("<polygon").count()), (3, 3));
        assert!(few.contains("a &amp; b") && !few.contains(" more<"));
        let many = chart(30);
        assert_eq!((many.matches("<polyline").count(), many.matches("<polygon").count()), (30, 7));
        assert!(many.contains(">23 more<"), "{many}");
    }

    #[test]
    fn everything_lies_within_the_sheet() {
        for text in chart(30).split('\'').filter(|text| text.contains(',')) {
            for place in text.split(' ') {
                let Some((x, y)) = place.split_once(',') else { continue };
                let (Ok(x), Ok(y)) = (x.parse::<f64>(), y.parse::<f64>()) else { continue };
                assert!((LEFT..=WIDTH).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y), "{place}");
            }
        }
        assert_eq!(chart(1).matches("<circle").count(), 1, "the wildest dots are left out");
    }

    #[test]
    fn names_keep_their_distance() {
        let places = moved_apart(&[100.0, 100.0, 100.0, 390.0, 390.0], 66.0, 390.0);
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= NAME_HEIGHT - 1e-9), "{places:?}");
        assert!(places[0] >= 66.0 && places[4] <= 390.0);
        assert_eq!(moved_apart(&[80.0, 200.0], 66.0, 390.0), [80.0, 200.0]);
    }
}
