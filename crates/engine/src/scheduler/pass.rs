//! One forward pass for several requests of one model, and what becomes of each of them.

use super::job::{Over, caught};
use super::run::Scheduler;
use super::{Moved, RequestError};
use crate::decide;
use crate::generate::{GenerateError, Output};
use crate::session::{EvalError, Member, Session};
use std::ops::Range;
use std::time::Instant;

/// A request in a pass: where it is among the jobs, and what it computes of its sequence.
struct Part {
    at: usize,
    chunk: Range<usize>,
}

impl Scheduler {
    /// Makes one pass for the jobs `at`, which are for one model and can share passes: for all of them, or for as many as
    /// there is room for. Returns those that are over then.
    pub(super) fn pass_together(&mut self, mut at: Vec<usize>) -> Vec<(usize, Over)> {
        // Making room is part of the pass: what was on its way may arrive then.
        let (start, before) = (Instant::now(), Moved::now(self.home.memory()));
        let mut over = Vec::new();
        for &at in &at {
            self.begin_alike(at);
        }
        let rows = loop {
            let rows = self.rows(&at);
            self.give_up_for(&at, &rows);
            let Err(error) = self.fit(&at, rows.iter().sum()) else { break rows };
            match at[..] {
                _ if lacks_room(&error) && self.cache.clear() => {}
                [_, _, ..] => at.truncate(at.len() / 2),
                [only] if lacks_room(&error) && self.preempt(only) => {}
                [only] => return vec![(only, Err(error))],
                [] => return over,
            }
            at.retain(|&at| !self.jobs[at].stalled);
        };
        let mut parts = Vec::with_capacity(at.len());
        for (at, rows) in at.into_iter().zip(rows).filter(|(_, rows)| *rows > 0) {
            match self.reserve(at, rows) {
                Ok(Some(chunk)) => parts.push(Part { at, chunk }),
                Ok(None) => {}
                Err(error) => over.push((at, Err(error))),
            }
        }
        // Some have given their room to others meanwhile.
        parts.retain(|part| !self.jobs[part.at].stalled);
        self.make(&parts, start, &before, &mut over);
        over
    }

    /// Lets a job that has nothing yet have what others have computed of the beginning of its sequence, those that are over or
    /// those that run.
    fn begin_alike(&mut self, at: usize) {
        let job = &self.jobs[at];
        if !job.session.tokens().is_empty() {
            return;
        }
        let (beginning, model) = (job.answer.beginning(), job.model);
        let others = self.jobs.iter().filter(|other| other.model == model);
        let lengths = others.map(|other| (job.session.could_have_of(&other.session, beginning), other));
        let running = lengths.max_by_key(|(len, _)| *len).filter(|(len, _)| *len > 0);
        let running = running.and_then(|(len, other)| Some((len, other.session.prefix()?)));
        let seat = self.seats.iter().find(|seated| seated.model == model).map(|seated| &seated.seat);
        let kept = seat.and_then(|seat| self.cache.longest(seat, &job.session, beginning));
        if let Some((len, prefix)) = [running, kept].into_iter().flatten().max_by_key(|(len, _)| *len) {
            self.jobs[at].session.adopt(&prefix, len);
        }
    }

    /// What is kept of requests that are over goes before any weights have to, for this pass of the jobs `at`.
    fn give_up_for(&mut self, at: &[usize], rows: &[usize]) {
        let Some(memory) = self.home.memory().filter(|_| !self.cache.is_empty()) else { return };
        let Some(seated) = at.first().and_then(|&at| self.seated(self.jobs[at].model)) else { return };
        let Some(placed) = seated.seat.placed().cloned() else { return };
        let caches = at.iter().zip(rows).map(|(&at, rows)| self.jobs[at].session.growth(*rows));
        let more = caches.sum::<u64>() + seated.buffers.missing(memory.budget());
        while memory.lacks(&placed, more) > 0 && self.cache.give_up() {}
    }

    /// How many tokens each of the jobs `at` computes.
    fn rows(&self, at: &[usize]) -> Vec<usize> {
        let jobs = || at.iter().map(|&at| &self.jobs[at]);
        let Some(seated) = jobs().next().and_then(|job| self.seated(job.model)) else { return Vec::new() };
        let wanted = jobs().map(|job| job.answer.missing(&job.session).min(job.session.batch()));
        decide::share(&wanted.collect::<Vec<_>>(), seated.room.rows(at.len()))
    }

