//! `inspect`: what is in a model file, and what will run on what. A file that is sound GGUF is shown even if its
//! model cannot run here; the reason is part of the answer.

use crate::args::InspectArgs;
use crate::failure::Failure;
use crate::models::{self, Source};
use crate::options;
use crate::output::{self, bytes, printable, table};
use nexaquant_engine::gguf::{Array, Gguf, TensorInfo, TensorType, Value};
use nexaquant_engine::kernels::{BoundKernel, Isa, Mode};
use nexaquant_engine::{LoadCause, LoadOptions, Model, format_of};
use serde_json::json;

/// Elements of an array that are shown.
const SHOWN: usize = 6;
/// Characters of a string that are shown to people.
const SHOWN_CHARS: usize = 100;

/// Everything `inspect` knows.
struct Inspection {
    path: String,
    file_bytes: u64,
    gguf: Gguf,
    mode: Mode,
    model: Result<Model, LoadCause>,
    types: Vec<TypeUse>,
}

/// All tensors of one type together.
struct TypeUse {
    ty: TensorType,
    tensors: usize,
    weights: u64,
    bytes: u64,
    /// Such as `TQ2_0/int8/avx2`, or why there is none.
    kernel: Result<String, String>,
}

pub fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let source = models::find(&args.model)?;
    let found = Inspection::new(&source, options::mode(args.activations))?;
    if args.ops {
        return match found.model {
            Ok(model) => output::print(&model.architecture().ops_text()),
            Err(why) => Err(Failure::Input(format!("{}: {why}", found.path))),
        };
    }
    if args.json { output::print_json(&found.json()) } else { output::print(&found.text()) }
}

impl Inspection {
    fn new(source: &Source, mode: Mode) -> Result<Self, Failure> {
        let path = source.describe();
        let file = source.open().map_err(Failure::input)?;
        let gguf = Gguf::parse(file.bytes()).map_err(|e| Failure::Input(format!("{path}: {e}")))?;
        let options = LoadOptions { activations: mode, isa: None };
        let model = source.load(options).map_err(|error| *error.cause);
        let types = types(&gguf, mode);
        Ok(Self { path, file_bytes: file.bytes().len() as u64, gguf, mode, model, types })
    }

    fn text(&self) -> String {
        let gguf = &self.gguf;
        let weights: u64 = gguf.tensors.iter().map(TensorInfo::elements).sum();
        let mut rows = vec![
            row("file", &self.path),
            row("size", &format!("{}, GGUF version {}", bytes(self.file_bytes), gguf.version)),
            row("weights", &format!("{weights} in {} tensors", gguf.tensors.len())),
        ];
        match &self.model {
            Ok(model) => rows.extend(runs(model)),
            Err(why) => rows.push(row("runs", &format!("no: {}", printable(&why.to_string(), false)))),
        }
        let mut text = table(&rows, &[], "");

        text += &format!("\nTensor types, with {} activations\n", mode_name(self.mode));
        let header = ["type", "tensors", "weights", "size", "bits/weight", "kernel"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        for t in &self.types {
            let kernel = match &t.kernel {
                Ok(kernel) => kernel.clone(),
                Err(why) => format!("none: {why}"),
            };
            let bits = format!("{:.4}", t.bits_per_weight());
            let numbers = [t.tensors.to_string(), t.weights.to_string(), bytes(t.bytes), bits];
            rows.push([t.ty.name().to_owned()].into_iter().chain(numbers).chain([kernel]).collect());
        }
        text += &table(&rows, &[1, 2, 3, 4], "  ");

        text += &format!("\nMetadata ({} keys)\n", gguf.metadata.len());
        for (key, value) in gguf.metadata.iter() {
            text += &format!("  {} = {}\n", printable(key, false), printable(&shown(value), false));
        }

        text += &format!("\nTensors ({})\n", gguf.tensors.len());
        let tensor = |t: &TensorInfo| {
            let dims: Vec<String> = t.dims.iter().map(u64::to_string).collect();
            let name = printable(&t.name, false).into_owned();
            vec![name, t.ty.name().to_owned(), dims.join(" x "), bytes(t.bytes)]
        };
        text + &table(&gguf.tensors.iter().map(tensor).collect::<Vec<_>>(), &[3], "  ")
    }

    fn json(&self) -> serde_json::Value {
        let gguf = &self.gguf;
        let metadata: serde_json::Map<_, _> =
            gguf.metadata.iter().map(|(key, value)| (key.to_owned(), value_json(value))).collect();
        let tensor = |t: &TensorInfo| json!({ "name": t.name, "type": t.ty.name(), "dims": t.dims, "offset": t.offset, "bytes": t.bytes });
        let ty = |t: &TypeUse| {
            json!({
                "type": t.ty.name(),
                "tensors": t.tensors,
                "weights": t.weights,
                "bytes": t.bytes,
                "bits_per_weight": t.bits_per_weight(),
                "kernel": t.kernel.as_ref().ok(),
                "why_not": t.kernel.as_ref().err(),
            })
        };
        let model = self.model.as_ref().ok();
        json!({
            "file": self.path,
            "file_bytes": self.file_bytes,
            "gguf_version": gguf.version,
            "alignment": gguf.alignment,
            "data_offset": gguf.data_offset,
            "runs": model.is_some(),
            "why_not": self.model.as_ref().err().map(ToString::to_string),
            "name": model.map(Model::name),
            "architecture": gguf.metadata.str("general.architecture").ok().flatten(),
            "layers": model.map(|m| m.architecture().hparams.layers.len()),
            "context_length": model.map(|m| m.architecture().hparams.context_length),
            "vocab": model.map(|m| m.architecture().vocab),
            "weight_bytes_per_token": model.map(Model::weight_bytes_per_token),
            "activations": mode_name(self.mode),
            "types": self.types.iter().map(ty).collect::<Vec<_>>(),
            "metadata": metadata,
            "tensors": gguf.tensors.iter().map(tensor).collect::<Vec<_>>(),
        })
    }
}

impl TypeUse {
    fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.weights.max(1) as f64
    }
}

