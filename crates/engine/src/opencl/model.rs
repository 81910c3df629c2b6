//! A model in a device's form: which rows of which matrices each part holds, where they lie in it, and the bytes.
//!
//! Parts are packed into the device's form ([`super::formats`]) once, when the model is added, into host memory that the device
//! copies from without help. From then on bringing one in is one copy.

use super::compile::OnDevice;
use super::formats::{Stored, grain_code};
use super::gpu::Gpu;
use super::source::Traits;
use super::tables::known;
use crate::loader::Model;
use crate::m3::Part;
use crate::model::op::{MatrixId, VectorId};
use nexaquant_kernels::KvType;
use nexaquant_opencl::{Error, Kernel, Pinned};
use nexaquant_residency::Reason;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Words of the address table that a part begins at a multiple of: so many are written at once.
pub(crate) const WORDS: usize = 16;
/// Threads that pack parts at once: memory has no more to give.
const MOST_PACKERS: usize = 8;

/// Rows of a matrix in a part: a matrix of its own to the device.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub matrix: MatrixId,
    pub rows: Range<usize>,
    /// First byte in the part.
    at: usize,
    /// Its word in the table of addresses.
    pub word: u32,
}

/// Where the small things of a model lie in the arena.
#[derive(Debug)]
pub(crate) struct Fixed {
    /// Lines of the vectors.
    pub vectors: Vec<u32>,
    /// Line of the table of addresses.
    pub lines: u32,
}

/// A model in a device's form.
#[derive(Debug)]
pub(crate) struct DeviceModel {
    gpu: Gpu,
    pub model: Model,
    /// The first unit that it computes; 0: all of them.
    pub first: usize,
    pub(super) matrices: Vec<OnDevice>,
    pub parts: Arc<[Part]>,
    /// Of each part.
    pub pieces: Vec<Vec<Piece>>,
    /// The part that holds the whole embedding table, where that stays.
    pub table: Option<usize>,
    /// Set when it gets its place.
    pub fixed: OnceLock<Fixed>,
    /// For each type of cache in use: steps of one token, and of several.
    kernels: Mutex<HashMap<(u32, bool), Shared>>,
    /// Parts in host memory, where they are kept.
    images: Mutex<Vec<Option<Arc<Pinned>>>>,
    pub keep: bool,
    /// Weights are zeros, for plans; nothing is read for them.
    pub zeros: bool,
}

/// A kernel that launches take turns with.
type Shared = Arc<Mutex<Kernel>>;

