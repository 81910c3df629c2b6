//! Accessors take any integer width, and say what they found otherwise.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use nexaquant_gguf::{Array, Error, GString, Metadata, StringArray, Value};

fn sample() -> Metadata {
    let mut m = Metadata::new();
    m.insert("u8", 200u8);
    m.insert("i8", -5i8);
    m.insert("u16", 1u16);
    m.insert("i16", 2i16);
    m.insert("u32", 3u32);
    m.insert("i32", 4i32);
    m.insert("u64", u64::MAX);
    m.insert("i64", i64::MIN);
    m.insert("f32", 0.5f32);
    m.insert("f64", 1e300);
    m.insert("bool", true);
    m.insert("str", "text");
    m.insert("bytes", GString::from(b"\xff\xfe"));
    m.insert("u16s", vec![1u16, 2, 3]);
    m.insert("i32s", vec![1i32, -2]);
    m.insert("f32s", vec![0.5f32, 2.0]);
    m.insert("strs", ["a", "b"].into_iter().collect::<StringArray>());
    m
}

#[test]
fn any_width() {
    let m = sample();
    for (key, wanted) in [("u8", 200), ("u16", 1), ("i16", 2), ("u32", 3), ("i32", 4), ("u64", u64::MAX)] {
        assert_eq!(m.need_u64(key).unwrap(), wanted, "{key}");
        assert_eq!(m.need_u64s(key).unwrap(), [wanted], "{key}");
    }
    assert_eq!(m.need_i64("i8").unwrap(), -5);
    assert_eq!(m.need_i64("i64").unwrap(), i64::MIN);
    assert_eq!(m.need_i64("u32").unwrap(), 3);
    assert_eq!(m.need_f64("f32").unwrap(), 0.5);
    assert_eq!(m.need_f64("f64").unwrap(), 1e300);
    assert_eq!(m.need_f64("i8").unwrap(), -5.0);
    assert_eq!(m.need_u64s("u16s").unwrap(), [1, 2, 3]);
    assert_eq!(m.need_f64s("f32s").unwrap(), [0.5, 2.0]);
    assert_eq!(m.need_f64s("i32s").unwrap(), [1.0, -2.0]);
    assert_eq!(m.need_f64s("f32").unwrap(), [0.5]);
    assert!(m.need_bool("bool").unwrap());
    assert_eq!(m.need_str("str").unwrap(), "text");
    assert_eq!(m.need_strings("strs").unwrap().iter().collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(m.need_array("i32s").unwrap(), &Array::I32(vec![1, -2]));
    assert_eq!(m.need_array("i32s").unwrap().i64s(), Some(vec![1, -2]));
}

#[test]
fn absent_is_none_or_missing() {
    let m = sample();
    assert_eq!(m.u64("no").unwrap(), None);
    assert_eq!(m.str("no").unwrap(), None);
    assert!(matches!(m.need_u64("no"), Err(Error::MissingKey { key }) if key == "no"));
    assert_eq!(m.need_str("no").unwrap_err().to_string(), "the file has no metadata key \"no\"");
}

#[test]
fn wrong_types_are_described() {
    fn check<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    let m = sample();
    check(m.u64("i8"), "metadata key \"i8\" is the i8 -5; wanted an integer that is not negative");
    check(
        m.u64("str"),
        "metadata key \"str\" is the string \"text\"; wanted an integer that is not negative",
    );
    check(m.u64("bool"), "metadata key \"bool\" is the bool true; wanted an integer that is not negative");
    check(m.u64("f32"), "metadata key \"f32\" is the f32 0.5; wanted an integer that is not negative");
    check(
        m.u64("u16s"),
        "metadata key \"u16s\" is an array of 3 u16; wanted an integer that is not negative",
    );
    check(m.i64("u64"), "metadata key \"u64\" is the u64 18446744073709551615; wanted a signed integer");
    check(m.f64("str"), "metadata key \"str\" is the string \"text\"; wanted a number");
    check(m.bool("u8"), "metadata key \"u8\" is the u8 200; wanted a bool");
    check(m.str("bytes"), "metadata key \"bytes\" is a string that is not UTF-8; wanted a UTF-8 string");
    check(m.str("strs"), "metadata key \"strs\" is an array of 2 string; wanted a UTF-8 string");
    check(m.strings("str"), "metadata key \"str\" is the string \"text\"; wanted an array of strings");
    check(m.strings("i32s"), "metadata key \"i32s\" is an array of 2 i32; wanted an array of strings");
    check(
        m.u64s("i32s"),
        "metadata key \"i32s\" is an array of 2 i32; wanted integers that are not negative",
    );
    check(m.f64s("strs"), "metadata key \"strs\" is an array of 2 string; wanted numbers");
    check(m.array("u8"), "metadata key \"u8\" is the u8 200; wanted an array");
    check(
        m.need_u64("f64"),
        &format!("metadata key \"f64\" is the f64 {}; wanted an integer that is not negative", 1e300),
    );
}

#[test]
fn order_and_replacement() {
    let mut m = sample();
    let keys: Vec<String> = m.iter().map(|(key, _)| key.to_owned()).collect();
    assert_eq!((keys[0].as_str(), keys[16].as_str(), m.len()), ("u8", "strs", 17));
    assert_eq!(m.insert("u16", 9u32), Some(Value::U16(1)));
    assert_eq!(m.iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>(), keys);
    assert_eq!(m.get("u16"), Some(&Value::U32(9)));
    assert!(m.contains("u16") && !m.contains("no") && !m.is_empty());
}

#[test]
fn string_arrays_and_displays() {
    let strings: StringArray = [&b"a"[..], b"", b"\xffz"].into_iter().collect();
    assert_eq!(
        (strings.len(), strings.get(0), strings.get(1), strings.get(2)),
        (3, &b"a"[..], &b""[..], &b"\xffz"[..])
    );
    assert_eq!(format!("{strings:?}"), r#"["a", "", "\xffz"]"#);
    let array = Array::String(strings);
    assert_eq!((array.len(), array.type_name(), array.get(3)), (3, "string", None));
    assert_eq!(array.get(2), Some(Value::String(GString::from(b"\xffz"))));
    assert_eq!(GString::from(b"\xffz").to_string(), "\u{fffd}z");
}