fn row(name: &str, text: &str) -> Vec<String> {
    vec![name.to_owned(), printable(text, false).into_owned()]
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Int8 => "int8",
        Mode::Float => "float",
    }
}

/// What a model that runs looks like.
fn runs(model: &Model) -> Vec<Vec<String>> {
    let arch = model.architecture();
    let h = &arch.hparams;
    let (kv, ff) = h.layers.first().map_or((0, 0), |layer| (layer.kv_heads, layer.ff));
    let shape = format!(
        "{}, {} layers x {}, feed-forward {ff}, {}/{kv} heads of {}",
        arch.name,
        h.layers.len(),
        h.embd,
        h.heads,
        h.head_dim
    );
    let tokenizer = model.tokenizer();
    let ends: Vec<String> =
        tokenizer.end_of_turn().iter().map(|&id| tokenizer.token_text(id).unwrap_or_default()).collect();
    vec![
        row("runs", "yes"),
        row("name", &model.name()),
        row("model", &shape),
        row("context", &format!("{} tokens", h.context_length)),
        row("vocabulary", &format!("{} tokens; a turn ends with {}", arch.vocab, ends.join(" "))),
        row("read per token", &format!("{} of weights", bytes(model.weight_bytes_per_token()))),
    ]
}

/// The types in the file, the one with the most bytes first.
fn types(gguf: &Gguf, mode: Mode) -> Vec<TypeUse> {
    let mut types: Vec<TypeUse> = Vec::new();
    for tensor in &gguf.tensors {
        let at = types.iter().position(|t| t.ty == tensor.ty).unwrap_or_else(|| {
            let kernel = kernel(tensor.ty, mode);
            types.push(TypeUse { ty: tensor.ty, tensors: 0, weights: 0, bytes: 0, kernel });
            types.len() - 1
        });
        let ty = &mut types[at];
        ty.tensors += 1;
        ty.weights = ty.weights.saturating_add(tensor.elements());
        ty.bytes += tensor.bytes;
    }
    types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    types
}

fn kernel(ty: TensorType, mode: Mode) -> Result<String, String> {
    let isa = Isa::detect().map_err(|e| e.to_string())?;
    let format = format_of(ty).ok_or("this format is known but not computed")?;
    let kernel = BoundKernel::new(format, mode, isa).ok_or("not on this processor")?;
    Ok(format!("{kernel:?}"))
}

/// A value for people: one line, long ones cut.
fn shown(value: &Value) -> String {
    let Value::Array(array) = value else { return scalar(value) };
    let first: Vec<String> = array.iter().take(SHOWN).map(|v| scalar(&v)).collect();
    let more = if array.len() > SHOWN { ", …" } else { "" };
    format!("[{}{more}] ({} {})", first.join(", "), array.len(), array.type_name())
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(s) => {
            let text = s.to_string();
            let cut: String = text.chars().take(SHOWN_CHARS).collect();
            let more = text.chars().count() - cut.chars().count();
            if more > 0 { format!("{cut:?}… ({more} characters more)") } else { format!("{cut:?}") }
        }
        Value::Bool(b) => b.to_string(),
        // By the type in the file: an f32 has the digits of an f32.
        Value::F32(x) => x.to_string(),
        _ => value
            .as_i64()
            .map(|n| n.to_string())
            .or(value.as_u64().map(|n| n.to_string()))
            .or(value.as_f64().map(|x| x.to_string()))
            .unwrap_or_default(),
    }
}

/// A value for programs: strings whole, long arrays as their length and beginning.
fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::String(s) => json!(s.to_string()),
        Value::Bool(b) => json!(b),
        Value::Array(array) if array.len() > SHOWN => {
            json!({ "array_of": array.type_name(), "length": array.len(), "first": first(array) })
        }
        Value::Array(array) => json!(first(array)),
        _ => value
            .as_i64()
            .map(|n| json!(n))
            .or(value.as_u64().map(|n| json!(n)))
            .or(value.as_f64().map(|x| json!(x)))
            .unwrap_or_default(),
    }
}

fn first(array: &Array) -> Vec<serde_json::Value> {
    array.iter().take(SHOWN).map(|v| value_json(&v)).collect()
}
