//! The tensors of a file, claimed one by one: what nobody claims, or what has another shape, fails the load.

use super::ModelError;
use super::op::{MatrixId, VectorId};
use super::spec::Presence;
use nexaquant_gguf::{Gguf, TensorInfo};

/// A weight matrix of the graph: `[rows, cols]`, outputs by inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    /// Index in [`Gguf::tensors`].
    pub tensor: usize,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

/// A small tensor kept as f32: a norm, a bias, a scale, rope factors.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector {
    /// Index in [`Gguf::tensors`].
    pub tensor: usize,
    /// Values.
    pub len: usize,
}

/// What a tensor was claimed as.
#[derive(Clone, Copy, Debug)]
enum Claim {
    Matrix(MatrixId),
    Vector(VectorId),
}

/// The ledger of claims during a build.
pub(super) struct Claims<'a> {
    gguf: &'a Gguf,
    claimed: Vec<Option<Claim>>,
    pub matrices: Vec<Matrix>,
    pub vectors: Vec<Vector>,
}

impl<'a> Claims<'a> {
    pub fn new(gguf: &'a Gguf) -> Self {
        Self { gguf, claimed: vec![None; gguf.tensors.len()], matrices: Vec::new(), vectors: Vec::new() }
    }

    fn find(&self, name: &str) -> Option<(usize, &'a TensorInfo)> {
        let info = self.gguf.tensor(name)?;
        // Tensors lie in one vector, so the distance from its start is the index.
        let index = self.gguf.tensors.iter().position(|t| std::ptr::eq(t, info))?;
        Some((index, info))
    }

    fn shape(info: &TensorInfo, wanted: &[usize]) -> Result<(), ModelError> {
        let mut found: Vec<u64> = info.dims.clone();
        while found.len() > wanted.len() && found.last() == Some(&1) {
            found.pop();
        }
        if found.len() == wanted.len() && found.iter().zip(wanted).all(|(&f, &w)| f == w as u64) {
            return Ok(());
        }
        let wanted = wanted.to_vec();
        Err(ModelError::WrongShape { tensor: info.name.clone(), found: info.dims.clone(), wanted })
    }

    /// A matrix of `rows` outputs and `cols` inputs that must be there. Claiming it twice gives the same id.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<MatrixId, ModelError> {
        self.matrix_if(Presence::Required, name, rows, cols)?
            .ok_or_else(|| ModelError::MissingTensor { tensor: name.to_owned() })
    }

    /// The same, when it may be missing.
    pub fn matrix_if(
        &mut self,
        presence: Presence,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Option<MatrixId>, ModelError> {
        let Some((tensor, info)) = self.look(presence, name)? else { return Ok(None) };
        Self::shape(info, &[cols, rows])?;
        if let Some(Claim::Matrix(id)) = self.claimed[tensor] {
            return Ok(Some(id));
        }
        let id = MatrixId(self.matrices.len());
        self.matrices.push(Matrix { tensor, rows, cols });
        self.claimed[tensor] = Some(Claim::Matrix(id));
        Ok(Some(id))
    }

    /// A vector that must be there.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<VectorId, ModelError> {
        self.vector_if(Presence::Required, name, len)?
            .ok_or_else(|| ModelError::MissingTensor { tensor: name.to_owned() })
    }

    /// A vector that may be missing.
    pub fn vector_if(
        &mut self,
        presence: Presence,
        name: &str,
        len: usize,
    ) -> Result<Option<VectorId>, ModelError> {
        let Some((tensor, info)) = self.look(presence, name)? else { return Ok(None) };
        Self::shape(info, &[len])?;
        if let Some(Claim::Vector(id)) = self.claimed[tensor] {
            return Ok(Some(id));
        }
        let id = VectorId(self.vectors.len());
        self.vectors.push(Vector { tensor, len });
        self.claimed[tensor] = Some(Claim::Vector(id));
        Ok(Some(id))
    }

    fn look(&self, presence: Presence, name: &str) -> Result<Option<(usize, &'a TensorInfo)>, ModelError> {
        match (presence, self.find(name)) {
            (Presence::Never, _) | (Presence::Optional, None) => Ok(None),
            (Presence::Required, None) => Err(ModelError::MissingTensor { tensor: name.to_owned() }),
            (_, found) => Ok(found),
        }
    }

    /// Fails when a tensor of the file has not been claimed.
    pub fn finish(self, arch: &str) -> Result<(Vec<Matrix>, Vec<Vector>), ModelError> {
        let unclaimed = |i: usize| self.claimed[i].is_none();
        let mut left = (0..self.claimed.len()).filter(|&i| unclaimed(i));
        if let Some(first) = left.next() {
            return Err(ModelError::UnclaimedTensor {
                tensor: self.gguf.tensors[first].name.clone(),
                others: left.count(),
                arch: arch.to_owned(),
            });
        }
        Ok((self.matrices, self.vectors))
    }
}
