//! A sheet of pictures: rows and columns on white, for before and after.

use image::{Rgb, RgbImage, imageops};

/// White space around and between the pictures, in pixels.
const GAP: u32 = 8;

/// Collects pictures row by row.
#[derive(Default)]
pub(crate) struct Sheet {
    rows: Vec<Vec<RgbImage>>,
    row: Vec<RgbImage>,
}

impl Sheet {
    /// Adds a picture to the right of the last one.
    pub(crate) fn add(&mut self, picture: RgbImage) {
        self.row.push(picture);
    }

    /// Begins a new row.
    pub(crate) fn end_row(&mut self) {
        self.rows.push(std::mem::take(&mut self.row));
    }

    /// Draws the sheet. Cells are as large as the largest picture.
    pub(crate) fn compose(&self) -> RgbImage {
        let pictures = || self.rows.iter().flatten();
        let cell_width = pictures().map(RgbImage::width).max().unwrap_or(0) + GAP;
        let cell_height = pictures().map(RgbImage::height).max().unwrap_or(0) + GAP;
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0) as u32;
        let rows = self.rows.len() as u32;
        let mut sheet = RgbImage::from_pixel(columns * cell_width + GAP, rows * cell_height + GAP, Rgb([255; 3]));
        for (y, row) in self.rows.iter().enumerate() {
            for (x, picture) in row.iter().enumerate() {
                let (left, top) = (x as u32 * cell_width + GAP, y as u32 * cell_height + GAP);
                imageops::replace(&mut sheet, picture, i64::from(left), i64::from(top));
            }
        }
        sheet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_in_rows_and_columns() {
        let mut sheet = Sheet::default();
        for row in 0..2 {
            for column in 0..3 {
                sheet.add(RgbImage::from_pixel(16, 8, Rgb([row, column, 0])));
            }
            sheet.end_row();
        }
        let sheet = sheet.compose();
        assert_eq!(sheet.dimensions(), (3 * 24 + 8, 2 * 16 + 8));
        assert_eq!(sheet.get_pixel(2 * 24 + 8, 16 + 8), &Rgb([1, 2, 0]));
        assert_eq!(sheet.get_pixel(0, 0), &Rgb([255; 3]));
    }
}
