//! Tables for people: aligned columns that keep within the width of a terminal.

use crate::plot::shortened;

/// Between two columns.
const GAP: usize = 2;

/// Least width that the first column keeps before columns are left out.
const FIRST_LEAST: usize = 24;

/// A column's head, and whether it may go where there is no room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) head: &'static str,
    pub(crate) is_extra: bool,
}

/// A column that is always there.
pub(crate) const fn column(head: &'static str) -> Column {
    Column { head, is_extra: false }
}

/// A column that is left out of a narrow table.
pub(crate) const fn extra(head: &'static str) -> Column {
    Column { head, is_extra: true }
}

/// Writes rows below their heads: the first column to the left and shortened to what is free, numbers to the right. Extra
/// columns go, the last first, until the first column has room.
pub(crate) fn table<const N: usize>(columns: [Column; N], rows: &[[String; N]], width: usize) -> String {
    let length = |text: &str| text.chars().count();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| length(&row[column])).max().unwrap_or(0).max(length(columns[column].head))
    });
    let mut shown: Vec<usize> = (1..N).collect();
    let first = |shown: &[usize]| {
        let taken: usize = shown.iter().map(|&column| widths[column] + GAP).sum();
        width.saturating_sub(GAP + taken)
    };
    while first(&shown) < widths[0].min(FIRST_LEAST)
        && let Some(last) = shown.iter().rposition(|&column| columns[column].is_extra)
    {
        shown.remove(last);
    }
    let first = first(&shown).max(8).min(widths[0]);
    let line = |cells: [&str; N]| {
        let name = shortened(cells[0], first);
        let mut line = format!("{:GAP$}{name}{:fill$}", "", "", fill = first - length(&name));
        for &column in &shown {
            let fill = GAP + widths[column] - length(cells[column]);
            line += &format!("{:fill$}{}", "", cells[column]);
        }
        line.trim_end().to_owned() + "\n"
    };
    let head = line(std::array::from_fn(|column| columns[column].head));
    rows.iter()
        .map(|row| line(std::array::from_fn(|column| row[column].as_str())))
        .fold(head, |text, line| text + &line)
}

/// Returns how many characters a line may have: the terminal's width, `COLUMNS`, or 120 where nobody says.
pub(crate) fn line_width() -> usize {
    let of_terminal = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    of_terminal.or_else(said).unwrap_or(120).max(40)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<[String; 3]> {
        [["subjects/a long name", "12", "3.5 %"], ["ünder", "1", "−"]].map(|row| row.map(str::to_owned)).to_vec()
    }

    #[test]
    fn columns_stand_below_each_other() {
        let columns = [column("folder"), column("images"), extra("share")];
        let wide = table(columns, &rows(), 80);
        assert_eq!(
            wide,
            "  folder                images  share\n  subjects/a long name      12  3.5 %\n  ünder                      1      −\n"
        );
        // Below it first the extra column goes, then the name is shortened.
        assert_eq!(table(columns, &rows(), 34).lines().nth(1), Some("  subjects/a long name      12"));
        assert_eq!(table(columns, &rows(), 29).lines().nth(1), Some("  subjec…/a long name      12"));
        assert!(table(columns, &rows(), 20).lines().all(|line| line.chars().count() <= 20));
    }
}
