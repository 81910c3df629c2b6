//! The op list of each architecture, as snapshots: a change of the builder shows here as text.
//! And what the builder refuses.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use nexaquant_engine::gguf::write::Writer;
use nexaquant_engine::gguf::{Gguf, TensorType, Value};
use nexaquant_engine::model::Architecture;
use std::path::Path;

type Keys = Vec<(String, Value)>;
type Tensors = Vec<(String, Vec<u64>)>;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.gguf"));
    std::fs::read(path).unwrap()
}

/// The unit list with all but the first and last layer left out.
fn outline(name: &str) -> String {
    let arch = Architecture::from_gguf(&Gguf::parse(&golden(name)).unwrap()).unwrap();
    let text = arch.ops_text();
    let last = format!("layer {}:", arch.hparams.layers.len() - 1);
    let mut keep = true;
    text.lines()
        .filter(|line| {
            if !line.starts_with(' ') {
                keep = *line == "embedding:" || *line == "layer 0:" || *line == last || *line == "head:";
            }
            keep
        })
        .flat_map(|line| [line, "\n"])
        .collect()
}

#[test]
fn op_lists() {
    for name in
        ["llama_tied", "llama_own_head", "phi3", "bitnet_b158", "bitnet_scales", "qwen2", "qwen3", "gemma3"]
    {
        insta::assert_snapshot!(name, outline(name));
    }
}

/// A golden file with its metadata and tensor list changed; data is zeros.
fn changed(name: &str, change: impl Fn(&mut Keys, &mut Tensors)) -> Result<(), String> {
    let gguf = Gguf::parse(&golden(name)).unwrap();
    let mut keys: Vec<_> = gguf.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    let mut tensors: Vec<_> = gguf.tensors.iter().map(|t| (t.name.clone(), t.dims.clone())).collect();
    change(&mut keys, &mut tensors);
    let mut writer = Writer::new();
    for (key, value) in keys {
        writer.set(key, value);
    }
    for (name, dims) in &tensors {
        writer.tensor(name, TensorType::F32, dims).unwrap();
    }
    let mut out = writer.start(Vec::new()).unwrap();
    while let Some((name, bytes)) = out.next().map(|(n, b)| (n.to_owned(), b)) {
        out.write(&name, &vec![0; bytes as usize]).unwrap();
    }
    let file = out.finish().unwrap();
    Architecture::from_gguf(&Gguf::parse(&file).unwrap()).map(drop).map_err(|e| e.to_string())
}

fn set(keys: &mut Keys, key: &str, value: Value) {
    keys.retain(|(k, _)| k != key);
    keys.push((key.to_owned(), value));
}

#[test]
fn what_does_not_fit_is_named() {
    let refused =
        |change: &dyn Fn(&mut Keys, &mut Tensors)| changed("llama_tied", |k, t| change(k, t)).unwrap_err();
    assert_eq!(changed("llama_tied", |_, _| ()), Ok(()));
    let check = |text: String, parts: &[&str]| {
        assert!(parts.iter().all(|p| text.contains(p)) && !text.contains('\n'), "{text}");
    };
    check(
        refused(&|k, _| set(k, "general.architecture", Value::String("mamba".into()))),
        &["\"mamba\" is not supported", "llama, phi3, bitnet"],
    );
    check(refused(&|k, _| k.retain(|(k, _)| k != "llama.block_count")), &["llama.block_count"]);
    check(refused(&|k, _| set(k, "llama.block_count", Value::U32(0))), &["llama.block_count is 0"]);
    check(refused(&|k, _| set(k, "llama.block_count", Value::U64(1 << 60))), &["llama.block_count"]);
    check(
        refused(&|k, _| set(k, "llama.embedding_length", Value::String("wide".into()))),
        &["llama.embedding_length"],
    );
    check(
        refused(&|k, _| set(k, "llama.attention.head_count", Value::U32(5))),
        &["llama.attention.head_count"],
    );
    check(refused(&|k, _| set(k, "llama.attention.head_count_kv", Value::U32(3))), &["head_count_kv is 3"]);
    check(
        refused(&|k, _| set(k, "llama.rope.dimension_count", Value::U32(7))),
        &["rope.dimension_count is 7"],
    );
    check(refused(&|k, _| set(k, "llama.rope.freq_base", Value::F32(-1.0))), &["rope.freq_base is -1"]);
    check(
        refused(&|k, _| set(k, "llama.rope.scaling.type", Value::String("warp".into()))),
        &["rope.scaling.type is warp", "yarn"],
    );
    check(
        refused(&|k, _| set(k, "llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN))),
        &["layer_norm_rms_epsilon"],
    );
    check(
        refused(&|_, t| t.retain(|(n, _)| n != "blk.1.ffn_up.weight")),
        &["tensor blk.1.ffn_up.weight is missing"],
    );
    check(
        refused(&|_, t| t.push(("blk.0.attn_q_norm.weight".into(), vec![8]))),
        &["blk.0.attn_q_norm.weight", "architecture llama"],
    );
    check(
        refused(&|_, t| t.iter_mut().find(|t| t.0 == "blk.0.attn_q.weight").unwrap().1 = vec![32, 31]),
        &["blk.0.attn_q.weight has dimensions [32, 31]", "[32, 32]"],
    );
    check(
        changed("qwen2", |_, t| t.retain(|(n, _)| n != "blk.0.attn_k.bias")).unwrap_err(),
        &["tensor blk.0.attn_k.bias is missing"],
    );
    check(
        changed("phi3_long", |_, t| t.retain(|(n, _)| n != "rope_factors_short.weight")).unwrap_err(),
        &["rope_factors_short.weight is missing"],
    );
}