    /// Makes the buffers fit a pass of so many rows for the jobs `at`.
    fn fit(&mut self, at: &[usize], rows: usize) -> Result<(), RequestError> {
        let Self { jobs, seats, pool, .. } = self;
        let sessions: Vec<&Session> = at.iter().map(|&at| &jobs[at].session).collect();
        let Some(model) = at.first().map(|&at| jobs[at].model) else { return Ok(()) };
        let Some(seated) = seats.iter_mut().find(|seated| seated.model == model) else { return Ok(()) };
        let done = seated.buffers.fit(&sessions, pool.threads(), rows, &seated.room);
        Ok(done.map_err(GenerateError::from)?)
    }

    /// The next chunk of a job, with room for its keys and values. `None` if the job had to give way to others.
    fn reserve(&mut self, at: usize, rows: usize) -> Result<Option<Range<usize>>, RequestError> {
        loop {
            let job = &mut self.jobs[at];
            if job.stalled {
                return Ok(None);
            }
            let chunk = job.answer.chunk(&mut job.session, rows);
            let Err(error) = job.session.reserve(chunk.len()) else { return Ok(Some(chunk)) };
            let error = RequestError::from(GenerateError::from(error));
            if !lacks_room(&error) || !self.preempt(at) {
                return Err(error);
            }
        }
    }

    /// Makes the pass that began at `start`. One that fails is made again by each request alone, so that nobody fails for
    /// another's sake.
    fn make(&mut self, parts: &[Part], start: Instant, before: &Moved, over: &mut Vec<(usize, Over)>) {
        for part in parts {
            self.jobs[part.at].begin(self.turn, start);
        }
        let computed = self.compute(parts);
        let (took, after) = (start.elapsed(), Moved::now(self.home.memory()));
        match (computed, parts) {
            (Err(_), [_, _, ..]) => {
                for alone in parts.chunks(1) {
                    self.make(alone, Instant::now(), &Moved::now(self.home.memory()), over);
                }
            }
            (Err(error), _) => {
                for part in parts {
                    self.jobs[part.at].passed(start, before, &after);
                }
                if let [Part { at, .. }] = parts
                    && !(lacks_room(&error) && self.preempt(*at))
                {
                    over.push((*at, Err(error)));
                }
            }
            (Ok(()), _) => {
                let Self { jobs, seats, pool, .. } = self;
                for (member, Part { at, chunk }) in parts.iter().enumerate() {
                    let job = &mut jobs[*at];
                    let Some(seated) = seats.iter_mut().find(|seated| seated.model == job.model) else {
                        continue;
                    };
                    let (session, answer, buffers) = (&job.session, &mut job.answer, &mut seated.buffers);
                    let came = caught(|| {
                        answer.computed(chunk, took, |token| buffers.hidden(session, member, token));
                        let output = if answer.is_last(chunk) {
                            Output::Logits(buffers.logits(member))
                        } else {
                            Output::None
                        };
                        Ok(answer.advance(session.model(), output)?)
                    });
                    job.passed(start, before, &after);
                    over.extend(job.settle(pool, came).map(|end| (*at, end)));
                }
            }
        }
    }

    /// The forward pass itself.
    fn compute(&mut self, parts: &[Part]) -> Result<(), RequestError> {
        let Self { jobs, seats, pool, .. } = self;
        let Some(model) = parts.first().map(|part| jobs[part.at].model) else { return Ok(()) };
        let Some(seated) = seats.iter_mut().find(|seated| seated.model == model) else { return Ok(()) };
        let jobs = jobs.iter_mut().enumerate();
        let mut members: Vec<(usize, Member<'_>)> = jobs
            .filter_map(|(at, job)| {
                let place = parts.iter().position(|part| part.at == at)?;
                let chunk = &parts[place].chunk;
                let (tokens, logits) = (job.answer.tokens(chunk), job.answer.is_last(chunk));
                Some((place, Member { session: &mut job.session, tokens, logits }))
            })
            .collect();
        members.sort_unstable_by_key(|(place, _)| *place);
        let mut members: Vec<Member<'_>> = members.into_iter().map(|(_, member)| member).collect();
        caught(|| {
            #[cfg(test)]
            super::tests::trip_over(super::tests::SHARING, members.len());
            Ok(seated.buffers.pass(pool, &mut members, &seated.room).map_err(GenerateError::from)?)
        })
    }
}

/// Whether it would go away if others gave something back.
pub(super) fn lacks_room(error: &RequestError) -> bool {
    matches!(error, RequestError::Generate(GenerateError::Eval(EvalError::Budget(error)))
        if error.is_for_lack_of_room())
}
