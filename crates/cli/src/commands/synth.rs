//! `synth`: writes a random but valid model at a real shape, to try sizes and speed without a download.

use crate::args::SynthArgs;
use crate::failure::Failure;
use crate::output;
use nexaquant_engine::gguf::TensorType;
use nexaquant_engine::synth::{Shape, format, synthesize, tensor_bytes};
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

pub fn synth(args: &SynthArgs) -> Result<(), Failure> {
    let shape = Shape::parse(&args.shape).map_err(Failure::input)?;
    let ty = format(&args.format).map_err(|error| Failure::Input(format!("--format: {error}")))?;
    let path = args.output.display();
    let fail = |error: &dyn Display| Failure::Input(format!("cannot write {path}: {error}"));
    match std::fs::symlink_metadata(&args.output) {
        Ok(there) if there.is_dir() => return Err(fail(&"it is a folder; -o wants a file")),
        Ok(_) if !args.force => return Err(fail(&"it exists already; --force replaces it")),
        Ok(there) if !there.is_file() => {
            return Err(fail(&"it is no regular file; --force replaces only those"));
        }
        _ => {}
    }
    let start = Instant::now();
    let folder =
        args.output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Under a name of its own until it is whole: a run that ends early leaves what was there.
    let mut part = tempfile::Builder::new();
    part.prefix("nexaquant-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any file that a program makes; the user's mask is taken off.
        part.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let part = part.tempfile_in(folder).map_err(|error| fail(&error))?;
    write(&shape, ty, args.seed, part.as_file()).map_err(|error| fail(&error))?;
    if args.force { part.persist(&args.output) } else { part.persist_noclobber(&args.output) }
        .map_err(|error| fail(&error.error))?;
    let bytes = std::fs::metadata(&args.output).map_or(0, |m| m.len());
    let seconds = start.elapsed().as_secs_f64();
    let speed = bytes as f64 / seconds / 1e9;
    output::print(&format!("{path}: {} in {seconds:.1} s, {speed:.2} GB/s\n", output::bytes(bytes)))
}

/// Writes a random model to an empty file if there is room for it.
pub fn write(shape: &Shape, ty: TensorType, seed: u64, file: &File) -> Result<(), String> {
    let bytes = tensor_bytes(shape, ty).map_err(|error| error.to_string())?;
    if let Some(free) = free(file).filter(|&free| free < bytes) {
        return Err(format!(
            "it needs {}, and there is room for {}",
            output::bytes(bytes),
            output::bytes(free)
        ));
    }
    // In large pieces, so that the system can cache them in huge pages.
    let out = BufWriter::with_capacity(16 << 20, file);
    let mut out = synthesize(shape, ty, seed, out).map_err(|error| error.to_string())?;
    out.flush().map_err(|error| error.to_string())
}

/// Bytes that a file can still take, where the system tells.
fn free(file: &File) -> Option<u64> {
    #[cfg(unix)]
    return rustix::fs::fstatvfs(file).ok().map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    #[cfg(not(unix))]
    return None;
}
