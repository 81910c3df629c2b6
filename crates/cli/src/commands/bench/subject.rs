//! What is measured: a model of a file, or a random one that is written for this run and gone after it.

use crate::commands::synth;
use crate::engine;
use crate::failure::Failure;
use crate::models;
use nexaquant_engine::gguf::TensorType;
use nexaquant_engine::synth::Shape;
use nexaquant_engine::{LoadOptions, Model};
use std::fmt::Display;
use std::path::{MAIN_SEPARATOR, Path};

/// A model by the name it was asked for.
pub struct Subject {
    pub name: String,
    pub model: Model,
    /// `None` for a random model.
    pub source: Option<models::Source>,
}

/// What a name means.
pub enum Wanted {
    Random(Shape),
    There(models::Source),
}

impl Wanted {
    /// Nothing is opened yet. A shape, or sizes, unless a file has that name.
    pub fn find(name: &str) -> Result<Self, Failure> {
        let path = name.contains(['/', MAIN_SEPARATOR]);
        let shape = Shape::names().any(|known| known == name) || name.contains('=') && !path;
        if shape && !Path::new(name).is_file() {
            return Shape::parse(name).map(Wanted::Random).map_err(Failure::input);
        }
        models::find(name).map(Wanted::There).map_err(|failure| match failure {
            Failure::Input(text) if !path => {
                let names = Shape::names().collect::<Vec<_>>().join(", ");
                Failure::Input(format!("{text}; shapes of random models are {names}"))
            }
            failure => failure,
        })
    }
}

impl Subject {
    /// Finds and loads it.
    pub fn open(name: &str, load: LoadOptions) -> Result<Self, Failure> {
        Self::load(name, Wanted::find(name)?, TensorType::TQ2_0, load)
    }

    /// Loads what `name` means; the layers of a random model are of format `ty`.
    pub fn load(name: &str, wanted: Wanted, ty: TensorType, load: LoadOptions) -> Result<Self, Failure> {
        match wanted {
            Wanted::There(source) => {
                let model = engine::load_source(&source, load)?;
                let name = name.rsplit(['/', MAIN_SEPARATOR]).next().unwrap_or(name).to_owned();
                Ok(Self { name, model, source: Some(source) })
            }
            Wanted::Random(shape) => {
                let name = format!("{name} {}", ty.name());
                let model = random(&name, &shape, ty, load)?;
                Ok(Self { name, model, source: None })
            }
        }
    }
}

/// A model in a file without a name, so that nothing is left behind by a run that is killed.
fn random(name: &str, shape: &Shape, ty: TensorType, load: LoadOptions) -> Result<Model, Failure> {
    let folder = std::env::temp_dir();
    let fail = |error: &dyn Display| {
        let text = format!("cannot write the random model {name} to {}: {error}", folder.display());
        Failure::Input(format!("{text}; TMPDIR names another folder"))
    };
    let file = tempfile::tempfile_in(&folder).map_err(|error| fail(&error))?;
    synth::write(shape, ty, 0, &file).map_err(|error| fail(&error))?;
    Model::from_file(file, Path::new(name), load).map_err(engine::unloaded)
}
