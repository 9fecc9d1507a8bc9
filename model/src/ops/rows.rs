//! Tensors as rows of their last dimension, by their strides.

/// The distance from row to row of the last dimension, where it is the same throughout.
pub(super) fn row_stride(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let (width, leading) = shape.split_last()?;
    let (unit, strides) = strides.split_last()?;
    if *unit != 1 && *width != 1 {
        return None;
    }
    // From the last leading dimension outwards; dimensions of one element have any stride.
    let mut dimensions = leading.iter().zip(strides).rev().filter(|(size, _)| **size != 1);
    let Some((size, stride)) = dimensions.next() else { return Some(*width) };
    let mut next = size * stride;
    for (size, stride) in dimensions {
        if *stride != next {
            return None;
        }
        next *= size;
    }
    (*stride >= *width).then_some(*stride)
}

#[cfg(test)]
mod tests {
    use super::row_stride;

    #[test]
    fn rows_are_found_in_padded_and_reshaped_tensors() {
        assert_eq!(row_stride(&[320], &[1]), Some(320));
        assert_eq!(row_stride(&[2, 64, 320], &[64 * 320, 320, 1]), Some(320), "contiguous");
        assert_eq!(row_stride(&[2, 64, 320], &[64 * 512, 512, 1]), Some(512), "rows padded to 1 KiB");
        assert_eq!(row_stride(&[1, 64, 320], &[7, 512, 1]), Some(512), "one sample has any stride");
        assert_eq!(row_stride(&[2, 1, 320], &[512, 9, 1]), Some(512));
        assert_eq!(row_stride(&[2, 64, 320], &[70 * 512, 512, 1]), None, "a part of larger samples");
        assert_eq!(row_stride(&[2, 64, 320], &[64 * 320, 1, 64]), None, "channels first");
        assert_eq!(row_stride(&[2, 64, 320], &[0, 320, 1]), None, "one sample seen twice");
        assert_eq!(row_stride(&[64, 320], &[0, 1]), None, "one row seen often");
    }
}
