//! The trained parameters in the order of their layout, where they are: in the model's tensors.
//!
//! SD 1.5 has 3.9 GB of them, so there is no second copy on the host. Whoever needs them as one row (a hash, a worker
//! that joins) reads it piece by piece; whoever moves them (an optimizer) changes each tensor in place.

use crate::params::{self, NamedTensor};
use crate::{ClipTextModel, FlatEntry, FlatLayout, ParamGroup, StableDiffusion, UNet};
use burn::module::Module;
use std::collections::HashMap;
use std::ops::Range;

/// Reads the trained parameters as one row: shares the model's tensors.
pub struct TrainedParams<'a> {
    layout: &'a FlatLayout,
    /// Full path → values.
    tensors: HashMap<String, NamedTensor>,
}

impl<'a> TrainedParams<'a> {
    /// Lists the parameters of the layout's groups.
    pub fn new(unet: &UNet, text_encoder: &ClipTextModel, layout: &'a FlatLayout) -> Self {
        let groups =
            [(ParamGroup::Unet, params::tensors(unet)), (ParamGroup::TextEncoder, params::tensors(text_encoder))];
        let tensors = groups
            .into_iter()
            .flat_map(|(group, tensors)| tensors.into_iter().map(move |t| (full_path(group, &t.path), t)))
            .collect();
        Self { layout, tensors }
    }

    /// Gives the elements `range` of the row to `sink`, some at a time, in order.
    ///
    /// # Panics
    ///
    /// When the layout is another model's.
    pub fn read(&self, range: Range<usize>, sink: &mut dyn FnMut(&[f32])) {
        for entry in overlapping(self.layout, &range) {
            let from = range.start.max(entry.offset) - entry.offset;
            let to = range.end.min(entry.offset + entry.len) - entry.offset;
            params::read(&self.tensors[&entry.path].values, |values| sink(&values[from..to]));
        }
    }
}

impl StableDiffusion {
    /// The places of the trained parameters: the UNet's, and the text encoder's where that is trained.
    pub fn trained_layout(&self, train_text_encoder: bool) -> FlatLayout {
        FlatLayout::of(&self.unet, train_text_encoder.then_some(&self.text_encoder))
    }

    /// Changes the trained parameters where they are: `change(offset, values)` for every tensor of the layout, in no
    /// particular order, where `offset` is the place of its first element.
    ///
    /// Tensors of which somebody else holds a clone are copied first; that clone keeps the old values.
    pub fn change_trained(&mut self, layout: &FlatLayout, change: &mut dyn FnMut(usize, &mut [f32])) {
        self.change_overlapping(layout, 0..layout.total, change);
    }

    /// Overwrites the elements from `first` on.
    ///
    /// # Panics
    ///
    /// When they reach beyond the layout.
    pub fn write_trained(&mut self, layout: &FlatLayout, first: usize, values: &[f32]) {
        let range = first..first + values.len();
        assert!(range.end <= layout.total, "the values lie within the layout");
        self.change_overlapping(layout, range.clone(), &mut |offset, tensor| {
            let (from, to) = (range.start.max(offset), range.end.min(offset + tensor.len()));
            tensor[from - offset..to - offset].copy_from_slice(&values[from - first..to - first]);
        });
    }

    fn change_overlapping(
        &mut self,
        layout: &FlatLayout,
        range: Range<usize>,
        change: &mut dyn FnMut(usize, &mut [f32]),
    ) {
        let places: HashMap<&str, usize> =
            overlapping(layout, &range).map(|entry| (entry.path.as_str(), entry.offset)).collect();
        change_group(ParamGroup::Unet, &mut self.unet, &places, change);
        change_group(ParamGroup::TextEncoder, &mut self.text_encoder, &places, change);
    }
}

fn change_group<M: Module>(
    group: ParamGroup,
    module: &mut M,
    places: &HashMap<&str, usize>,
    change: &mut dyn FnMut(usize, &mut [f32]),
) {
    if !places.keys().any(|path| path.starts_with(group.name())) {
        return;
    }
    let place = |key: &str| places.get(full_path(group, key).as_str()).copied();
    params::change(module, &|key| place(key).is_some(), &mut |key, values| {
        change(place(key).expect("asked for before"), values);
    });
}

fn overlapping<'a>(layout: &'a FlatLayout, range: &Range<usize>) -> impl Iterator<Item = &'a FlatEntry> {
    let first = layout.entries.partition_point(|entry| entry.offset + entry.len <= range.start);
    let end = range.end;
    layout.entries[first..].iter().take_while(move |entry| entry.offset < end)
}

fn full_path(group: ParamGroup, key: &str) -> String {
    format!("{}.{key}", group.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Preset, Trainable, init_model};

    fn all(model: &StableDiffusion, layout: &FlatLayout, range: Range<usize>) -> Vec<f32> {
        let mut row = Vec::new();
        TrainedParams::new(&model.unet, &model.text_encoder, layout)
            .read(range, &mut |values| row.extend_from_slice(values));
        row
    }

    #[test]
    fn any_piece_is_read_and_written() {
        let mut model = init_model(Preset::Tiny, 1);
        for train_text in [false, true] {
            let layout = model.trained_layout(train_text);
            let mut row = Trainable::new(model.unet.clone(), model.text_encoder.clone(), train_text).params();
            assert_eq!(row.len(), layout.total);
            for (first, count) in [(0, 1), (layout.entries[1].offset - 1, 2), (7, layout.total - 9), (layout.total, 0)]
            {
                assert_eq!(all(&model, &layout, first..first + count), row[first..first + count]);
                let values: Vec<f32> = (0..count).map(|i| i as f32).collect();
                row[first..first + count].copy_from_slice(&values);
                model.write_trained(&layout, first, &values);
                assert_eq!(all(&model, &layout, 0..layout.total), row);
            }
        }
    }

    #[test]
    fn values_change_where_they_are_unless_somebody_holds_them() {
        let mut model = init_model(Preset::Tiny, 1);
        let layout = model.trained_layout(true);
        let mut places = vec![Vec::new(); 3];
        for (round, places) in places.iter_mut().enumerate() {
            let held = (round == 2).then(|| model.clone());
            model.change_trained(&layout, &mut |offset, values| {
                places.push((offset, values.as_ptr().addr()));
                values[0] += 1.0;
            });
            if let Some(held) = held {
                let (before, after) = (all(&held, &layout, 0..1), all(&model, &layout, 0..1));
                assert_eq!(before[0] + 1.0, after[0]);
            }
        }
        assert_eq!(places[0].len(), layout.entries.len());
        assert_eq!(places[0], places[1], "nothing moves");
        assert!(places[1].iter().zip(&places[2]).all(|(a, b)| a.0 == b.0 && a.1 != b.1), "a clone is left alone");
    }
}
