//! From what is asked, whatever the API's shape, to answers with places in the queue.

use crate::answer::Answer;
use crate::app::{App, Phase};
use crate::error::{ApiError, ErrorKind};
use nexaquant_engine::scheduler::Request;
use nexaquant_engine::{GenerateOptions, Model};
use std::sync::atomic::Ordering::Relaxed;

/// What is asked of a model.
pub struct Ask {
    /// Its name.
    pub name: String,
    /// The model of that name.
    pub model: Model,
    /// Prompts, each of which is answered `n` times.
    pub prompts: Vec<Vec<u32>>,
    /// Answers to each prompt.
    pub n: u32,
    /// What bounds them.
    pub generate: GenerateOptions,
}

impl Ask {
    /// Takes places for all answers.
    ///
    /// # Errors
    /// A full queue, a server that stops.
    pub fn submit(self, app: &App) -> Result<Vec<Answer>, ApiError> {
        if app.phase() > Phase::Serving {
            let message = "the server is about to stop and takes no more requests";
            return Err(ApiError { retry_after: Some(5), ..ApiError::new(ErrorKind::Draining, message) });
        }
        let places = app.queue.enter(self.prompts.len() * self.n as usize).inspect_err(|_| {
            app.metrics.rejected.fetch_add(1, Relaxed);
        })?;
        let session = app.session(&self.model);
        let each = self.prompts.iter().flat_map(|prompt| (0..u64::from(self.n)).map(move |i| (prompt, i)));
        let answers = each.zip(places).map(|((prompt, i), place)| {
            let mut generate = self.generate.clone();
            // Different answers to the same question, and the same ones next time.
            generate.sampling.seed = generate.sampling.seed.map(|seed| seed.wrapping_add(i));
            let request = Request { model: self.name.clone(), prompt: prompt.clone(), generate, session };
            Answer::new(app, request, place)
        });
        Ok(answers.collect())
    }
}
