//! The bundled models: counts and types as Python `gguf` reports them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use nexaquant_gguf::{Gguf, TensorType};
use std::path::Path;

fn check(file: &str, keys: usize, data_offset: u64, types: &[(TensorType, usize)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(file);
    let bytes = std::fs::read(&path).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!((gguf.version, gguf.alignment), (3, 32), "{file}");
    assert_eq!((gguf.metadata.len(), gguf.data_offset), (keys, data_offset), "{file}");
    let mut total = 0;
    for &(ty, count) in types {
        assert_eq!(gguf.tensors.iter().filter(|t| t.ty == ty).count(), count, "{file} {ty}");
        total += count;
    }
    assert_eq!(gguf.tensors.len(), total, "{file}");

    let vocab = gguf.metadata.need_strings("tokenizer.ggml.tokens").unwrap().len() as u64;
    assert_eq!(vocab, 4096, "{file}");
    let embedding = gguf.tensor("token_embd.weight").unwrap();
    assert_eq!(embedding.rows(), vocab, "{file}");
    let end = gguf.tensors.iter().map(|t| t.offset + t.bytes).max().unwrap();
    assert_eq!(end.next_multiple_of(32), bytes.len() as u64, "{file}");
    for tensor in &gguf.tensors {
        assert_eq!(tensor.data(&bytes).unwrap().len() as u64, tensor.bytes, "{file} {}", tensor.name);
    }
}

#[test]
fn bundled_models_parse() {
    use TensorType as T;
    check("alpha.gguf", 26, 102_240, &[(T::TQ2_0, 98), (T::F32, 29), (T::Q8_0, 1)]);
    check("beta.gguf", 27, 97_280, &[(T::TQ2_0, 28), (T::F32, 15), (T::Q8_0, 1)]);
    check("gamma.gguf", 26, 138_848, &[(T::TQ2_0, 84), (T::F32, 25), (T::Q8_0, 1)]);
    // The Python reader does not know I2_S; these counts are those of the model's shape: 6 layers of 7 ternary
    // matrices, 4 norms each, the final norm, the embedding.
    check("delta.gguf", 27, 136_416, &[(T::I2_S, 42), (T::F32, 25), (T::F16, 1)]);
}
