//! Random but valid models at real shapes, so that sizes, speed and memory can be tried without a download.
//!
//! The text of such a model is noise; its bytes, tensors, tokenizer and arithmetic are those of a real one. Matrices of
//! layers are in the format asked for, embedding and head in Q6_K (as `llama-quantize` makes a head), norms are ones.
//! The file is written as it is made: memory does not grow with it.

use crate::model::hparams::{MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS};
use nexaquant_gguf::write::Writer;
use nexaquant_gguf::{Error, StringArray, TensorType, Value};
use nexaquant_kernels::{FORMATS, Format};
use std::collections::HashMap;
use std::io::Write;

/// Sizes of a model that the loader takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `general.architecture`: `llama` or `bitnet-b1.58`.
    arch: String,
    layers: u32,
    /// Width of the residual stream.
    embd: u32,
    /// Query heads; divides `embd`.
    heads: u32,
    /// Key and value heads; divides `heads`.
    kv_heads: u32,
    /// Width of the hidden vector.
    ff: u32,
    /// Tokens.
    vocab: u32,
    /// Positions.
    context: u32,
    /// The head has a matrix of its own.
    own_head: bool,
}

/// Shapes with names.
const NAMED: &[(&str, &str)] = &[
    ("tinyllama-1.1b", "arch=llama,layers=22,embd=2048,heads=32,kv=4,ff=5632,vocab=32000,ctx=2048,head=own"),
    (
        "bitnet-2b4t",
        "arch=bitnet-b1.58,layers=30,embd=2560,heads=20,kv=5,ff=6912,vocab=128256,ctx=4096,head=tied",
    ),
    ("llama3-8b", "arch=llama,layers=32,embd=4096,heads=32,kv=8,ff=14336,vocab=128256,ctx=8192,head=own"),
];

/// What is wrong with a shape, or with writing it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// Neither a name nor a list of sizes.
    #[error(
        "shape {text:?}: {why}; give {names}, or sizes such as layers=4,embd=512,heads=8,kv=4,ff=1536,vocab=4096"
    )]
    Shape {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
        /// The names there are.
        names: String,
    },
    /// A format without kernels.
    #[error("format {text:?} cannot be made; use {names}")]
    Format {
        /// What was given.
        text: String,
        /// The names there are.
        names: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Write(#[from] Error),
}

impl Shape {
    /// The names of the shapes that have one.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, _)| *name)
    }

    /// A name, or `key=value` pairs; those left out are those of a small llama.
    pub fn parse(text: &str) -> Result<Self, SynthError> {
        let bad = |why: String| SynthError::Shape {
            text: text.to_owned(),
            why,
            names: Self::names().collect::<Vec<_>>().join(", "),
        };
        let named = NAMED.iter().find(|(name, _)| *name == text);
        if named.is_none() && !text.contains('=') {
            return Err(bad("there is no shape of that name".to_owned()));
        }
        let mut shape = Shape {
            arch: "llama".to_owned(),
            layers: 4,
            embd: 512,
            heads: 8,
            kv_heads: 4,
            ff: 1536,
            vocab: 4096,
            context: 2048,
            own_head: false,
        };
        for pair in named.map_or(text, |(_, sizes)| sizes).split(',') {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| bad(format!("{pair:?} is no key=value")))?;
            let size = || match value.parse::<u32>() {
                Ok(n) if (1..=1 << 20).contains(&n) => Ok(n),
                _ => Err(bad(format!("{key} is {value:?}; wanted a number from 1 to {}", 1 << 20))),
            };
            match key {
                "arch" if matches!(value, "llama" | "bitnet-b1.58") => value.clone_into(&mut shape.arch),
                "arch" => return Err(bad(format!("arch is {value:?}; wanted llama or bitnet-b1.58"))),
                "layers" => shape.layers = size()?,
                "embd" => shape.embd = size()?,
                "heads" => shape.heads = size()?,
                "kv" => shape.kv_heads = size()?,
                "ff" => shape.ff = size()?,
                "vocab" => shape.vocab = size()?,
                "ctx" => shape.context = size()?,
                "head" if matches!(value, "own" | "tied") => shape.own_head = value == "own",
                "head" => return Err(bad(format!("head is {value:?}; wanted own or tied"))),
                _ => return Err(bad(format!("unknown size {key:?}"))),
            }
        }
        let check = |ok: bool, why: &str| if ok { Ok(()) } else { Err(bad(why.to_owned())) };
        check(
            shape.embd.is_multiple_of(256) && shape.ff.is_multiple_of(256),
            "embd and ff must be multiples of 256",
        )?;
        check(shape.embd.is_multiple_of(2 * shape.heads), "heads must divide embd into an even size")?;
        check(shape.heads.is_multiple_of(shape.kv_heads), "kv must divide heads")?;
        check(u64::from(shape.layers) <= MAX_LAYERS, "there can be 4096 layers at most")?;
        check(shape.heads as usize <= MAX_HEADS, "there can be 4096 heads at most")?;
        check((shape.embd / shape.heads) as usize <= MAX_HEAD_DIM, "a head can be 16384 wide at most")?;
        check(shape.vocab >= 260, "vocab must be at least 260: every byte and four more")?;
        Ok(shape)
    }

    fn kv_width(&self) -> u32 {
        self.embd / self.heads * self.kv_heads
    }
}

