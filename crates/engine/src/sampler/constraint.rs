//! What an answer must follow, token by token.

use super::SamplingError;
use std::fmt::Debug;

/// A grammar, a schema, or anything else that says which tokens may come next. What it knows of text and tokens is its
/// own; an answer only asks before each token and tells afterwards.
pub trait Constraint: Debug + Send {
    /// Sets the logits of tokens that may not come next to negative infinity. `logits`: one for each token.
    ///
    /// # Errors
    /// [`SamplingError::Constraint`] when it cannot say.
    fn forbid(&mut self, logits: &mut [f32]) -> Result<(), SamplingError>;

    /// Takes the token that came.
    ///
    /// # Errors
    /// [`SamplingError::Constraint`] when that token may not come.
    fn accept(&mut self, token: u32) -> Result<(), SamplingError>;

    /// Whether nothing may follow any more.
    fn is_over(&self) -> bool;

    /// One more of the same, at the same place.
    fn boxed(&self) -> Box<dyn Constraint>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.boxed()
    }
}
