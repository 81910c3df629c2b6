//! The writer: what it produces parses back to the same, and misuse is refused.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use nexaquant_gguf::{Array, Error, GString, Gguf, StringArray, TensorType, Value, write::Writer};
use proptest::collection::vec;
use proptest::prelude::*;

fn strings() -> impl Strategy<Value = StringArray> {
    vec(vec(any::<u8>(), 0..12), 0..20).prop_map(|strings| strings.into_iter().collect())
}

fn arrays() -> impl Strategy<Value = Array> {
    const N: std::ops::Range<usize> = 0..40;
    prop_oneof![
        vec(any::<u8>(), N).prop_map(Array::U8),
        vec(any::<i8>(), N).prop_map(Array::I8),
        vec(any::<u16>(), N).prop_map(Array::U16),
        vec(any::<i16>(), N).prop_map(Array::I16),
        vec(any::<u32>(), N).prop_map(Array::U32),
        vec(any::<i32>(), N).prop_map(Array::I32),
        vec(any::<f32>(), N).prop_map(Array::F32),
        vec(any::<bool>(), N).prop_map(Array::Bool),
        strings().prop_map(Array::String),
        vec(any::<u64>(), N).prop_map(Array::U64),
        vec(any::<i64>(), N).prop_map(Array::I64),
        vec(any::<f64>(), N).prop_map(Array::F64),
    ]
}

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        vec(any::<u8>(), 0..40).prop_map(|bytes| Value::String(GString(bytes))),
        arrays().prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ]
}

