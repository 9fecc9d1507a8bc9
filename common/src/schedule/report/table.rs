//! Aligned columns and the way numbers are written, for reports that people read.

use unicode_width::UnicodeWidthStr;

use crate::dataset::Decimal;
pub(crate) use crate::grouped;

/// A folder's name is not made narrower than this.
const FIRST_COLUMN_MIN: usize = 12;

/// Longer numbers are cut.
const NUMBER_MAX: usize = 8;

/// Rows of text in columns: the first to the left, all others to the right.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, row: [String; N]) {
        debug_assert_eq!(self.rows[0].len(), N);
        self.rows.push(row.to_vec());
    }

    /// Leaves a column out whose cells below the head are all empty.
    pub(crate) fn without_empty_columns(mut self) -> Self {
        let is_used: Vec<bool> =
            (0..self.rows[0].len()).map(|column| self.rows.iter().skip(1).any(|row| !row[column].is_empty())).collect();
        for row in &mut self.rows {
            let mut is_used = is_used.iter();
            row.retain(|_| *is_used.next().expect("all rows have the same columns"));
        }
        self
    }

    /// Returns the lines. Where they would be wider than `width`, names in the first column are cut.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let mut widths: Vec<usize> = (0..self.rows[0].len())
            .map(|column| self.rows.iter().map(|row| row[column].width()).max().unwrap_or(0))
            .collect();
        let others: usize = widths.iter().skip(1).map(|width| width + 2).sum::<usize>() + 2;
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(others).max(FIRST_COLUMN_MIN));
        widths[0] = widths[0].min(room);
        let line = |row: &Vec<String>| {
            let first = fitted(&row[0], widths[0]);
            let mut line = format!("  {first}{}", " ".repeat(widths[0] - first.width()));
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line += &format!("  {}{cell}", " ".repeat(width - cell.width()));
            }
            line.truncate(line.trim_end().len());
            line + "\n"
        };
        self.rows.iter().map(line).collect()
    }
}

/// Cuts a name in the middle, so that both where it lies and what it is called can be seen.
fn fitted(name: &str, width: usize) -> String {
    if name.width() <= width {
        return name.to_owned();
    }
    let head = taken(name.chars(), width / 3);
    let tail: String = taken(name.chars().rev(), width - 1 - head.width()).chars().rev().collect();
    format!("{head}…{tail}")
}

fn taken(characters: impl Iterator<Item = char>, width: usize) -> String {
    let mut text = String::new();
    for character in characters {
        text.push(character);
        if text.width() > width {
            text.pop();
            break;
        }
    }
    text
}

/// Counts a thing: `1 image`, `1,350 images`.
pub(crate) fn plural(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// Writes a part of 1 as a percentage with two decimals.
pub(crate) fn percent(part: f64) -> String {
    match part * 100.0 {
        percent if percent > 0.0 && percent < 0.005 => "<0.01 %".to_owned(),
        percent => format!("{:.2} %", if percent == 0.0 { 0.0 } else { percent }),
    }
}

/// Writes how often an image is used: with fewer decimals the larger it is.
pub(crate) fn repeats(number: f64) -> String {
    let decimals = match number {
        number if number > 0.0 && number < 0.005 => return "<0.01".to_owned(),
        number if number < 10.0 => 2,
        number if number < 100.0 => 1,
        number => return grouped(number.round() as u64),
    };
    let text = format!("{number:.decimals$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writes a setting as it was written, unless it is long.
pub(crate) trait Short {
    fn short(&self) -> String;
}

impl Short for Decimal {
    fn short(&self) -> String {
        short(&self.to_string())
    }
}

impl Short for f64 {
    fn short(&self) -> String {
        short(&self.to_string())
    }
}

/// Cuts a number that has more digits than anybody reads.
pub(crate) fn short(number: &str) -> String {
    let point = number.find('.').unwrap_or(number.len());
    let significant = number.char_indices().skip(point).find(|(_, c)| !matches!(c, '0' | '.'));
    // Never cut before the first digit that is not 0.
    let keep = (NUMBER_MAX - 1).max(significant.map_or(0, |(at, _)| at + 2));
    if number.len() <= keep + 1 { number.to_owned() } else { format!("{}…", &number[..keep]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_say_what_they_are() {
        assert_eq!(
            [0.0, -0.0, 0.00001, 0.5, -0.25, 1.0].map(percent),
            ["0.00 %", "0.00 %", "<0.01 %", "50.00 %", "-25.00 %", "100.00 %"]
        );
        assert_eq!(
            [0.0, 0.001, 0.4, 2.5, 17.04, 20.0, 1234.5].map(repeats),
            ["0", "<0.01", "0.4", "2.5", "17", "20", "1,235"]
        );
        let numbers = ["2", "0.05", "10000", "0.333333", "0.3333333333", "0.0000000012345", "-0.25", "1234.56789"];
        assert_eq!(
            numbers.map(short),
            ["2", "0.05", "10000", "0.333333", "0.33333…", "0.0000000012…", "-0.25", "1234.56…"]
        );
        assert_eq!((plural(1, "image"), plural(1350, "image")), ("1 image".into(), "1,350 images".into()));
    }

    #[test]
    fn wide_letters_count_twice_and_long_names_are_cut_in_the_middle() {
        let mut table = Table::new(["folder", "images"]);
        table.row(["猫の写真".into(), "3".into()]);
        table.row(["styles/an old master with a very long name/oil".into(), "1,350".into()]);
        let expected = "
  folder                  images
  猫の写真                     3
  styles/a…y long name/oil  1,350
";
        let text = format!("\n{}", table.render(Some(34)));
        assert!(text.lines().all(|line| line.width() <= 34), "{text}");
        assert_eq!(text.replace(' ', ""), expected.replace(' ', ""));
        assert!(table.render(None).contains("an old master with"));
    }

    #[test]
    fn columns_without_content_are_left_out() {
        let mut table = Table::new(["a", "b", "c"]);
        table.row(["1".into(), String::new(), "3".into()]);
        assert_eq!(table.without_empty_columns().render(None), "  a  c\n  1  3\n");
    }
}
