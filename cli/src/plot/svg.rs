//! The few shapes that plots are made of, as SVG.

use std::fmt::Write as _;

use super::Titles;

/// Width of a character of 12 pixels, on average and rather too wide than too narrow.
const CHARACTER: f64 = 6.7;

/// How a text is set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing under way.
pub(super) struct Svg {
    text: String,
}

impl Svg {
    /// Begins a white sheet with its titles at the top.
    pub(super) fn new(width: f64, height: f64, titles: &Titles) -> Self {
        let mut svg = Self { text: String::new() };
        let _ = writeln!(
            svg.text,
            "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' \
             font-family='system-ui, \"Segoe UI\", \"Helvetica Neue\", Arial, sans-serif' font-size='12' fill='#333' \
             role='img'><title>{}</title><rect width='{width}' height='{height}' fill='#fff'/>\
             <text x='20' y='28' font-size='16' font-weight='600' fill='#111'>{}</text>\
             <text x='20' y='47' fill='#666'>{}</text>",
            escape(&titles.title),
            escape(&titles.title),
            escape(&titles.subtitle)
        );
        svg
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.text,
            "<line x1='{x1:.1}' y1='{y1:.1}' x2='{x2:.1}' y2='{y2:.1}' stroke='{stroke}' stroke-width='{width}'/>"
        );
    }

    pub(super) fn polyline(&mut self, points: &[(f64, f64)], stroke: &str, width: f64) {
        let _ = writeln!(
            self.text,
            "<polyline points='{}' fill='none' stroke='{stroke}' stroke-width='{width}' stroke-linejoin='round' \
             stroke-linecap='round'/>",
            places(points)
        );
    }

    pub(super) fn area(&mut self, points: &[(f64, f64)], fill: &str, opacity: f64) {
        let _ = writeln!(self.text, "<polygon points='{}' fill='{fill}' fill-opacity='{opacity}'/>", places(points));
    }

    pub(super) fn dot(&mut self, (x, y): (f64, f64), radius: f64, fill: &str, opacity: f64) {
        let _ = writeln!(
            self.text,
            "<circle cx='{x:.1}' cy='{y:.1}' r='{radius}' fill='{fill}' fill-opacity='{opacity}'/>"
        );
    }

    pub(super) fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str) {
        let (width, height) = (width.max(0.0), height.max(0.0));
        let _ =
            writeln!(self.text, "<rect x='{x:.1}' y='{y:.1}' width='{width:.1}' height='{height:.1}' fill='{fill}'/>");
    }

    pub(super) fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, fill: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.text,
            "<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}' fill='{fill}'>{}</text>",
            escape(text)
        );
    }

    /// Writes upwards, centred.
    pub(super) fn text_upwards(&mut self, (x, y): (f64, f64), text: &str) {
        let _ = writeln!(
            self.text,
            "<text x='{x:.1}' y='{y:.1}' text-anchor='middle' fill='#666' transform='rotate(-90 {x:.1} {y:.1})'>{}</text>",
            escape(text)
        );
    }

    pub(super) fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

/// Returns about how wide a text of 12 pixels is. Characters of East Asian writing take two places.
pub(super) fn width_of(text: &str) -> f64 {
    let places: u32 = text.chars().map(|character| if character >= '\u{1100}' { 2 } else { 1 }).sum();
    f64::from(places) * CHARACTER
}

/// Shortens a path in its middle, so that both ends can still be read.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= most {
        return text.to_owned();
    }
    let kept = most.saturating_sub(1);
    let (head, tail) = (kept / 3, kept - kept / 3);
    let parts = [&characters[..head], &['…'], &characters[characters.len() - tail..]];
    parts.concat().into_iter().collect()
}

fn places(points: &[(f64, f64)]) -> String {
    points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ")
}

/// Makes a text safe within XML. Control characters, which XML does not allow at all, become a replacement.
fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, character| {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '\'' => escaped += "&#39;",
            '"' => escaped += "&quot;",
            character if character.is_control() || ('\u{fffe}'..='\u{ffff}').contains(&character) => {
                escaped.push('\u{fffd}')
            }
            character => escaped.push(character),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shortened("subjects/a very long name/of a folder", 15), "subj…f a folder");
        assert_eq!(shortened("short", 15), "short");
        assert_eq!(shortened("größe/ßßß", 5), "g…ßßß");
    }

    #[test]
    fn names_cannot_break_the_drawing() {
        assert_eq!(escape("<a&b>'\"\u{1b}\n"), "&lt;a&amp;b&gt;&#39;&quot;\u{fffd}\u{fffd}");
    }
}
