//! Bars: one row per name, or one column per number.

use super::axis::Axis;
use super::svg::{Anchor, Svg, shortened, width_of};
use super::{COLOURS, Titles};

const WIDTH: f64 = 900.0;
const TOP: f64 = 92.0;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;

/// Longest name that is written out.
const NAME_MAX: usize = 34;

/// What was wanted and did not come.
const LACKING: &str = "#D55E00";

/// A row of a bar chart.
pub(crate) struct Bar {
    pub(crate) name: String,
    /// What there is.
    pub(crate) value: f64,
    /// What there should be, if that is known.
    pub(crate) wanted: Option<f64>,
    /// What is written behind the bar.
    pub(crate) note: String,
}

/// Draws a row per bar, with a mark where it should end. `more` says what was left out below.
pub(crate) fn bars(titles: &Titles, legend: [&str; 3], rows: &[Bar], more: Option<&str>) -> String {
    let names: Vec<String> = rows.iter().map(|bar| shortened(&bar.name, NAME_MAX)).collect();
    let left = 28.0 + names.iter().map(|name| width_of(name)).fold(40.0, f64::max);
    let right = WIDTH - 28.0 - rows.iter().map(|bar| width_of(&bar.note)).fold(20.0, f64::max);
    let most = rows.iter().map(|bar| bar.value.max(bar.wanted.unwrap_or(0.0))).fold(0.0, f64::max);
    let axis = Axis::covering(0.0, most, 6);
    let floor = TOP + ROW * rows.len() as f64;
    let height = floor + if more.is_some() { 70.0 } else { 50.0 };
    let x = |value: f64| left + axis.share(value) * (right - left);
    let mut svg = Svg::new(WIDTH, height, titles);
    draw_legend(&mut svg, legend, rows);
    for tick in axis.ticks() {
        svg.line((x(tick), TOP - 6.0), (x(tick), floor), "#e8e8e8", 1.0);
        svg.text((x(tick), floor + 16.0), Anchor::Middle, "#555", &axis.label(tick));
    }
    for (index, (bar, name)) in rows.iter().zip(names).enumerate() {
        let y = TOP + ROW * index as f64;
        svg.text((left - 8.0, y + BAR - 3.5), Anchor::End, "#222", &name);
        svg.rectangle((left, y), (x(bar.value) - left, BAR), COLOURS[0]);
        if let Some(wanted) = bar.wanted {
            if wanted > bar.value {
                svg.rectangle((x(bar.value), y), (x(wanted) - x(bar.value), BAR), LACKING);
            }
            svg.rectangle((x(wanted) - 1.0, y - 3.0), (2.0, BAR + 6.0), "#111");
        }
        let end = x(bar.value.max(bar.wanted.unwrap_or(0.0)));
        svg.text((end + 8.0, y + BAR - 3.5), Anchor::Start, "#555", &bar.note);
    }
    svg.text(((left + right) / 2.0, floor + 36.0), Anchor::Middle, "#666", &titles.across);
    if let Some(more) = more {
        svg.text((20.0, floor + 58.0), Anchor::Start, "#666", more);
    }
    svg.finish()
}

/// Says what the colours mean, as far as they occur.
fn draw_legend(svg: &mut Svg, [value, wanted, lacking]: [&str; 3], rows: &[Bar]) {
    let is_wanted = rows.iter().any(|bar| bar.wanted.is_some());
    let lacks = rows.iter().any(|bar| bar.wanted.is_some_and(|wanted| wanted > bar.value));
    let entries = [(value, COLOURS[0], 12.0, true), (wanted, "#111", 2.0, is_wanted), (lacking, LACKING, 12.0, lacks)];
    let mut x = 20.0;
    for (name, colour, width, _) in entries.into_iter().filter(|(.., is_shown)| *is_shown) {
        svg.rectangle((x, 60.0), (width, 12.0), colour);
        svg.text((x + width + 6.0, 70.5), Anchor::Start, "#222", name);
        x += width + 26.0 + width_of(name);
    }
}

/// Most columns that are told apart; beyond it neighbours share one.
const COLUMNS_MAX: u64 = 40;

