//! Numbers as people write them.

/// Writes a whole number with commas: `1,350`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_stand_between_thousands() {
        let numbers = [0, 7, 999, 1000, 1_234_567, 859_520_964].map(grouped);
        assert_eq!(numbers, ["0", "7", "999", "1,000", "1,234,567", "859,520,964"]);
    }
}
