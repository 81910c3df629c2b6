//! Agreement with Python's `gguf` package in both directions; `fixtures/README.md` says how the files are made.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use nexaquant_gguf::{Array, GString, Gguf, StringArray, TensorType, Value, write::Writer};
use serde_json::{Value as Json, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read_json(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The JSON that `describe.py` makes, from our reading.
fn describe(file: &[u8]) -> Json {
    let gguf = Gguf::parse(file).unwrap();
    let text = |s: &GString| s.as_str().map_or_else(|| json!({"hex": hex(s.as_bytes())}), |s| json!(s));
    let scalar = |value: &Value| match value {
        Value::String(s) => text(s),
        Value::Bool(b) => json!(b),
        Value::F32(_) | Value::F64(_) => json!(value.as_f64()),
        _ => value.as_u64().map_or_else(|| json!(value.as_i64()), |n| json!(n)),
    };
    let keys = gguf.metadata.iter().map(|(key, value)| match value {
        Value::Array(array) => json!({
            "key": key, "type": "array", "elements": array.type_name(),
            "value": array.iter().map(|value| scalar(&value)).collect::<Vec<_>>(),
        }),
        _ => json!({"key": key, "type": value.type_name(), "value": scalar(value)}),
    });
    let tensors = gguf.tensors.iter().map(|t| {
        json!({
            "name": t.name, "type": t.ty.name(), "dims": t.dims, "offset": t.offset, "bytes": t.bytes,
            "data": hex(t.data(file).unwrap()),
        })
    });
    json!({
        "version": gguf.version, "alignment": gguf.alignment, "data_offset": gguf.data_offset,
        "keys": keys.collect::<Vec<_>>(), "tensors": tensors.collect::<Vec<_>>(),
    })
}

/// Compares part by part, so that a failure shows the part.
fn assert_same(ours: &Json, pythons: &Json) {
    for list in ["keys", "tensors"] {
        let (a, b) = (ours[list].as_array().unwrap(), pythons[list].as_array().unwrap());
        a.iter().zip(b).for_each(|(a, b)| assert_eq!(a, b));
        assert_eq!(a.len(), b.len(), "{list}");
    }
    assert_eq!(ours, pythons);
}

/// What our writer makes: every value type, alignment, plain and quantized tensors.
fn our_file() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.architecture", "bitnet-b1.58").set("general.name", "naïve ☃");
    writer.set_alignment(128).unwrap();
    writer.set("u8", u8::MAX).set("i8", i8::MIN).set("u16", u16::MAX).set("i16", i16::MIN);
    writer.set("u32", u32::MAX).set("i32", i32::MIN).set("u64", u64::MAX).set("i64", i64::MIN);
    writer.set("f32", 0.1f32).set("f64", -1e300).set("yes", true).set("no", false);
    writer.set("array.u8", vec![0, u8::MAX]).set("array.i8", vec![i8::MIN, i8::MAX]);
    writer.set("array.u16", vec![0, u16::MAX]).set("array.i16", vec![i16::MIN, i16::MAX]);
    writer.set("array.u32", vec![0, u32::MAX]).set("array.i32", vec![i32::MIN, i32::MAX]);
    writer.set("array.u64", vec![0, u64::MAX]).set("array.i64", vec![i64::MIN, i64::MAX]);
    writer.set("array.f32", vec![0.5f32, -1.25]).set("array.f64", vec![1e-300, 0.1]);
    writer.set("array.bool", vec![true, false, true]);
    let words: StringArray = [&b""[..], b"a", b"\xff", "☃".as_bytes()].into_iter().collect();
    writer.set("array.string", Array::String(words));

    let tensors: [(&str, TensorType, &[u64]); 9] = [
        ("f32", TensorType::F32, &[5]),
        ("f16", TensorType::F16, &[3, 2]),
        ("bf16", TensorType::BF16, &[3, 2, 2]),
        ("i8", TensorType::I8, &[7, 1, 1, 2]),
        ("tq1_0", TensorType::TQ1_0, &[256, 2]),
        ("tq2_0", TensorType::TQ2_0, &[512, 1]),
        ("q4_k", TensorType::Q4_K, &[256, 3]),
        ("q6_k", TensorType::Q6_K, &[256]),
        ("q8_0", TensorType::Q8_0, &[32, 4]),
    ];
    for (name, ty, dims) in tensors {
        writer.tensor(name, ty, dims).unwrap();
    }
    let mut out = writer.start(Vec::new()).unwrap();
    while let Some((name, bytes)) = out.next().map(|(name, bytes)| (name.to_owned(), bytes)) {
        // Below 0x7c, so that no half or float in it is a NaN.
        out.write(&name, &(0..bytes).map(|i| (i * 7 % 0x7b) as u8).collect::<Vec<_>>()).unwrap();
    }
    out.finish().unwrap()
}

#[test]
fn we_read_what_python_writes() {
    for name in ["python_v3", "python_v2_align64"] {
        let file = std::fs::read(fixture(&format!("{name}.gguf"))).unwrap();
        assert_same(&describe(&file), &read_json(&format!("{name}.json")));
    }
    let file = std::fs::read(fixture("python_big_endian.gguf")).unwrap();
    assert!(matches!(Gguf::parse(&file), Err(nexaquant_gguf::Error::BigEndian)));
}

#[test]
fn python_reads_what_we_write() {
    let file = our_file();
    if std::env::var_os("NEXAQUANT_UPDATE_FIXTURES").is_some() {
        std::fs::write(fixture("writer.gguf"), &file).unwrap();
    }
    let recorded = std::fs::read(fixture("writer.gguf")).unwrap();
    assert!(file == recorded, "the writer's bytes changed; see fixtures/README.md");
    assert_same(&describe(&file), &read_json("writer.json"));
}

#[test]
fn the_table_of_types_is_pythons() {
    // Known there only: activation types that are never stored.
    let never_stored = ["Q8_1", "Q8_K"];
    for (name, row) in read_json("types.json").as_object().unwrap() {
        if never_stored.contains(&name.as_str()) {
            continue;
        }
        let ty = TensorType::by_name(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(&json!([ty.id(), ty.block(), ty.block_bytes()]), row, "{name}");
        assert_eq!((ty.row_head_bytes(), ty.tail_bytes(), ty.is_whole_tensor()), (0, 0, false), "{name}");
    }
}

#[test]
fn live() {
    let importable = Command::new("python3").args(["-c", "import gguf"]).output();
    if !importable.is_ok_and(|output| output.status.success()) {
        let required = std::env::var_os("NEXAQUANT_REQUIRE_PYTHON").is_some();
        assert!(!required, "python3 with the gguf package is required but cannot be used");
        // Not `eprintln!`, which the test harness swallows when a test passes.
        writeln!(std::io::stderr(), "SKIPPED live check against Python: python3 cannot import gguf").unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("ours.gguf");
    std::fs::write(&ours, our_file()).unwrap();
    for path in [ours, fixture("python_v3.gguf"), fixture("python_v2_align64.gguf")] {
        let output = Command::new("python3").arg(fixture("describe.py")).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pythons: Json = serde_json::from_slice(&output.stdout).unwrap();
        assert_same(&describe(&std::fs::read(&path).unwrap()), &pythons);
    }
}