/// The format of that name, in any case.
///
/// # Errors
/// When there are no kernels for it.
pub fn format(name: &str) -> Result<TensorType, SynthError> {
    let ty = TensorType::by_name(&name.to_uppercase());
    ty.filter(|ty| Format::by_name(ty.name()).is_some()).ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> SynthError {
    let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
    SynthError::Format { text: name.to_owned(), names: names.join(", ") }
}

/// Metadata and tensors of a model, and how many bytes the tensors have.
fn declare(shape: &Shape, ty: TensorType) -> Result<(Writer, u64), Error> {
    let mut writer = Writer::new();
    metadata(&mut writer, shape);
    let (embd, ff, kv) = (u64::from(shape.embd), u64::from(shape.ff), u64::from(shape.kv_width()));
    let vocab = u64::from(shape.vocab);
    let mut total = writer.tensor("token_embd.weight", TensorType::Q6_K, &[embd, vocab])?;
    for i in 0..shape.layers {
        let mut tensor = |name: &str, ty: TensorType, dims: &[u64]| {
            writer.tensor(format!("blk.{i}.{name}.weight"), ty, dims).map(|bytes| total += bytes)
        };
        tensor("attn_norm", TensorType::F32, &[embd])?;
        tensor("ffn_norm", TensorType::F32, &[embd])?;
        if shape.arch.starts_with("bitnet") {
            tensor("attn_sub_norm", TensorType::F32, &[embd])?;
            tensor("ffn_sub_norm", TensorType::F32, &[ff])?;
        }
        for (name, cols, rows) in [
            ("attn_q", embd, embd),
            ("attn_k", embd, kv),
            ("attn_v", embd, kv),
            ("attn_output", embd, embd),
            ("ffn_gate", embd, ff),
            ("ffn_up", embd, ff),
            ("ffn_down", ff, embd),
        ] {
            tensor(name, ty, &[cols, rows])?;
        }
    }
    total += writer.tensor("output_norm.weight", TensorType::F32, &[embd])?;
    if shape.own_head {
        total += writer.tensor("output.weight", TensorType::Q6_K, &[embd, vocab])?;
    }
    Ok((writer, total))
}

/// How many bytes the tensors of a model have; its file has some more.
///
/// # Errors
/// When they are more than a file can have.
pub fn tensor_bytes(shape: &Shape, ty: TensorType) -> Result<u64, SynthError> {
    Ok(declare(shape, ty)?.1)
}

/// Writes a model of `shape` with matrices in the [format](format()) `ty`; the same seed gives the same file.
///
/// # Errors
/// A writer that fails, or a type that [`format()`] does not know.
pub fn synthesize<W: Write>(shape: &Shape, ty: TensorType, seed: u64, out: W) -> Result<W, SynthError> {
    let kernels = |ty: TensorType| Format::by_name(ty.name()).ok_or_else(|| unknown(ty.name()));
    let (layers, others) = (kernels(ty)?, kernels(TensorType::Q6_K)?);
    let mut random = Random(seed ^ GOLDEN);
    let most_rows = shape.vocab.max(shape.embd).max(shape.ff) as usize;
    // By format and length of a row.
    let mut made = HashMap::new();
    let mut file = declare(shape, ty)?.0.start(out)?;
    while let Some((name, bytes)) = file.next().map(|(name, bytes)| (name.to_owned(), bytes)) {
        let format = if name.starts_with("blk.") { layers } else { others };
        let cols = if name.ends_with("ffn_down.weight") { shape.ff } else { shape.embd } as usize;
        file.write_with(&name, |sink| {
            if name.contains("norm") {
                return (0..bytes / 4).try_for_each(|_| sink.write_all(&1f32.to_le_bytes()));
            }
            let rows = made
                .entry((format.name, cols))
                .or_insert_with(|| Rows::new(&mut random, format, cols, most_rows));
            rows.write(&mut random, sink, bytes)
        })?;
    }
    Ok(file.finish()?)
}

/// Keys, and a byte-level vocabulary: 256 bytes, fillers nobody types, four control tokens at the end.
fn metadata(writer: &mut Writer, shape: &Shape) {
    let arch = &shape.arch;
    writer.set("general.architecture", arch.as_str());
    writer.set("general.name", format!("synthetic {arch} {} x {}", shape.layers, shape.embd));
    let mut put = |key: &str, value: u32| {
        writer.set(format!("{arch}.{key}"), value);
    };
    put("block_count", shape.layers);
    put("embedding_length", shape.embd);
    put("feed_forward_length", shape.ff);
    put("attention.head_count", shape.heads);
    put("attention.head_count_kv", shape.kv_heads);
    put("rope.dimension_count", shape.embd / shape.heads);
    put("context_length", shape.context);
    put("vocab_size", shape.vocab);
    writer.set(format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32);
    writer.set(format!("{arch}.rope.freq_base"), 500_000f32);

    // GPT-2's printable stand-ins: bytes that print stand for themselves, the others follow from 256 on.
    let prints = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let letters = (0..256u32).map(|b| {
        let code = if prints(b) { Some(b) } else { others.next() };
        code.and_then(char::from_u32).unwrap_or('?').to_string()
    });
    let control = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|pad|>"];
    let fillers = shape.vocab - 256 - control.len() as u32;
    let texts: Vec<String> = letters
        .chain((0..fillers).map(|i| format!("<filler {i}>")))
        .chain(control.map(str::to_owned))
        .collect();
    let kinds: Vec<i32> = (0..shape.vocab)
        .map(|id| {
            if id < 256 {
                1
            } else if id < 256 + fillers {
                5
            } else {
                3
            }
        })
        .collect();
    let tokens: StringArray = texts.iter().map(String::as_bytes).collect();
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "llama-bpe");
    writer.set("tokenizer.ggml.tokens", nexaquant_gguf::Array::String(tokens));
    writer.set("tokenizer.ggml.token_type", kinds);
    writer.set("tokenizer.ggml.merges", nexaquant_gguf::Array::String(StringArray::default()));
    writer.set("tokenizer.ggml.bos_token_id", shape.vocab - 4);
    writer.set("tokenizer.ggml.eos_token_id", shape.vocab - 3);
    writer.set("tokenizer.ggml.add_bos_token", Value::Bool(true));
}

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// About so many bytes are random.
const BYTES: usize = 1 << 20;

