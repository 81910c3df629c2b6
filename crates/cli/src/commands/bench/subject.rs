//! What is measured: a model of a file, or a random one that is written for this run and gone after it.

use crate::commands::synth;
use crate::engine;
use crate::failure::Failure;
use crate::models;
use nexaquant_engine::synth::{Shape, format};
use nexaquant_engine::{LoadOptions, Model};
use std::fs::File;
use std::path::PathBuf;

/// A model by the name it was asked for.
pub struct Subject {
    pub name: String,
    pub model: Model,
    /// `None` for a random model.
    pub source: Option<models::Source>,
    /// Removes the file of a random model.
    _file: Option<Removed>,
}

impl Subject {
    /// Finds and loads it. Where no file has that name, it may be a shape.
    pub fn open(name: &str, weights: &str, load: LoadOptions) -> Result<Self, Failure> {
        let ty = format(weights).map_err(|error| Failure::Input(format!("--format: {error}")))?;
        let is_shape = name.contains('=') || Shape::names().any(|known| known == name);
        if !is_shape || std::path::Path::new(name).exists() {
            let missing = |failure| match failure {
                Failure::Input(text) if !name.contains(['/', '.']) => Failure::Input(format!(
                    "{text}; shapes of random models are {}",
                    Shape::names().collect::<Vec<_>>().join(", ")
                )),
                failure => failure,
            };
            let source = models::find(name).map_err(missing)?;
            let model = engine::load_source(&source, load)?;
            let name = name.rsplit(['/', std::path::MAIN_SEPARATOR]).next().unwrap_or(name);
            return Ok(Self { name: name.to_owned(), model, source: Some(source), _file: None });
        }
        let shape = Shape::parse(name).map_err(Failure::input)?;
        let path =
            std::env::temp_dir().join(format!("nexaquant-bench-{}-{}.gguf", std::process::id(), unique()));
        let fail = |error: &dyn std::fmt::Display| {
            let place = path.display();
            Failure::Input(format!(
                "cannot write the random model {place}: {error}; TMPDIR names another folder"
            ))
        };
        let file = File::create_new(&path).map_err(|error| fail(&error))?;
        let removed = Removed(path.clone());
        synth::write(&shape, ty, 0, file).map_err(|error| fail(&error))?;
        let model = engine::load_source(&models::Source::File(path.clone()), load)?;
        // What is open stays readable without a name, so that nothing is left behind even by a run that is killed.
        #[cfg(unix)]
        let _ = std::fs::remove_file(&path);
        Ok(Self { name: format!("{name} {}", ty.name()), model, source: None, _file: Some(removed) })
    }
}

/// A file that goes when this does.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Another number each time.
fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
