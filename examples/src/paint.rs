//! A small brush over tiny-skia: shapes in local coordinates, filled flat, shaded or glowing.
//!
//! Every colour passes through the canvas's [`Light`] first, so that a red roof is a night-red roof at night
//! without the things knowing the hour.

use anyhow::{Context, Result};
use tiny_skia::{
    Color, FillRule, GradientStop, LineCap, LineJoin, LinearGradient, Paint, Path, PathBuilder, Pixmap, Point,
    RadialGradient, Rect, Shader, SpreadMode, Stroke, Transform,
};

/// The colour of `0xRRGGBB`.
pub(crate) fn rgb(hex: u32) -> Color {
    Color::from_rgba8((hex >> 16) as u8, (hex >> 8) as u8, hex as u8, 255)
}

/// Moves `from` towards `to` by `amount` in `0..=1`; the opacity stays that of `from`.
pub(crate) fn mix(from: Color, to: Color, amount: f32) -> Color {
    let blend = |a: f32, b: f32| (a + (b - a) * amount).clamp(0.0, 1.0);
    Color::from_rgba(
        blend(from.red(), to.red()),
        blend(from.green(), to.green()),
        blend(from.blue(), to.blue()),
        from.alpha(),
    )
    .expect("blended channels are clamped to 0..=1")
}

/// The light a picture stands in: every colour moves towards `tint` by `amount`.
#[derive(Clone, Copy)]
pub(crate) struct Light {
    pub(crate) tint: Color,
    pub(crate) amount: f32,
}

/// A picture being painted.
pub(crate) struct Canvas {
    pixmap: Pixmap,
    transform: Transform,
    light: Light,
}

impl Canvas {
    /// Starts an empty picture of `width` by `height` pixels.
    pub(crate) fn new(width: u32, height: u32, light: Light) -> Result<Self> {
        let pixmap = Pixmap::new(width, height).with_context(|| format!("no picture can be {width}x{height}"))?;
        Ok(Self { pixmap, transform: Transform::identity(), light })
    }

    /// Width and height in pixels.
    pub(crate) fn size(&self) -> (f32, f32) {
        (self.pixmap.width() as f32, self.pixmap.height() as f32)
    }

    /// Paints with `draw` in the coordinates that `transform` maps into the present ones.
    pub(crate) fn within(&mut self, transform: Transform, draw: impl FnOnce(&mut Self)) {
        let outer = self.transform;
        self.transform = outer.pre_concat(transform);
        draw(self);
        self.transform = outer;
    }

    /// Paints with `draw` in a share of the light: 0 for colours that the hour is already part of, 1 for all of it.
    pub(crate) fn dimmed(&mut self, share: f32, draw: impl FnOnce(&mut Self)) {
        let outer = self.light;
        self.light.amount *= share;
        draw(self);
        self.light = outer;
    }

    /// Fills with one colour.
    pub(crate) fn flat(&mut self, path: Path, color: Color) {
        let color = self.lit(color);
        self.fill(&path, Shader::SolidColor(color));
    }

    /// Fills with one colour that the hour leaves alone: windows, stars, the moon.
    pub(crate) fn bright(&mut self, path: Path, color: Color) {
        self.fill(&path, Shader::SolidColor(color));
    }

    /// Fills with light falling from the upper left: a little lighter there, a little darker below.
    pub(crate) fn shaded(&mut self, path: Path, color: Color) {
        let bounds = path.bounds();
        let top = self.lit(mix(color, Color::WHITE, 0.16));
        let bottom = self.lit(mix(color, rgb(0x2A2048), 0.2));
        let (start, end) =
            (Point::from_xy(bounds.left(), bounds.top()), Point::from_xy(bounds.right(), bounds.bottom()));
        self.gradient(path, (start, top), (end, bottom));
    }

    /// Fills from `top` to `bottom`, straight down over the shape.
    pub(crate) fn downward(&mut self, path: Path, top: Color, bottom: Color) {
        let bounds = path.bounds();
        let (top, bottom) = (self.lit(top), self.lit(bottom));
        let (start, end) = (Point::from_xy(0.0, bounds.top()), Point::from_xy(0.0, bounds.bottom()));
        self.gradient(path, (start, top), (end, bottom));
    }

    /// Draws along the path, round at the ends.
    pub(crate) fn line(&mut self, path: Path, color: Color, width: f32) {
        let paint = Paint { shader: Shader::SolidColor(self.lit(color)), ..Paint::default() };
        let stroke = Stroke { width, line_cap: LineCap::Round, line_join: LineJoin::Round, ..Stroke::default() };
        self.pixmap.stroke_path(&path, &paint, &stroke, self.transform, None);
    }

