//! One answer on its way from the engine to a client.
//!
//! It waits for its turn, is submitted, and then passes on what the engine says, until it is over, its time is over, or
//! the server stops. Dropping it cancels the request before its next forward pass: that is how a client that leaves
//! frees what it held.

use crate::app::{App, Phase};
use crate::error::{ApiError, ErrorKind};
use crate::metrics::Meter;
use crate::queue::Place;
use futures_util::stream::{self, BoxStream, StreamExt};
use nexaquant_engine::Scored;
use nexaquant_engine::scheduler::{Event, Outcome, Request, Ticket};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::Instant;

/// What comes of an answer.
#[derive(Debug)]
pub enum Piece {
    /// A token and its log-probability; its text follows when it is whole.
    Scored(Box<Scored>),
    /// Text.
    Text(String),
    /// The end.
    Done(Box<Outcome>),
}

/// An answer.
pub struct Answer {
    app: App,
    state: State,
    deadline: Instant,
}

enum State {
    /// For its turn.
    Waiting(Box<(Request, Place, Meter)>),
    /// What is said is kept until it is asked for: at most as many tokens as the context has.
    Running(UnboundedReceiver<Event>, #[allow(dead_code, reason = "held, not read")] Ticket),
    Over,
}

impl Answer {
    /// An answer that has a place in the queue.
    pub fn new(app: &App, request: Request, place: Place) -> Self {
        let meter = app.metrics.meter(&request.model);
        let deadline = Instant::now() + app.options.timeout;
        Self { app: app.clone(), state: State::Waiting(Box::new((request, place, meter))), deadline }
    }

    /// What comes next; `None` after the end.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        if matches!(self.state, State::Over) {
            return Ok(None);
        }
        let (app, deadline) = (self.app.clone(), self.deadline);
        let result = tokio::select! {
            biased;
            result = self.advance() => result,
            () = tokio::time::sleep_until(deadline) => {
                let message = format!("the answer was not over within {:?}", app.options.timeout);
                Err(ApiError::new(ErrorKind::Timeout, message))
            }
            () = app.reaches(Phase::Stopped) => {
                Err(ApiError::new(ErrorKind::Draining, "the server has stopped"))
            }
        };
        if result.is_err() || matches!(result, Ok(Some(Piece::Done(_)))) {
            self.state = State::Over;
        }
        result.inspect_err(|_| self.state = State::Over)
    }

    async fn advance(&mut self) -> Result<Option<Piece>, ApiError> {
        let gone = || ApiError::new(ErrorKind::Internal, "the engine has stopped");
        loop {
            match &mut self.state {
                State::Over => return Ok(None),
                State::Waiting(waiting) => {
                    let turn = waiting.1.turn().await.ok_or_else(gone)?;
                    let State::Waiting(waiting) = std::mem::replace(&mut self.state, State::Over) else {
                        return Ok(None);
                    };
                    let (request, place, mut meter) = *waiting;
                    let (say, said) = unbounded_channel();
                    // Place and turn are free when the engine is done with it, however slowly the client reads. Not the
                    // app: if this were the last to hold it, the engine would end on its own thread.
                    let held = (place, turn);
                    let listener = move |event: Event| {
                        // Both are used, so both are held.
                        let (place, _turn) = &held;
                        if meter.hear(&event) {
                            place.took(meter.since_arrival());
                        }
                        let _ = say.send(event);
                    };
                    let ticket = self.app.engine.submit_to(request, Box::new(listener))?;
                    self.state = State::Running(said, ticket);
                }
                State::Running(said, _) => match said.recv().await {
                    None => return Err(gone()),
                    Some(Event::Begun | Event::Prompt { .. }) => {}
                    Some(Event::Scored(scored)) => return Ok(Some(Piece::Scored(scored))),
                    Some(Event::Text(text)) => return Ok(Some(Piece::Text(text))),
                    Some(Event::Done(outcome)) => return Ok(Some(Piece::Done(outcome))),
                    Some(Event::Failed(error)) => return Err(error.into()),
                },
            }
        }
    }

    /// The whole answer, and the scores of its tokens if they were asked for.
    pub async fn whole(mut self) -> Result<(Outcome, Vec<Scored>), ApiError> {
        let mut scored = Vec::new();
        while let Some(piece) = self.next().await? {
            match piece {
                Piece::Scored(one) => scored.push(*one),
                Piece::Text(_) => {}
                Piece::Done(outcome) => return Ok((*outcome, scored)),
            }
        }
        Err(ApiError::new(ErrorKind::Internal, "an answer without an end"))
    }
}

/// Pieces of several answers as they come, each with its answer's number. An error is the last of its answer.
pub type Pieces = BoxStream<'static, (usize, Result<Piece, ApiError>)>;

/// All answers side by side.
pub fn together(answers: Vec<Answer>) -> Pieces {
    let one = |(index, answer): (usize, Answer)| {
        let step = move |mut answer: Answer| async move {
            match answer.next().await {
                Ok(None) => None,
                Ok(Some(piece)) => Some(((index, Ok(piece)), answer)),
                Err(error) => Some(((index, Err(error)), answer)),
            }
        };
        stream::unfold(answer, step).boxed()
    };
    stream::select_all(answers.into_iter().enumerate().map(one)).boxed()
}

/// Waits for all answers; the first error ends it, and the others with it.
pub async fn all(answers: Vec<Answer>) -> Result<Vec<(Outcome, Vec<Scored>)>, ApiError> {
    futures_util::future::try_join_all(answers.into_iter().map(Answer::whole)).await
}