/// Draws a column per number: how many there are of each. `counts` are (number, how many), in order.
pub(crate) fn columns(titles: &Titles, counts: &[(u64, u64)]) -> String {
    const HEIGHT: f64 = 400.0;
    const LEFT: f64 = 80.0;
    const FLOOR: f64 = HEIGHT - 50.0;
    let (first, last) = (counts.first().map_or(0, |count| count.0), counts.last().map_or(0, |count| count.0));
    let per_column = (last - first + 1).div_ceil(COLUMNS_MAX);
    let number = (last - first) / per_column + 1;
    let mut heights = vec![0u64; number as usize];
    counts.iter().for_each(|(at, count)| heights[((at - first) / per_column) as usize] += count);
    let up = Axis::covering(0.0, heights.iter().copied().max().unwrap_or(0) as f64, 5);
    let top = 76.0;
    let y = |value: f64| FLOOR - up.share(value) * (FLOOR - top);
    // Few columns would be as wide as doors.
    let step = ((WIDTH - LEFT - 30.0) / number as f64).min(110.0);
    let mut svg = Svg::new(WIDTH, HEIGHT, titles);
    for tick in up.ticks() {
        svg.line((LEFT, y(tick)), (WIDTH - 30.0, y(tick)), "#e8e8e8", 1.0);
        svg.text((LEFT - 8.0, y(tick) + 4.0), Anchor::End, "#555", &up.label(tick));
    }
    let widest = width_of(&last.to_string()) * if per_column > 1 { 2.4 } else { 1.3 };
    let every = (widest / step).ceil().max(1.0) as usize;
    for (index, height) in heights.iter().enumerate() {
        let (x, from) = (LEFT + step * index as f64, first + index as u64 * per_column);
        let gap = (step * 0.14).min(8.0);
        svg.rectangle((x + gap, y(*height as f64)), (step - 2.0 * gap, FLOOR - y(*height as f64)), COLOURS[0]);
        let middle = x + step / 2.0;
        if number <= 16 && *height > 0 {
            svg.text((middle, y(*height as f64) - 6.0), Anchor::Middle, "#222", &height.to_string());
        }
        if index.is_multiple_of(every) {
            let name = if per_column == 1 { from.to_string() } else { format!("{from}–{}", from + per_column - 1) };
            svg.text((middle, FLOOR + 18.0), Anchor::Middle, "#555", &name);
        }
    }
    svg.line((LEFT, FLOOR), (WIDTH - 30.0, FLOOR), "#999", 1.0);
    svg.text(((LEFT + WIDTH - 30.0) / 2.0, HEIGHT - 12.0), Anchor::Middle, "#666", &titles.across);
    svg.text_upwards((18.0, (top + FLOOR) / 2.0), &titles.up);
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_lacks_something_shows_it() {
        let row = |value: f64, wanted| Bar { name: "a<b".to_owned(), value, wanted, note: String::new() };
        let titles = Titles::default();
        let whole = bars(&titles, ["is", "should", "lacks"], &[row(3.0, Some(3.0))], None);
        assert!(whole.contains("a&lt;b") && !whole.contains(LACKING) && !whole.contains(">lacks<"));
        let lacking = bars(&titles, ["is", "should", "lacks"], &[row(2.0, Some(3.0))], Some("… and 4 more"));
        assert!(lacking.contains(LACKING) && lacking.contains(">lacks<") && lacking.contains("… and 4 more"));
        let unknown = bars(&titles, ["is", "should", "lacks"], &[row(0.0, None)], None);
        assert!(!unknown.contains(">should<"));
    }

    #[test]
    fn many_numbers_share_columns_and_none_is_lost() {
        let titles = Titles::default();
        let few = columns(&titles, &[(2, 30), (3, 20), (5, 1)]);
        // The sheet, and a column for each of 2, 3, 4, 5.
        assert_eq!(few.matches("<rect").count(), 1 + 4);
        assert!(few.contains(">30<") && few.contains(">20<"));
        let many: Vec<_> = (0..1000).map(|number| (number, 1)).collect();
        assert!(columns(&titles, &many).matches("<rect").count() <= 1 + COLUMNS_MAX as usize);
        assert!(columns(&titles, &[]).contains("</svg>"));
    }
}
