//! A loaded model: the file, its graph, its weights bound to kernels, its tokenizer and its chat template.

use crate::chat::{ChatError, ChatTemplate};
use crate::file::{FileError, ModelFile};
use crate::model::{Architecture, ModelError};
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::weights::{WeightError, WeightTable};
use nexaquant_gguf::Gguf;
use nexaquant_kernels::{Isa, IsaError, Mode, Ops};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// How activations reach the kernels.
    pub activations: Mode,
    /// The instruction set; `None`: the best there is, or what `NEXAQUANT_ISA` says.
    pub isa: Option<Isa>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { activations: Mode::Int8, isa: None }
    }
}

/// Why a file cannot be loaded. Every text names the file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    #[source]
    pub cause: Box<LoadCause>,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadCause {
    /// It cannot be opened or mapped.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not a sound GGUF file.
    #[error(transparent)]
    Gguf(#[from] nexaquant_gguf::Error),
    /// It is no model that runs.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor cannot be computed with.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// Its vocabulary cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Tokenizer and embedding disagree.
    #[error("the tokenizer has {tokens} tokens, the embedding table token_embd.weight has {rows} rows")]
    VocabMismatch {
        /// In the tokenizer.
        tokens: usize,
        /// In the table.
        rows: usize,
    },
    /// `NEXAQUANT_ISA` cannot be honoured.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The instruction set asked for is not there.
    #[error("this processor has no {0}")]
    NoIsa(Isa),
}

/// A model ready to run. Cheap to clone; all clones share one copy.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    file: ModelFile,
    gguf: Gguf,
    arch: Architecture,
    weights: WeightTable,
    tokenizer: Tokenizer,
    chat: Result<ChatTemplate, ChatError>,
    ops: Ops,
    options: LoadOptions,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({})", self.0.file.path().display())
    }
}

impl Model {
    /// Maps and checks a file. Weights are read when they are used.
    pub fn load(path: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        Self::new(ModelFile::open(path), path, options)
    }

    /// The same with a file that is open, whether it has a name or not; messages call it `path`.
    pub fn from_file(file: File, path: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        Self::new(ModelFile::from_file(file, path), path, options)
    }

    /// The same from bytes that are part of the program.
    pub fn from_static(name: &str, bytes: &'static [u8], options: LoadOptions) -> Result<Self, LoadError> {
        Self::new(Ok(ModelFile::from_static(name, bytes)), Path::new(name), options)
    }

    fn new(file: Result<ModelFile, FileError>, path: &Path, options: LoadOptions) -> Result<Self, LoadError> {
        let inner = file.map_err(LoadCause::from).and_then(|file| Inner::load(file, options));
        inner
            .map(|inner| Self(Arc::new(inner)))
            .map_err(|cause| LoadError { path: path.to_owned(), cause: Box::new(cause) })
    }

    /// The file.
    pub fn file(&self) -> &ModelFile {
        &self.0.file
    }
    /// Metadata and tensor directory.
    pub fn gguf(&self) -> &Gguf {
        &self.0.gguf
    }
    /// The graph.
    pub fn architecture(&self) -> &Architecture {
        &self.0.arch
    }
    /// The weights.
    pub fn weights(&self) -> &WeightTable {
        &self.0.weights
    }
    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }
    /// The chat template, or the plain form where the file has none.
    ///
    /// # Errors
    /// When the file's template is no template. That does not keep the model from anything but chat.
    pub fn chat(&self) -> Result<&ChatTemplate, &ChatError> {
        self.0.chat.as_ref()
    }
    /// How it was loaded.
    pub fn options(&self) -> LoadOptions {
        self.0.options
    }
    pub(crate) fn ops(&self) -> Ops {
        self.0.ops
    }
    /// Whether both compute the same from the same bytes.
    pub(crate) fn same(&self, other: &Model) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.options == other.0.options && self.0.file.same_bytes(&other.0.file))
    }
    /// `general.name`, else the file's name.
    pub fn name(&self) -> String {
        match self.0.gguf.metadata.str("general.name") {
            Ok(Some(name)) if !name.trim().is_empty() => name.to_owned(),
            _ => self.0.file.path().file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
    /// Layers, the head counted as one.
    pub fn layers(&self) -> usize {
        self.0.arch.units.len() - 1
    }
    /// Bytes of matrices that one decoded token reads whole in some of the units.
    pub(crate) fn read_of(&self, units: Range<usize>) -> u64 {
        self.0.arch.matrices_read(units).map(|id| self.0.weights.bytes(id)).sum()
    }
    /// Bytes of weights that one decoded token reads: every matrix once, one row of a table that is only gathered from.
    pub fn weight_bytes_per_token(&self) -> u64 {
        let (arch, weights) = (&self.0.arch, &self.0.weights);
        let row = weights.bytes(arch.embedding) / arch.vocab.max(1) as u64;
        let vectors: usize = arch.vectors.iter().map(|v| v.len * 4).sum();
        row + vectors as u64 + self.read_of(0..arch.units.len())
    }
}

impl Inner {
    fn load(file: ModelFile, options: LoadOptions) -> Result<Self, LoadCause> {
        let isa = match options.isa {
            Some(isa) => isa,
            None => Isa::detect()?,
        };
        let ops = Ops::new(isa).ok_or(LoadCause::NoIsa(isa))?;
        let gguf = Gguf::parse(file.bytes())?;
        let arch = Architecture::from_gguf(&gguf)?;
        file.expect_pieces(true);
        let weights = WeightTable::bind(&arch, &gguf, &file, options.activations, isa)?;
        file.expect_pieces(false);
        let tokenizer = Tokenizer::from_metadata(&gguf.metadata)?;
        let (tokens, rows) = (tokenizer.vocab_size(), arch.vocab);
        if tokens != rows {
            return Err(LoadCause::VocabMismatch { tokens, rows });
        }
        let chat = ChatTemplate::from_metadata(&gguf.metadata, &tokenizer);
        file.check()?;
        Ok(Self { file, gguf, arch, weights, tokenizer, chat, ops, options })
    }
}
