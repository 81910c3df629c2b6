//! The key-value pairs of a file, in file order, with accessors that say what is wrong.
//!
//! Writers disagree about integer widths and about scalars and arrays, so the typed accessors take any width.
//! They return `Ok(None)` for an absent key; the `need_` ones make that [`Error::MissingKey`].

use crate::{Array, Error, StringArray, Value};
use std::collections::HashMap;
use std::fmt;

/// Keys and values in the order of the file. Keys are unique.
#[derive(Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

/// Equal keys and values in the same order.
impl PartialEq for Metadata {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Declares an accessor and its `need_` form.
macro_rules! accessor {
    ($(#[$doc:meta])* $name:ident, $need:ident -> $ty:ty, $wanted:literal, $convert:expr) => {
        $(#[$doc])*
        pub fn $name(&self, key: &str) -> Result<Option<$ty>, Error> {
            let convert: fn(&Value) -> Option<$ty> = $convert;
            self.get(key).map(|value| convert(value).ok_or_else(|| wrong_type(key, value, $wanted))).transpose()
        }

        #[doc = concat!("As [`Metadata::", stringify!($name), "`], but an absent key is [`Error::MissingKey`].")]
        pub fn $need(&self, key: &str) -> Result<$ty, Error> {
            self.$name(key)?.ok_or_else(|| Error::MissingKey { key: key.to_owned() })
        }
    };
}

impl Metadata {
    /// No keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key, at the end if it is new, in its old place otherwise; returns the value it had.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(&at) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// The value of a key, as it is.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// Whether the key is present.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// All pairs, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + Clone {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    accessor!(
        /// An integer of any width that is not negative.
        u64, need_u64 -> u64, "an integer that is not negative", Value::as_u64
    );
    accessor!(
        /// An integer of any width.
        i64, need_i64 -> i64, "a signed integer", Value::as_i64
    );
    accessor!(
        /// A float or an integer of any width.
        f64, need_f64 -> f64, "a number", Value::as_f64
    );
    accessor!(
        /// A bool.
        bool, need_bool -> bool, "a bool", Value::as_bool
    );
    accessor!(
        /// A scalar or an array of integers of any width, none negative.
        u64s, need_u64s -> Vec<u64>, "integers that are not negative",
        |value| value.as_array().map_or_else(|| value.as_u64().map(|n| vec![n]), Array::u64s)
    );
    accessor!(
        /// A scalar or an array of floats or integers of any width.
        f64s, need_f64s -> Vec<f64>, "numbers",
        |value| value.as_array().map_or_else(|| value.as_f64().map(|x| vec![x]), Array::f64s)
    );
    accessor!(
        /// A string that is UTF-8.
        str, need_str -> &str, "a UTF-8 string", Value::as_str
    );
    accessor!(
        /// An array of strings, which need not be UTF-8.
        strings, need_strings -> &StringArray, "an array of strings",
        |value| if let Value::Array(Array::String(strings)) = value { Some(strings) } else { None }
    );
    accessor!(
        /// An array of any type.
        array, need_array -> &Array, "an array", Value::as_array
    );
}

fn wrong_type(key: &str, value: &Value, wanted: &'static str) -> Error {
    Error::WrongType { key: key.to_owned(), found: value.describe(), wanted }
}