/// A type and a possible shape for it, up to some thousand weights.
fn shapes() -> impl Strategy<Value = (TensorType, Vec<u64>)> {
    (0..TensorType::ALL.len(), 1..3u64, vec(1..4u64, 0..4)).prop_map(|(i, blocks, rest)| {
        let ty = TensorType::ALL[i];
        // TL2 needs rows of at least 256.
        let row = if ty == TensorType::TL2 { 256 + blocks * 96 } else { ty.block() * blocks };
        (ty, std::iter::once(row).chain(rest).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn round_trip(
        version in 2..=3u32,
        log2_alignment in proptest::option::of(0..10u32),
        pairs in vec((".{0,12}", values()), 0..12),
        mut tensors in vec(shapes(), 0..8),
        seed in any::<u8>(),
    ) {
        // One meaning of a number per file, and numbers with two meanings need a size that shows which.
        tensors.retain(|(ty, _)| TensorType::with_id(ty.id()).count() == 1);

        let mut writer = Writer::new();
        writer.set_version(version).unwrap();
        for (key, value) in &pairs {
            writer.set(key.clone(), value.clone());
        }
        if let Some(log2) = log2_alignment {
            writer.set_alignment(1 << log2).unwrap();
        }
        let metadata = writer.metadata.clone();
        for (i, (ty, dims)) in tensors.iter().enumerate() {
            let bytes = writer.tensor(format!("t{i}"), *ty, dims).unwrap();
            prop_assert_eq!(Some(bytes), ty.bytes(dims));
        }
        let data = |i: usize, n: u64| (0..n).map(|k| seed.wrapping_add((i as u64 * 31 + k) as u8)).collect::<Vec<_>>();
        let mut out = writer.start(Vec::new()).unwrap();
        for i in 0..tensors.len() {
            let (name, bytes) = out.next().map(|(name, bytes)| (name.to_owned(), bytes)).unwrap();
            let data = data(i, bytes);
            if i % 2 == 0 {
                out.write(&name, &data).unwrap();
            } else {
                out.write_with(&name, |sink| data.chunks(7).try_for_each(|piece| sink.write_all(piece))).unwrap();
            }
        }
        let file = out.finish().unwrap();

        let gguf = Gguf::parse(&file).unwrap();
        prop_assert_eq!(gguf.version, version);
        prop_assert_eq!(gguf.alignment, log2_alignment.map_or(32, |log2| 1 << log2));
        prop_assert_eq!(file.len() as u64 % gguf.alignment, 0);
        // Compared as text, where NaN equals itself and -0.0 is not 0.0.
        prop_assert_eq!(format!("{:?}", gguf.metadata.iter().collect::<Vec<_>>()), format!("{:?}", metadata.iter().collect::<Vec<_>>()));
        prop_assert_eq!(gguf.tensors.len(), tensors.len());
        for (i, (ty, dims)) in tensors.iter().enumerate() {
            let tensor = gguf.tensor(&format!("t{i}")).unwrap();
            prop_assert_eq!(tensor, &gguf.tensors[i]);
            prop_assert_eq!((tensor.ty, &tensor.dims), (*ty, dims));
            prop_assert_eq!(tensor.data(&file).unwrap(), data(i, tensor.bytes));
        }
    }
}

/// Writes one tensor of zeros and reads its type back.
fn type_read_back(ty: TensorType, dims: &[u64]) -> TensorType {
    let mut writer = Writer::new();
    let bytes = writer.tensor("t", ty, dims).unwrap();
    let mut out = writer.start(Vec::new()).unwrap();
    out.write("t", &vec![0; bytes as usize]).unwrap();
    Gguf::parse(&out.finish().unwrap()).unwrap().tensors[0].ty
}

#[test]
fn numbers_with_two_meanings_come_back() {
    for ty in [TensorType::Q2_0, TensorType::Q2_0_G128, TensorType::MXFP4, TensorType::TL2] {
        assert_eq!(type_read_back(ty, &[512, 12]), ty);
    }
}

fn text<T>(result: Result<T, Error>) -> String {
    result.err().map_or_else(|| "accepted".to_owned(), |error| error.to_string())
}

#[test]
fn misuse_is_refused() {
    let mut writer = Writer::new();
    assert_eq!(
        text(writer.set_version(1)),
        "this is a GGUF version 1 file; versions 2 and 3 can be read, convert the model again"
    );
    assert_eq!(
        text(writer.set_alignment(48)),
        "general.alignment is 48; it must be a power of two, 16777216 at most"
    );
    writer.tensor("a", TensorType::Q8_0, &[32, 2]).unwrap();
    writer.tensor("b", TensorType::F32, &[4]).unwrap();
    assert_eq!(text(writer.tensor("a", TensorType::F32, &[4])), "tensor \"a\" appears twice");
    assert_eq!(
        text(writer.tensor("c", TensorType::TQ2_0, &[128])),
        "tensor \"c\" of type TQ2_0 has shape [128]; its row length must be a multiple of 256"
    );
    assert_eq!(
        text(writer.tensor("c", TensorType::F32, &[])),
        "tensor \"c\" has 0 dimensions; 1 to 4 are possible"
    );

    let start = || writer.clone().start(Vec::new()).unwrap();
    let order = |given, next| {
        format!("data for tensor \"{given}\" was given, but \"{next}\" is next in the declared order")
    };
    assert_eq!(text(start().write("b", &[0; 16])), order("b", "a"));
    let size = |given| format!("tensor \"a\" was declared with 68 bytes, but {given} were written");
    assert_eq!(text(start().write("a", &[0; 67])), size(67));
    assert_eq!(text(start().write_with("a", |sink| sink.write_all(&[0; 67]))), size(67));
    assert_eq!(text(start().write_with("a", |sink| sink.write_all(&[0; 69]))), size(69));
    let slowly = |sink: &mut dyn std::io::Write| (0..9).try_for_each(|_| sink.write_all(&[0; 8]));
    assert_eq!(text(start().write_with("a", slowly)), size(72));
    // Even a caller that ignores the refusal is told.
    let careless = |sink: &mut dyn std::io::Write| {
        let _ = sink.write_all(&[0; 99]);
        Ok(())
    };
    assert_eq!(text(start().write_with("a", careless)), size(99));
    let broken = |_: &mut dyn std::io::Write| Err(std::io::Error::other("disk full"));
    assert_eq!(text(start().write_with("a", broken)), "writing failed: disk full");

    let mut out = start();
    assert_eq!(out.next(), Some(("a", 68)));
    out.write("a", &[0; 68]).unwrap();
    assert_eq!(out.next(), Some(("b", 16)));
    assert_eq!(text(out.finish()), "1 declared tensors were not written; the first is \"b\"");
    let mut out = start();
    out.write("a", &[0; 68]).unwrap();
    out.write("b", &[0; 16]).unwrap();
    assert_eq!(out.next(), None);
    assert_eq!(text(out.write("b", &[0; 16])), order("b", "nothing"));
}

/// Counts bytes and keeps none.
#[derive(Default)]
struct Count(u64);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn files_larger_than_memory_can_be_written() {
    let mut writer = Writer::new();
    // 20 GiB declared and counted; the sink gets one mebibyte again and again.
    let bytes = writer.tensor("t", TensorType::F32, &[1 << 20, 5 << 10]).unwrap();
    assert_eq!(bytes, 20 << 30);
    let mut out = writer.start(Count::default()).unwrap();
    let piece = vec![0; 1 << 20];
    out.write_with("t", |sink| (0..20 << 10).try_for_each(|_| sink.write_all(&piece))).unwrap();
    assert_eq!(out.finish().unwrap().0, (20 << 30) + 96);
}
