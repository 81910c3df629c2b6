//! `synth`: writes a random but valid ternary model at a real shape, to try sizes and speed without a download.

use crate::args::SynthArgs;
use crate::failure::Failure;
use crate::output;
use nexaquant_engine::synth::{Shape, SynthError, synthesize};
use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::time::Instant;

pub fn synth(args: &SynthArgs) -> Result<(), Failure> {
    let shape = Shape::parse(&args.shape).map_err(Failure::input)?;
    let path = args.output.display();
    let mut options = OpenOptions::new();
    options.write(true).create_new(!args.force).create(true).truncate(true);
    let file = options.open(&args.output).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::Input(format!("{path} exists already; --force replaces it"))
        }
        _ => Failure::Input(format!("cannot create {path}: {error}")),
    })?;
    let start = Instant::now();
    let written = synthesize(&shape, &args.format, args.seed, BufWriter::with_capacity(1 << 20, file))
        .and_then(|mut out| out.flush().map_err(|error| SynthError::Write(error.into())));
    if let Err(error) = written {
        // Half a model is of no use to anyone; a pipe or device is not ours to remove.
        if std::fs::metadata(&args.output).is_ok_and(|m| m.is_file()) {
            let _ = std::fs::remove_file(&args.output);
        }
        return Err(Failure::Input(format!("{path}: {error}")));
    }
    let bytes = std::fs::metadata(&args.output).map_or(0, |m| m.len());
    let seconds = start.elapsed().as_secs_f64();
    let speed = bytes as f64 / seconds / 1e9;
    output::print(&format!("{path}: {} in {seconds:.1} s, {speed:.2} GB/s\n", output::bytes(bytes)))
}
