//! Looks for floating-point numbers in a value: a serializer that writes nothing and stops at the first one.

use core::fmt;

use serde::ser::{self, Serialize};

/// Whether the value, as it is serialized, holds a floating-point number. One that can't be serialized holds none.
pub(super) fn has_float<T: Serialize + ?Sized>(value: &T) -> bool {
    matches!(value.serialize(Finder), Err(Stopped::AtFloat))
}

#[derive(Debug)]
enum Stopped {
    AtFloat,
    BySerialize,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stopped::AtFloat => "a floating-point number",
            Stopped::BySerialize => "not serializable",
        })
    }
}

impl std::error::Error for Stopped {}

impl ser::Error for Stopped {
    fn custom<T: fmt::Display>(_: T) -> Stopped {
        Stopped::BySerialize
    }
}

struct Finder;

type Found = Result<(), Stopped>;

macro_rules! passes {
    ($($name:ident($type:ty)),* $(,)?) => {
        $(fn $name(self, _: $type) -> Found {
            Ok(())
        })*
    };
}

impl ser::Serializer for Finder {
    type Ok = ();
    type Error = Stopped;
    type SerializeSeq = Finder;
    type SerializeTuple = Finder;
    type SerializeTupleStruct = Finder;
    type SerializeTupleVariant = Finder;
    type SerializeMap = Finder;
    type SerializeStruct = Finder;
    type SerializeStructVariant = Finder;

    passes!(
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_i128(i128),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_u128(u128),
        serialize_char(char),
        serialize_str(&str),
        serialize_bytes(&[u8]),
        serialize_unit_struct(&'static str),
    );

    fn serialize_f32(self, _: f32) -> Found {
        Err(Stopped::AtFloat)
    }

    fn serialize_f64(self, _: f64) -> Found {
        Err(Stopped::AtFloat)
    }

    fn serialize_none(self) -> Found {
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Found {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Found {
        Ok(())
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Found {
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Found {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        value: &T,
    ) -> Found {
        value.serialize(self)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Finder, Stopped> {
        Ok(self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Finder, Stopped> {
        Ok(self)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Finder, Stopped> {
        Ok(self)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Finder, Stopped> {
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Finder, Stopped> {
        Ok(self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Finder, Stopped> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Finder, Stopped> {
        Ok(self)
    }

    // As the log's codec, which is no format for people.
    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! elements {
    ($($trait:ident::$name:ident),* $(,)?) => {
        $(impl ser::$trait for Finder {
            type Ok = ();
            type Error = Stopped;

            fn $name<T: Serialize + ?Sized>(&mut self, value: &T) -> Found {
                value.serialize(Finder)
            }

            fn end(self) -> Found {
                Ok(())
            }
        })*
    };
}

elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field,
);

macro_rules! fields {
    ($($trait:ident),* $(,)?) => {
        $(impl ser::$trait for Finder {
            type Ok = ();
            type Error = Stopped;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Found {
                value.serialize(Finder)
            }

            fn end(self) -> Found {
                Ok(())
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Finder {
    type Ok = ();
    type Error = Stopped;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Found {
        key.serialize(Finder)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Found {
        value.serialize(Finder)
    }

    fn end(self) -> Found {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_float_is_found_wherever_it_hides() {
        assert!(has_float(&1.0_f32));
        assert!(has_float(&(1, "a", Some(vec![(2_u8, 1.0_f64)]))));
        assert!(has_float(&BTreeMap::from([("a", Ok::<f64, ()>(0.0))])));
        assert!(!has_float(&(1, "1.0", Some(vec![(2_u8, 'x')]), None::<f64>, BTreeMap::from([(1, ())]))));
    }
}