/// Random whole rows, and what stands behind a tensor of them.
struct Rows {
    bytes: Vec<u8>,
    tail: Vec<u8>,
    block: usize,
}

impl Rows {
    /// `most` rows or fewer of `cols` weights each, whose spread is 1 / sqrt(cols), so that activations keep their size
    /// from layer to layer.
    fn new(random: &mut Random, format: &Format, cols: usize, most: usize) -> Self {
        let row = cols / format.block * format.block_bytes;
        let rows = (BYTES / row).clamp(1, most);
        let weights: Vec<f32> = (0..rows * cols)
            .map(|_| {
                let random = random.next() >> 40;
                if format.ternary {
                    // Thirds of -1, 0 and 1, whose variance is 2/3.
                    ((random % 3) as f32 - 1.0) * (1.5 / cols as f32).sqrt()
                } else {
                    // Up to 1, of variance 1/3.
                    (random as f32 / (1 << 23) as f32 - 1.0) * (3.0 / cols as f32).sqrt()
                }
            })
            .collect();
        let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap_or(0)];
        format.quantize(&weights, cols, &mut bytes);
        let tail = bytes.split_off(bytes.len() - format.tail_bytes);
        Self { bytes, tail, block: format.block_bytes }
    }

    /// Writes `total` bytes of a tensor: the rows repeated from random places, since a processor cannot tell and more
    /// random weights would take longer than the disk.
    fn write(&self, random: &mut Random, sink: &mut dyn Write, total: u64) -> std::io::Result<()> {
        let blocks = (self.bytes.len() / self.block) as u64;
        let mut left = total - self.tail.len() as u64;
        while left > 0 {
            let from = &self.bytes[(random.next() % blocks) as usize * self.block..];
            let take = (from.len() as u64).min(left) as usize;
            sink.write_all(&from[..take])?;
            left -= take as u64;
        }
        sink.write_all(&self.tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GenerateOptions, LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions, generate};
    use std::ops::ControlFlow;

    #[test]
    fn every_format_and_architecture_makes_a_model_that_runs() {
        let mut pool = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
        for format in FORMATS.iter().map(|f| f.name).chain(["tq1_0"]) {
            for arch in ["llama", "bitnet-b1.58"] {
                let text = format!("arch={arch},layers=2,embd=256,heads=4,kv=2,ff=512,vocab=300,head=own");
                let shape = Shape::parse(&text).unwrap();
                let mut file = tempfile::NamedTempFile::new().unwrap();
                synthesize(&shape, super::format(format).unwrap(), 1, &mut file).unwrap();
                let model = Model::load(file.path(), LoadOptions::default()).unwrap();
                let mut session = Session::new(&model, &pool, SessionOptions::default()).unwrap();
                let logits = session.eval(&mut pool, &[296, 65, 66, 67]).unwrap();
                let spread = logits.iter().fold(0f32, |m, x| m.max(x.abs()));
                assert!(spread > 0.5 && spread < 50.0, "{format} {arch}: logits up to {spread}");
                let options = GenerateOptions { max_tokens: Some(8), ignore_end: true, ..Default::default() };
                let answer =
                    generate(&mut session, &mut pool, &[296, 65], &options, |_| ControlFlow::Continue(()))
                        .unwrap();
                assert_eq!(answer.tokens.len(), 8, "{format} {arch}");
            }
        }
    }

    #[test]
    fn the_seed_decides_the_file() {
        let shape = Shape::parse("layers=1,embd=256,ff=256,heads=2,kv=1,vocab=260").unwrap();
        let file = |seed| synthesize(&shape, TensorType::TQ2_0, seed, Vec::new()).unwrap();
        assert_eq!(file(5), file(5));
        assert_ne!(file(5), file(6));
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        let why = |text: &str| Shape::parse(text).unwrap_err().to_string();
        assert!(why("llama9").contains("no shape of that name") && why("llama9").contains("bitnet-2b4t"));
        for (text, part) in [
            ("embd=100", "multiples of 256"),
            ("heads=7", "heads must divide"),
            ("kv=3", "kv must divide"),
            ("vocab=10", "at least 260"),
            ("layers=0", "layers is \"0\""),
            ("embd=-1", "embd is \"-1\""),
            ("arch=mamba", "wanted llama"),
            ("layers=5000", "4096 layers at most"),
            ("embd=16384,heads=8192,kv=8192", "4096 heads at most"),
            ("embd=32768,heads=1,kv=1", "16384 wide at most"),
            ("wings=2", "unknown size"),
            ("layers=2,embd", "is no key=value"),
        ] {
            assert!(why(text).contains(part), "{text}: {}", why(text));
        }
        let shape = Shape::parse("tinyllama-1.1b").unwrap();
        assert_eq!((shape.layers, shape.embd, shape.own_head), (22, 2048, true));
        let unknown = super::format("Q3_K").unwrap_err().to_string();
        assert!(
            unknown.contains("\"Q3_K\"") && unknown.contains("TQ2_0") && unknown.contains("Q4_0"),
            "{unknown}"
        );
    }
}
