//! `synth`: writes a random but valid model at a real shape, to try sizes and speed without a download.

use crate::args::SynthArgs;
use crate::failure::Failure;
use crate::output;
use nexaquant_engine::gguf::TensorType;
use nexaquant_engine::synth::{Shape, SynthError, format, synthesize};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

pub fn synth(args: &SynthArgs) -> Result<(), Failure> {
    let shape = Shape::parse(&args.shape).map_err(Failure::input)?;
    let format = format(&args.format).map_err(Failure::input)?;
    let path = args.output.display();
    if args.output.exists() && !args.force {
        return Err(Failure::Input(format!("{path} exists already; --force replaces it")));
    }
    // Under another name until it is whole, so that a run that ends early leaves what was there.
    let mut part = args.output.clone().into_os_string();
    part.push(".part");
    let file =
        File::create(&part).map_err(|error| Failure::Input(format!("cannot create {path}: {error}")))?;
    let start = Instant::now();
    let written = write(&shape, format, args.seed, file)
        .and_then(|()| std::fs::rename(&part, &args.output).map_err(|error| SynthError::Write(error.into())));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&part);
        return Err(Failure::Input(format!("{path}: {error}")));
    }
    let bytes = std::fs::metadata(&args.output).map_or(0, |m| m.len());
    let seconds = start.elapsed().as_secs_f64();
    let speed = bytes as f64 / seconds / 1e9;
    output::print(&format!("{path}: {} in {seconds:.1} s, {speed:.2} GB/s\n", output::bytes(bytes)))
}

/// Writes a random model in large pieces, so that the system can cache them in huge pages.
pub fn write(shape: &Shape, ty: TensorType, seed: u64, file: File) -> Result<(), SynthError> {
    let mut out = synthesize(shape, ty, seed, BufWriter::with_capacity(16 << 20, file))?;
    out.flush().map_err(|error| SynthError::Write(error.into()))
}
