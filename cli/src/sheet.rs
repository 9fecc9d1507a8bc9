//! A sheet of pictures: rows and columns on white, for before and after.

use ballast_model::RgbPixels;
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
    pub(crate) fn add(&mut self, RgbPixels { width, height, data }: RgbPixels) {
        let picture = RgbImage::from_raw(width as u32, height as u32, data).expect("three bytes per pixel");
        self.row.push(picture);
    }

    /// Begins a new row, unless there is one without pictures already.
    pub(crate) fn end_row(&mut self) {
        if !self.row.is_empty() {
            self.rows.push(std::mem::take(&mut self.row));
        }
    }

    /// Draws the sheet. Cells are as large as the largest picture.
    pub(crate) fn compose(&self) -> RgbPixels {
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
        RgbPixels { width: sheet.width() as usize, height: sheet.height() as usize, data: sheet.into_raw() }
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
                let data = [row, column, 0].repeat(16 * 8);
                sheet.add(RgbPixels { width: 16, height: 8, data });
            }
            sheet.end_row();
            sheet.end_row();
        }
        let sheet = sheet.compose();
        assert_eq!((sheet.width, sheet.height), (3 * 24 + 8, 2 * 16 + 8));
        let pixel = |x: usize, y: usize| &sheet.data[3 * (y * sheet.width + x)..][..3];
        assert_eq!(pixel(2 * 24 + 8, 16 + 8), [1, 2, 0]);
        assert_eq!(pixel(0, 0), [255; 3]);
    }
}
