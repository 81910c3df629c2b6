//! What MODEL means: a path, the model inside this program, or a bundled file that has to be found.

use crate::failure::Failure;
use etcetera::BaseStrategy;
use nexaquant_engine::{LoadError, LoadOptions, Model, ModelFile};
use std::path::{MAIN_SEPARATOR, Path, PathBuf};

/// The names that are no paths. The first is built in.
pub const BUNDLED: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

/// Alpha's file. Aligned like a mapped file, so that its tensors lie as they do there.
#[repr(C, align(4096))]
struct Aligned<T: ?Sized>(T);
static ALPHA: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../models/alpha.gguf"));

/// A model that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Part of this program.
    BuiltIn,
    /// A file, or what the user thinks is one.
    File(PathBuf),
}

impl Source {
    /// Loads it.
    pub fn load(&self, options: LoadOptions) -> Result<Model, LoadError> {
        match self {
            Source::BuiltIn => Model::from_static(BUNDLED[0], &ALPHA.0, options),
            Source::File(path) => Model::load(path, options),
        }
    }

    /// Its bytes, whatever they are.
    pub fn open(&self) -> Result<ModelFile, nexaquant_engine::FileError> {
        match self {
            Source::BuiltIn => Ok(ModelFile::from_static(BUNDLED[0], &ALPHA.0)),
            Source::File(path) => ModelFile::open(path),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Source::BuiltIn => format!("{} (inside this program)", BUNDLED[0]),
            Source::File(path) => path.display().to_string(),
        }
    }
}

/// Finds the model that `name` means.
///
/// With a separator or `.gguf` it is a path. Else a file of that name wins, then the bundled names.
pub fn find(name: &str) -> Result<Source, Failure> {
    let path = Path::new(name);
    let looks_like_path = name.contains(['/', MAIN_SEPARATOR]) || name.to_lowercase().ends_with(".gguf");
    let bundled = BUNDLED.contains(&name);
    if looks_like_path || path.is_file() || (!bundled && path.exists()) {
        return Ok(Source::File(path.to_owned()));
    }
    if !bundled {
        let names = BUNDLED.join(", ");
        let text = format!("there is no file and no model {name:?}; the models with names are {names}");
        return Err(Failure::Input(text));
    }
    find_bundled(name, &places()).map_err(|looked| {
        let looked: Vec<String> = looked.iter().map(|p| p.display().to_string()).collect();
        let what = format!("model {name} is not here: {name}.gguf was looked for in {}", looked.join(", "));
        Failure::Input(format!("{what}; alpha needs no file"))
    })
}

/// Finds a bundled model in `places`; the error is where it was not.
pub fn find_bundled(name: &str, places: &[PathBuf]) -> Result<Source, Vec<PathBuf>> {
    if name == BUNDLED[0] {
        return Ok(Source::BuiltIn);
    }
    let file = format!("{name}.gguf");
    let found = places.iter().map(|place| place.join(&file)).find(|path| path.is_file());
    found.map(Source::File).ok_or_else(|| places.iter().filter(|p| p.is_dir()).cloned().collect())
}

/// The folders where bundled models are looked for, in order: beside the program, `models` of each folder above the
/// program and above the current folder (a checkout), and the user's data folder.
pub fn places() -> Vec<PathBuf> {
    let exe = std::env::current_exe().ok().and_then(|exe| exe.canonicalize().ok());
    let beside = exe.as_deref().and_then(Path::parent);
    let here = std::env::current_dir().ok();
    let above = |dir: Option<&Path>| -> Vec<PathBuf> {
        dir.into_iter().flat_map(Path::ancestors).map(|dir| dir.join("models")).collect()
    };
    let mut places: Vec<PathBuf> = beside.map(Path::to_owned).into_iter().collect();
    places.extend(above(beside));
    places.extend(above(here.as_deref()));
    places.extend(data_dir().map(|dir| dir.join("models")));
    let mut seen = std::collections::HashSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

/// This program's part of the user's data folder.
pub fn data_dir() -> Option<PathBuf> {
    etcetera::choose_base_strategy().ok().map(|dirs| dirs.data_dir().join("nexaquant"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_with_the_file_wins() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let mut places: Vec<PathBuf> = dirs.iter().map(|d| d.path().to_owned()).collect();
        places.push("/no/such/place".into());
        assert_eq!(find_bundled("alpha", &[]), Ok(Source::BuiltIn));
        assert_eq!(find_bundled("beta", &places), Err(places[..2].to_vec()), "folders that exist are named");
        for dir in dirs.iter().rev() {
            let path = dir.path().join("beta.gguf");
            std::fs::write(&path, "x").unwrap();
            assert_eq!(find_bundled("beta", &places), Ok(Source::File(path)));
        }
    }

    #[test]
    fn paths_are_told_from_names() {
        for path in ["x/y", "./alpha", "nothing.gguf", "B.GGUF"] {
            assert_eq!(find(path).unwrap(), Source::File(path.into()));
        }
        assert_eq!(find("alpha").unwrap(), Source::BuiltIn);
        assert_eq!(find("src").unwrap(), Source::File("src".into()), "whatever exists is a path");
        let Err(Failure::Input(text)) = find("nosuch") else { panic!() };
        assert!(text.contains("alpha, beta, gamma, delta"), "{text}");
    }
}
