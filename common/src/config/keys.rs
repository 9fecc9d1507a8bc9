//! Which keys there are, read off the config's own types, so that no list has to be kept beside them.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor, value::Error};

use super::RunConfig;

/// One section of the config, seen as names.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) keys: &'static [&'static str],
    /// Tries one value against the type of its key.
    pub(super) accepts: fn(&str, &toml::Value) -> Result<(), String>,
}

/// Returns all sections, in the order of [`RunConfig`].
pub(super) fn sections() -> [Section; 12] {
    [
        section::<super::RunSettings>("run"),
        section::<super::DataConfig>("data"),
        section::<super::ModelConfig>("model"),
        section::<super::StepConfig>("step"),
        section::<super::ObjectiveConfig>("objective"),
        section::<super::OptimizerConfig>("optimizer"),
        section::<super::LrScheduleConfig>("lr_schedule"),
        section::<super::PrecisionConfig>("precision"),
        section::<super::CheckpointConfig>("checkpoint"),
        section::<super::SampleConfig>("sample"),
        section::<super::ClusterConfig>("cluster"),
        section::<super::TelemetryConfig>("telemetry"),
    ]
}

/// Says whether a key may be left without a value: exactly the keys that the default config does not write.
pub(super) fn is_optional(section: &str, key: &str) -> bool {
    let defaults = toml::Table::try_from(RunConfig::default()).expect("the default config has a TOML form");
    defaults.get(section).and_then(|section| section.get(key)).is_none()
}

/// Returns the known name that is nearest to the one written, if any is near.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &&str| strsim::damerau_levenshtein(written, name);
    known.into_iter().min_by_key(distance).filter(|name| distance(name) <= name.len().max(3) / 3 + 1)
}

fn section<T: for<'de> Deserialize<'de>>(name: &'static str) -> Section {
    Section { name, keys: field_names::<T>(), accepts: accepts::<T> }
}

fn accepts<T: for<'de> Deserialize<'de>>(key: &str, value: &toml::Value) -> Result<(), String> {
    let table = toml::Table::from_iter([(key.to_owned(), value.clone())]);
    table.try_into::<T>().map(drop).map_err(|error| error.message().to_owned())
}

pub(super) fn field_names<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The error is how the probe leaves once it has the names.
    T::deserialize(FieldProbe(&mut names)).err();
    names
}

/// A deserializer that reads nothing and notes which fields the type asks for.
struct FieldProbe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldProbe<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(Error::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
