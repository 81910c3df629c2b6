//! One answer as a state machine.
//!
//! What the answer is made of is one sequence: the prompt and the tokens sampled so far. A step compares it with what the
//! session holds, computes the next chunk of what is missing and, if nothing is missing then, samples. So the first
//! steps read the prompt, each later one evaluates one token, and a session that lost its cache between two steps is
//! brought back by the same rule. Where a pass was made with guesses at the next tokens, the steps after it find their logits in the
//! session for as long as the guesses come true, and make no pass.
//!
//! [`Answer::step`] makes the pass itself. Where answers share one, whoever makes it asks each for its chunk and tells it what
//! came of that.

use super::lookup::Lookup;
use super::{Finish, GenerateError, GenerateOptions, Generation, Stats};
use crate::loader::Model;
use crate::opencl::MOST_BEST;
use crate::sampler::{Constraint, LogProbs, Sampler, StopMatcher, Wanted, log_probs};
use crate::session::{Best, EvalError, Session};
use crate::threads::Pool;
use crate::tokenizer::StreamDecoder;
use std::ops::Range;
use std::time::{Duration, Instant};

/// One answer in the making: the prompt in chunks, then token by token. Owns no session; each step is given the one it
/// was made for.
#[derive(Debug)]
pub struct Answer {
    /// The prompt and every token sampled.
    sequence: Vec<u32>,
    /// How much of it is the prompt.
    prompt: usize,
    /// How much of it the session held when last seen.
    computed: usize,
    /// Most tokens that were asked for.
    limit: usize,
    /// Positions of the session.
    context: usize,
    ignore_end: bool,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    pooled: Option<Pooled>,
    /// Where tokens are guessed ahead.
    lookup: Option<Lookup>,
    log_probs: Option<usize>,
    /// The last token, if its probability is wanted and nobody has asked yet.
    scored: Option<Scored>,
    decoder: StreamDecoder,
    stops: StopMatcher,
    text: String,
    stats: Stats,
    /// Why nothing more is computed.
    end: Option<Finish>,
    /// Whether a step has said so, which also gave out the text held back.
    told: bool,
}

/// How the hidden states of a prompt's tokens become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The last one's.
    Last,
}

/// The vector in the making.
#[derive(Debug)]
struct Pooled {
    how: Pooling,
    /// Sum over the tokens so far, or the last one's.
    sum: Vec<f64>,
    /// How many tokens of the prompt are in it.
    tokens: usize,
}

impl Pooled {
    /// Takes a chunk of the prompt, which the session has just computed. A session that lost its cache starts over.
    fn take(&mut self, chunk: &Range<usize>, mut hidden: impl FnMut(usize) -> Vec<f32>) {
        if chunk.start == 0 {
            (self.sum, self.tokens) = (Vec::new(), 0);
        }
        for row in 0..chunk.len() {
            let hidden = hidden(row);
            if self.sum.is_empty() || self.how == Pooling::Last {
                self.sum = hidden.into_iter().map(f64::from).collect();
            } else {
                self.sum.iter_mut().zip(hidden).for_each(|(sum, x)| *sum += f64::from(x));
            }
        }
        self.tokens += chunk.len();
    }

    /// Of length 1.
    fn vector(self) -> Vec<f32> {
        let length = self.sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
        self.sum.into_iter().map(|x| (x / length) as f32).collect()
    }
}

/// A token and how probable it was under the model's own distribution, whatever sampling and constraints made of that.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its log-probability, and the most probable tokens with theirs.
    pub log_probs: LogProbs,
}

/// What a step brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A chunk of the prompt was computed.
    Prompt {
        /// Tokens the session holds now.
        done: usize,
        /// Tokens it must hold before the next one can be sampled.
        total: usize,
    },
    /// A token came. Its text is whole UTF-8, and empty while characters or stop texts are undecided.
    Token(String),
    /// It is over. The text is what was held back until now.
    Done(Finish, String),
}

/// What a pass brought an answer.
pub(crate) enum Output<'a> {
    /// More of the prompt is to come.
    None,
    /// Logits to sample from, which sampling changes.
    Logits(&'a mut [f32]),
    /// The next token, found by what a device has told of them.
    Token(u32),
}