/// The number of a cache's type in the kernels.
fn kv_code(ty: KvType) -> u32 {
    match ty {
        KvType::F32 => 0,
        KvType::F16 => 1,
        KvType::Q8_0 => 2,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceModel {
    /// Sees what the device makes of the parts, of the units from `first` on. `keep`: parts come and go, so that they stay in host
    /// memory.
    pub fn new(gpu: &Gpu, model: &Model, first: usize, mut parts: Vec<Part>, keep: bool) -> Self {
        let (weights, file) = (model.weights(), model.file());
        let matrices: Vec<OnDevice> = (0..model.architecture().matrices.len())
            .map(|i| {
                let (format, rows, cols, scale, bytes) = weights.raw(MatrixId(i), file);
                let Some(stored) = Stored::choose(format, bytes, cols) else {
                    unreachable!("every format of the registry has a stored form")
                };
                let grain = weights.kernel(MatrixId(i)).grain();
                OnDevice { stored, rows, cols, scale, grain }
            })
            .collect();
        let mut word = 0;
        let mut pieces = Vec::with_capacity(parts.len());
        for part in &mut parts {
            let mut at = 0;
            let mut of = Vec::new();
            for (matrix, rows) in part.rows() {
                let m = &matrices[matrix.0];
                let bytes = m.stored.planes(rows.len(), m.cols).last().copied().unwrap_or(0);
                of.push(Piece { matrix, rows, at, word });
                at += bytes.next_multiple_of(256);
                word += 1;
            }
            part.bytes = at.max(256) as u64;
            word = word.next_multiple_of(WORDS as u32);
            pieces.push(of);
        }
        // Parts of nearly the size of the largest take as much: whoever goes leaves a place for whoever comes.
        let largest = parts.iter().map(|part| part.bytes).max().unwrap_or(0);
        for part in parts.iter_mut().filter(|part| keep && part.bytes >= largest - largest / 8) {
            part.bytes = largest;
        }
        let embedding = model.architecture().embedding;
        let all = 0..matrices[embedding.0].rows;
        let whole = |of: &Vec<Piece>| of.iter().any(|p| p.matrix == embedding && p.rows == all);
        let table = if keep { None } else { pieces.iter().position(whole) };
        let images = Mutex::new(vec![None; parts.len()]);
        let (model, parts, fixed) = (model.clone(), parts.into(), OnceLock::new());
        let kernels = Mutex::new(HashMap::new());
        let (gpu, zeros) = (gpu.clone(), false);
        Self { gpu, model, first, matrices, parts, pieces, table, fixed, kernels, images, keep, zeros }
    }

    /// The kernel of steps of one token (`single`) or of several, compiled when it is first asked for. Its arguments are one
    /// launch's at a time.
    pub fn kernel(&self, kv: KvType, single: bool) -> Result<Shared, Error> {
        let mut kernels = lock(&self.kernels);
        if let Some(kernel) = kernels.get(&(kv_code(kv), single)) {
            return Ok(Arc::clone(kernel));
        }
        let grains = self.matrices.iter().filter_map(|m| m.grain);
        let traits = Traits {
            codes: self.matrices.iter().map(OnDevice::code).collect(),
            grains: grains.fold(0, |all, grain| all | 1 << grain_code(Some(grain))),
            kv: kv_code(kv),
            head_dim: self.model.architecture().hparams.head_dim,
            known: if single { known(&self.gpu, self, kv) } else { Vec::new() },
            groups: self.gpu.groups,
        };
        let kernel = Arc::new(Mutex::new(self.gpu.kernel(&traits, single)?));
        kernels.insert((kv_code(kv), single), Arc::clone(&kernel));
        Ok(kernel)
    }

    /// Bytes of everything.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum::<u64>() + self.fixed_bytes() as u64
    }

    /// Bytes of the vectors and the table of addresses, as [`DeviceModel::place`] lays them out.
    pub fn fixed_bytes(&self) -> usize {
        let weights = self.model.weights();
        let vectors = self.model.architecture().vectors.len();
        let bytes = |i| (weights.vector(VectorId(i)).len() * 4).next_multiple_of(256);
        self.table_bytes() + (0..vectors).map(bytes).sum::<usize>()
    }

    fn table_bytes(&self) -> usize {
        let words: usize = self.pieces.iter().map(|pieces| pieces.len().next_multiple_of(WORDS)).sum();
        (words * 4).next_multiple_of(256)
    }

    /// Gives the vectors and the table their place, and returns what to write there.
    pub fn place(&self, line: u32) -> Vec<u8> {
        let weights = self.model.weights();
        let mut bytes = vec![0; self.table_bytes()];
        let vectors = (0..self.model.architecture().vectors.len())
            .map(|i| {
                let at = line + (bytes.len() / 16) as u32;
                bytes.extend(weights.vector(VectorId(i)).iter().flat_map(|x| x.to_le_bytes()));
                bytes.resize(bytes.len().next_multiple_of(256), 0);
                at
            })
            .collect();
        let _ = self.fixed.set(Fixed { vectors, lines: line });
        bytes
    }

    /// The words of a part that lies at `line`, and the first one's place in the table.
    pub fn words(&self, part: usize, line: u32) -> (usize, Vec<u8>) {
        let pieces = &self.pieces[part];
        let first = pieces.first().map_or(0, |piece| piece.word as usize);
        let mut bytes: Vec<u8> =
            pieces.iter().flat_map(|piece| (line + (piece.at / 16) as u32).to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(4 * WORDS), 0);
        (first, bytes)
    }

    /// Packs all parts that are kept, several at once. The first that cannot be, and why.
    pub fn pack(&self) -> Result<(), (usize, Reason)> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_PACKERS);
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        std::thread::scope(|scope| {
            let work = || {
                while lock(&failure).is_none() {
                    let part = next.fetch_add(1, Relaxed);
                    if part >= self.parts.len() {
                        return;
                    }
                    if let Err(reason) = self.image(part) {
                        lock(&failure).get_or_insert((part, reason));
                    }
                }
            };
            let others = (1..threads.min(self.parts.len())).map(|_| scope.spawn(work)).collect::<Vec<_>>();
            work();
            drop(others);
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// The bytes of a part, in host memory that the device copies from.
    pub fn image(&self, part: usize) -> Result<Arc<Pinned>, Reason> {
        if let Some(image) = &lock(&self.images)[part] {
            return Ok(Arc::clone(image));
        }
        let (weights, file) = (self.model.weights(), self.model.file());
        let mut image = self.gpu.device.pinned(self.parts[part].bytes as usize)?;
        let bytes = image.bytes_mut();
        bytes.fill(0);
        for piece in self.pieces[part].iter().filter(|_| !self.zeros) {
            let (format, _, cols, _, from) = weights.raw(piece.matrix, file);
            let (m, row) = (&self.matrices[piece.matrix.0], weights.row_bytes(piece.matrix));
            let from = &from[piece.rows.start * row..piece.rows.end * row];
            let n = m.stored.planes(piece.rows.len(), cols).last().copied().unwrap_or(0);
            m.stored.pack(format, from, piece.rows.len(), cols, &mut bytes[piece.at..piece.at + n]);
        }
        // A truncated file shows up as zeros.
        file.check()?;
        let image = Arc::new(image);
        if self.keep {
            lock(&self.images)[part] = Some(Arc::clone(&image));
        }
        Ok(image)
    }
}