    /// A soft disc: `color` at the centre, nothing at the rim.
    pub(crate) fn glow(&mut self, (x, y): (f32, f32), radius: f32, color: Color) {
        let mut rim = color;
        rim.set_alpha(0.0);
        let stops = vec![GradientStop::new(0.0, color), GradientStop::new(1.0, rim)];
        let centre = Point::from_xy(x, y);
        let shader = RadialGradient::new(centre, centre, radius, stops, SpreadMode::Pad, Transform::identity())
            .expect("a glow has a positive radius");
        self.fill(&ellipse(x, y, radius, radius), shader);
    }

    /// The soft shadow of a thing that stands at the origin and is `2 · half_width` wide.
    pub(crate) fn shadow(&mut self, half_width: f32) {
        let mut color = rgb(0x1B1A3A);
        color.set_alpha(0.42);
        self.within(Transform::from_row(1.0, 0.0, 0.0, 0.22, 0.04, 0.0), |c| c.glow((0.0, 0.0), half_width, color));
    }

    /// The finished picture as tightly packed RGB bytes.
    pub(crate) fn into_rgb(self) -> Vec<u8> {
        self.pixmap.pixels().iter().flat_map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]).collect()
    }

    fn lit(&self, color: Color) -> Color {
        mix(color, self.light.tint, self.light.amount)
    }

    fn gradient(&mut self, path: Path, (start, first): (Point, Color), (end, last): (Point, Color)) {
        let stops = vec![GradientStop::new(0.0, first), GradientStop::new(1.0, last)];
        let shader = LinearGradient::new(start, end, stops, SpreadMode::Pad, Transform::identity())
            .unwrap_or(Shader::SolidColor(first));
        self.fill(&path, shader);
    }

    fn fill(&mut self, path: &Path, shader: Shader<'_>) {
        let paint = Paint { shader, ..Paint::default() };
        self.pixmap.fill_path(path, &paint, FillRule::Winding, self.transform, None);
    }
}

/// An ellipse around (`x`, `y`).
pub(crate) fn ellipse(x: f32, y: f32, rx: f32, ry: f32) -> Path {
    let bounds = Rect::from_ltrb(x - rx, y - ry, x + rx, y + ry).expect("an ellipse has positive radii");
    PathBuilder::from_oval(bounds).expect("an oval with an area has a path")
}

/// An ellipse around (`x`, `y`), turned by `degrees` clockwise about its centre.
pub(crate) fn turned_ellipse(x: f32, y: f32, rx: f32, ry: f32, degrees: f32) -> Path {
    ellipse(x, y, rx, ry).transform(Transform::from_rotate_at(degrees, x, y)).expect("a turn keeps a path finite")
}

/// A rectangle with corners of radius `r`, from its upper left corner.
pub(crate) fn rounded(x: f32, y: f32, width: f32, height: f32, r: f32) -> Path {
    let (right, bottom) = (x + width, y + height);
    let mut path = PathBuilder::new();
    path.move_to(x + r, y);
    path.line_to(right - r, y);
    path.quad_to(right, y, right, y + r);
    path.line_to(right, bottom - r);
    path.quad_to(right, bottom, right - r, bottom);
    path.line_to(x + r, bottom);
    path.quad_to(x, bottom, x, bottom - r);
    path.line_to(x, y + r);
    path.quad_to(x, y, x + r, y);
    path.close();
    path.finish().expect("a rounded rectangle has a path")
}

/// A closed shape with straight sides.
pub(crate) fn polygon(points: &[(f32, f32)]) -> Path {
    let mut path = PathBuilder::new();
    for (index, &(x, y)) in points.iter().enumerate() {
        if index == 0 { path.move_to(x, y) } else { path.line_to(x, y) }
    }
    path.close();
    path.finish().expect("a polygon has at least two points")
}

/// An open curve from `from` to `to`, pulled towards `by`.
pub(crate) fn curve(from: (f32, f32), by: (f32, f32), to: (f32, f32)) -> Path {
    let mut path = PathBuilder::new();
    path.move_to(from.0, from.1);
    path.quad_to(by.0, by.1, to.0, to.1);
    path.finish().expect("a curve has two points")
}

/// A straight line.
pub(crate) fn segment(from: (f32, f32), to: (f32, f32)) -> Path {
    curve(from, from, to)
}

/// The upper half of an ellipse, flat below: caps, domes.
pub(crate) fn dome(x: f32, base: f32, rx: f32, height: f32) -> Path {
    let mut path = PathBuilder::new();
    path.move_to(x - rx, base);
    path.cubic_to(x - rx, base - height * 1.3, x + rx, base - height * 1.3, x + rx, base);
    path.quad_to(x, base + height * 0.18, x - rx, base);
    path.close();
    path.finish().expect("a dome has a path")
}