impl Answer {
    /// An answer to `prompt` (token ids) in `session`. Nothing is computed or forgotten yet.
    ///
    /// # Errors
    /// An empty prompt, one that does not fit the context, ids outside the vocabulary, options out of range.
    pub fn new(session: &Session, prompt: Vec<u32>, options: GenerateOptions) -> Result<Self, GenerateError> {
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        let (model, context) = (session.model(), session.context());
        let (needed, arch) = (prompt.len(), model.architecture());
        if needed > context {
            let model = arch.hparams.context_length;
            return Err(EvalError::ContextFull { needed, context, model }.into());
        }
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= arch.vocab) {
            return Err(EvalError::BadToken { token, vocab: arch.vocab }.into());
        }
        let mut sampler = Sampler::new(options.sampling, model.tokenizer().vocab_size(), context)?;
        for &token in &prompt {
            sampler.accept(token);
        }
        Ok(Self {
            computed: shared(session, &prompt),
            prompt: prompt.len(),
            sequence: prompt,
            limit: options.max_tokens.unwrap_or(usize::MAX),
            context,
            ignore_end: options.ignore_end,
            sampler,
            constraint: options.constraint,
            pooled: options.pooling.map(|how| Pooled { how, sum: Vec::new(), tokens: 0 }),
            // Where there is no room for their logits nobody need look.
            lookup: (options.guesses > 0 && session.outputs() > 1).then(|| Lookup::new(options.guesses)),
            log_probs: options.log_probs,
            scored: None,
            decoder: if options.continues_prompt {
                StreamDecoder::continuing()
            } else {
                StreamDecoder::at_start()
            },
            stops: StopMatcher::new(options.stop)?,
            text: String::new(),
            stats: Stats { weight_bytes_per_token: model.weight_bytes_per_token(), ..Stats::default() },
            end: None,
            told: false,
        })
    }

    /// Makes at most one forward pass, and samples if that brought logits.
    ///
    /// A token that ends the answer by number, stop text or context still comes as [`Progress::Token`]; the step after
    /// it computes nothing and says [`Progress::Done`], as does every further one.
    ///
    /// # Errors
    /// A pass that fails, which leaves the answer as it was, so that the step may be tried again; logits that are no
    /// numbers.
    pub fn step(&mut self, session: &mut Session, pool: &mut Pool) -> Result<Progress, GenerateError> {
        if let Some(finish) = self.end {
            return Ok(self.done(finish));
        }
        let (start, model) = (Instant::now(), session.model().clone());
        if session.tokens().starts_with(&self.sequence)
            && let Some(logits) = session.take_logits(self.sequence.len() - 1)
        {
            self.computed = self.sequence.len();
            self.stats.steps += 1;
            let progress = self.advance(&model, Output::Logits(logits));
            self.forget_guesses(session);
            return progress;
        }
        let chunk = self.chunk(session, session.batch());
        if let Some(guessed) = self.guessed(session, &chunk) {
            session.eval_ahead(pool, &guessed)?;
            self.computed(&chunk, start.elapsed(), |_| Vec::new());
            self.note_pass(guessed.len(), start.elapsed());
            let logits = session.take_logits(chunk.start).unwrap_or(&mut []);
            let progress = self.advance(&model, Output::Logits(logits));
            self.forget_guesses(session);
            return progress;
        }
        let (tokens, last) = (self.tokens(&chunk), self.is_last(&chunk));
        // Where nothing needs all logits, a device may find what is needed.
        let wanted = match (&self.log_probs, &self.constraint) {
            (None, None) if last && self.limit > 0 => self.sampler.wanted(MOST_BEST),
            _ => Wanted::All,
        };
        let mut best = session.eval_best(pool, tokens, wanted)?;
        match best {
            Some(_) => {}
            None if last => drop(session.eval(pool, tokens)?),
            None => session.extend(pool, tokens)?,
        }
        self.computed(&chunk, start.elapsed(), |row| session.hidden(row));
        if self.sampled() > 0 && chunk.len() == 1 {
            self.note_pass(1, start.elapsed());
        }
        let sampling = Instant::now();
        if let Some(Best::Few(few)) = &mut best {
            best = self.sampler.sample_best(few)?.map(Best::Token);
            if best.is_none() {
                session.bring_logits()?;
            }
            self.stats.generate_time += sampling.elapsed();
        }
        let output = match best {
            Some(Best::Token(token)) => Output::Token(token),
            _ if last => Output::Logits(session.logits(0)),
            _ => Output::None,
        };
        self.advance(&model, output)
    }

    /// The last token and guesses at those after it, if that is all that is missing and some are worth it.
    fn guessed(&mut self, session: &Session, chunk: &Range<usize>) -> Option<Vec<u32>> {
        let total = self.sequence.len();
        if self.sampled() == 0 || *chunk != (total - 1..total) {
            return None;
        }
        // Neither beyond the answer nor beyond the context, and with logits for all of them.
        let left = self.limit.saturating_sub(self.sampled() + 1);
        let room = left.min(session.free().saturating_sub(1)).min(session.outputs().saturating_sub(1));
        let guess = self.lookup.as_mut()?.guess(&self.sequence, room);
        (!guess.is_empty()).then(|| [&self.sequence[total - 1..], &guess].concat())
    }

    /// Has the session forget guesses that an answer which is over has not come to.
    fn forget_guesses(&self, session: &mut Session) {
        if self.end.is_some() {
            session.truncate(shared(session, &self.sequence));
        }
    }

    /// Makes every guess worth a pass, whatever was measured.
    #[cfg(test)]
    pub(super) fn guess_always(&mut self) {
        if let Some(lookup) = &mut self.lookup {
            lookup.always();
        }
    }

    /// Notes how long a pass took that began with the last token.
    fn note_pass(&mut self, tokens: usize, took: Duration) {
        if let Some(lookup) = &mut self.lookup {
            lookup.record(tokens, took);
        }
    }

    /// How many tokens the session must compute before the next one can be sampled; at least the last one of the sequence,
    /// even if the session has it, for its logits.
    pub(crate) fn missing(&self, session: &Session) -> usize {
        let total = self.sequence.len();
        total - shared(session, &self.sequence).min(total - 1)
    }

    /// What the session must compute next, at most `most` tokens of it. What it holds beyond that is forgotten.
    pub(crate) fn chunk(&mut self, session: &mut Session, most: usize) -> Range<usize> {
        let total = self.sequence.len();
        let kept = total - self.missing(session);
        if session.tokens().len() > kept {
            session.truncate(kept);
        }
        let kept = session.tokens().len();
        self.computed = kept;
        kept..total.min(kept + most.max(1))
    }

    /// The beginning of the sequence that may come from elsewhere: nothing where every token's hidden state is wanted.
    pub(crate) fn beginning(&self) -> &[u32] {
        if self.pooled.is_some() { &[] } else { &self.sequence[..self.sequence.len() - 1] }
    }

    /// The tokens of a chunk.
    pub(crate) fn tokens(&self, chunk: &Range<usize>) -> &[u32] {
        &self.sequence[chunk.clone()]
    }

    /// Whether a token is sampled from what comes of the chunk.
    pub(crate) fn is_last(&self, chunk: &Range<usize>) -> bool {
        chunk.end == self.sequence.len()
    }

    /// Notes that the session has computed a chunk, in a pass that took so long. `hidden` knows what became of each of
    /// its tokens.
    pub(crate) fn computed(
        &mut self,
        chunk: &Range<usize>,
        took: Duration,
        hidden: impl FnMut(usize) -> Vec<f32>,
    ) {
        self.computed = chunk.end;
        if self.sampled() > 0 {
            self.stats.generate_time += took;
            self.stats.steps += 1;
            self.stats.passes += 1;
            return;
        }
        self.stats.prompt_time += took;
        if self.stats.prompt_tokens == 0 {
            self.stats.cached_tokens = chunk.start;
        }
        self.stats.prompt_tokens += chunk.len();
        if let Some(pooled) = &mut self.pooled {
            pooled.take(chunk, hidden);
        }
    }

    /// Goes on with what a chunk that was computed has brought.
    pub(crate) fn advance(&mut self, model: &Model, output: Output<'_>) -> Result<Progress, GenerateError> {
        if matches!(output, Output::None) {
            return Ok(Progress::Prompt { done: self.computed, total: self.sequence.len() });
        }
        if self.limit == 0 {
            return Ok(self.done(Finish::Length));
        }
        let start = Instant::now();
        let token = match output {
            Output::Logits(logits) => self.sample(logits)?,
            Output::Token(token) => token,
            Output::None => unreachable!("returned above"),
        };
        let progress = self.take(token, model);
        self.stats.generate_time += start.elapsed();
        Ok(progress)
    }

    fn sample(&mut self, logits: &mut [f32]) -> Result<u32, GenerateError> {
        let raw = self.log_probs.map(|top| (top, logits.to_vec()));
        if let Some(constraint) = &mut self.constraint {
            constraint.forbid(logits)?;
        }
        let token = self.sampler.sample(logits)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        if let Some((top, raw)) = raw {
            self.scored = Some(Scored { token, log_probs: log_probs(&raw, token, top)? });
        }
        Ok(token)
    }

    /// How probable the last token was, if [`GenerateOptions::log_probs`] asked for it; once for each token.
    pub fn take_scored(&mut self) -> Option<Scored> {
        self.scored.take()
    }

    /// What there is so far: [`Finish::Cancelled`] unless a step has said [`Progress::Done`].
    pub fn finish(mut self) -> Generation {
        let tokens = self.sequence.split_off(self.prompt);
        self.stats.tokens = tokens.len();
        Generation {
            tokens,
            text: self.text,
            finish: self.end.filter(|_| self.told).unwrap_or(Finish::Cancelled),
            stats: self.stats,
            seed: self.sampler.seed(),
            embedding: self.pooled.filter(|pooled| pooled.tokens > 0).map(Pooled::vector),
        }
    }

    /// Tokens sampled so far.
    pub(crate) fn sampled(&self) -> usize {
        self.sequence.len() - self.prompt
    }

    /// Forward passes still to come in a session of this [batch](Session::batch), at most: the model may end sooner.
    /// 0: the next step computes nothing.
    pub fn passes_left(&self, batch: usize) -> u32 {
        if self.end.is_some() {
            return 0;
        }
        let missing = (self.sequence.len() - self.computed).max(1);
        // The last token is not evaluated, so it needs no position.
        let most = self.limit.min(self.context - self.prompt + 1);
        let later = most.saturating_sub(self.sequence.len() - self.prompt + 1);
        u32::try_from(missing.div_ceil(batch.max(1)).saturating_add(later)).unwrap_or(u32::MAX)
    }

    /// Makes a sampled token part of the answer.
    fn take(&mut self, token: u32, model: &Model) -> Progress {
        let tokenizer = model.tokenizer();
        self.sampler.accept(token);
        self.sequence.push(token);
        if !self.ignore_end && tokenizer.end_of_turn().contains(&token) {
            return self.done(Finish::EndOfTurn);
        }
        let piece = self.decoder.push(tokenizer, token);
        let stopped = self.stops.push(&piece);
        self.text.push_str(&stopped.text);
        self.end = if stopped.stop.is_some() {
            Some(Finish::Stop)
        } else if self.constraint.as_ref().is_some_and(|constraint| constraint.is_over()) {
            Some(Finish::EndOfTurn)
        } else if self.sequence.len() - self.prompt >= self.limit {
            Some(Finish::Length)
        } else if self.sequence.len() > self.context {
            Some(Finish::ContextFull)
        } else {
            None
        };
        Progress::Token(stopped.text)
    }

    /// Ends the answer. What the decoder and the stop matcher still hold back is part of it after all, unless a stop
    /// text ended it.
    fn done(&mut self, finish: Finish) -> Progress {
        self.end = Some(finish);
        let mut rest = String::new();
        if !self.told && finish != Finish::Stop {
            let last = self.stops.push(&self.decoder.finish());
            rest = last.text;
            if last.stop.is_none() {
                rest.push_str(&self.stops.finish());
            }
        }
        self.told = true;
        self.text.push_str(&rest);
        Progress::Done(finish, rest)
    }
}

/// How many tokens the session's text and `sequence` begin with alike.
fn shared(session: &Session, sequence: &[u32]) -> usize {
    session.tokens().iter().zip(sequence).take_while(|(a, b)| a == b).count()
}
