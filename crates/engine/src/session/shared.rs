//! A forward pass that several sessions of one model share.
//!
//! The rows of a step are tokens of different sequences then: the weights are read once for all of them, and only rotation,
//! cache and attention ask whose a row is. What a row brings is the same to the last bit as in a pass of its own, because
//! no operation looks at any other row but through the sequence's own cache.
//!
//! The rows whose logits are wanted come last, so that the head runs for one stretch of rows:
//!
//! ```text
//! a chunk of A's prompt, B's but for its last token | B's last token, C's token, D's token
//! ```

use super::{EvalError, Session, finish, hidden, run};
use crate::cpu::{OutOfMemory, Scratch, Sizes, Span, Step};
use crate::kv::PAGE;
use crate::m3::Tenancy;
use crate::model::op::Slot;
use crate::threads::{Crew, Pool, Tuner};
use nexaquant_residency::{Charge, Class};
use std::ops::Range;
use std::time::Instant;

/// A session in a shared pass.
pub(crate) struct Member<'a> {
    /// Not on a device, and with [reserved](Session::reserve) room for its tokens.
    pub session: &'a mut Session,
    /// What it computes, at least one token, at most as many as it has positions for.
    pub tokens: &'a [u32],
    /// Whether the logits after the last of them are wanted.
    pub logits: bool,
}

/// How large a model's shared passes may be.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// Rows of a pass and positions of a session that it was made for.
    batch: usize,
    context: usize,
    /// Pairs (rows with logits, rows), the first growing by doubling: what fits together.
    sizes: Vec<(usize, usize)>,
}

impl Room {
    /// For sessions like `session`.
    pub(crate) fn new(session: &Session, threads: usize) -> Self {
        Self::of(session, threads, session.batch, session.context)
    }

    /// The same, and for `session`; whether anything is different now.
    pub(crate) fn admit(&mut self, session: &Session, threads: usize) -> bool {
        let (batch, context) = (self.batch.max(session.batch), self.context.max(session.context));
        let grows = batch > self.batch || context > self.context;
        if grows {
            *self = Self::of(session, threads, batch, context);
        }
        grows
    }

    /// The same under the budget that there is now.
    pub(crate) fn again(&mut self, session: &Session, threads: usize) {
        *self = Self::of(session, threads, self.batch, self.context);
    }

    /// Under a budget a small part of that is enough for buffers, as in a session's own passes.
    fn of(session: &Session, threads: usize, batch: usize, context: usize) -> Self {
        let share = session.tenancy.as_ref().map_or(u64::MAX, |tenancy| tenancy.budget() / 8);
        let mut sizes = Vec::new();
        let (mut outputs, mut rows) = (1, batch.max(1));
        loop {
            let buffers = |rows| buffers(session, (rows, outputs), context, threads);
            rows = buffers(rows).batch();
            while rows > outputs && cost(session, &buffers(rows)) as u64 > share {
                rows = (rows / 2).max(outputs);
            }
            // One row is what any session needs.
            if outputs > 1 && cost(session, &buffers(rows)) as u64 > share {
                break;
            }
            sizes.push((outputs.min(rows), rows));
            if outputs >= rows {
                break;
            }
            outputs = (2 * outputs).min(rows);
        }
        Self { batch, context, sizes }
    }

    /// Sessions that a pass can serve.
    pub(crate) fn members(&self) -> usize {
        self.sizes.last().map_or(1, |(outputs, _)| *outputs)
    }

    /// Rows that a pass for so many sessions may have.
    pub(crate) fn rows(&self, members: usize) -> usize {
        self.size(members).1
    }

    fn size(&self, outputs: usize) -> (usize, usize) {
        let enough = self.sizes.iter().find(|(most, _)| *most >= outputs);
        enough.or(self.sizes.last()).copied().unwrap_or((1, 1))
    }
}

/// Buffers for so many rows, and of those with logits, of sessions with up to `context` positions.
fn buffers(session: &Session, size: (usize, usize), context: usize, threads: usize) -> Sizes {
    let (model, kernel) = (&session.model, |id| session.model.weights().kernel(id));
    let cut = session.tenancy.as_ref().is_some_and(Tenancy::cuts_layers);
    let sizes = Sizes::new(model.architecture(), kernel, &session.ropes, size, cut, threads);
    // Under a budget nothing grows unasked.
    let positions = if session.tenancy.is_some() { context.next_multiple_of(PAGE) } else { 0 };
    sizes.with_scores(positions)
}

/// What buffers of these sizes cost, embedding rows included.
fn cost(session: &Session, sizes: &Sizes) -> usize {
    sizes.bytes() + sizes.batch() * embedding_row(session)
}

/// Bytes of an embedding row, if a step must read it: under a budget the table is not at hand.
fn embedding_row(session: &Session) -> usize {
    let arch = session.model.architecture();
    session.tenancy.as_ref().map_or(0, |_| session.model.weights().row_bytes(arch.embedding))
}

/// Passes of different sizes are timed apart: by the power of two that a pass has rows.
pub(super) const KINDS: usize = 8;

/// Which one a pass of so many rows is of.
pub(super) fn kind(rows: usize) -> usize {
    (rows.ilog2() as usize).min(KINDS - 1)
}

/// The buffers of a model's shared passes, and what came of the last one.
#[derive(Debug)]
pub(crate) struct Buffers {
    scratch: Option<Scratch>,
    /// What the scratch costs, where there is a budget.
    paid: Option<Charge>,
    gathered: Vec<u8>,
    /// Positions that the scores have room for, where there is a budget.
    context: usize,
    tuners: [Tuner; KINDS],
    /// Where each member's tokens were, but for the last one if its logits were wanted; and that one's place among the
    /// logits.
    rows: Vec<(Range<usize>, Option<usize>)>,
    /// The first row with logits.
    outputs: usize,
}

impl Buffers {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            scratch: None,
            paid: None,
            gathered: Vec::new(),
            context: 0,
            tuners: std::array::from_fn(|_| Tuner::new()),
            rows: Vec::new(),
            outputs: 0,
        }
    }

    /// Lets go of everything until the next pass.
    pub(crate) fn rest(&mut self) {
        (self.scratch, self.paid, self.gathered) = (None, None, Vec::new());
    }

    /// Bytes that they may take when they are made, at most, under this budget.
    pub(crate) fn missing(&self, budget: u64) -> u64 {
        if self.scratch.is_some() { 0 } else { budget / 8 }
    }

    /// One forward pass for all `members`, sessions of one model, within `room`. Each has its tokens afterwards.
    ///
    /// # Errors
    /// No member has changed then, and any set of them may be tried again.
    pub(crate) fn pass(
        &mut self,
        pool: &mut Pool,
        members: &mut [Member<'_>],
        room: &Room,
    ) -> Result<(), EvalError> {
        for member in &mut *members {
            member.session.check(member.tokens, member.session.tokens.len())?;
            member.session.reserve(member.tokens.len())?;
        }
        self.arrange(members);
        let n = members.iter().map(|member| member.tokens.len()).sum();
        let outputs = self.outputs..n;
        let sessions: Vec<&Session> = members.iter().map(|member| &*member.session).collect();
        let Some(&session) = sessions.first() else { return Ok(()) };
        self.fit(&sessions, pool.threads(), n, room)?;
        let Some(scratch) = &mut self.scratch else { unreachable!("`fit` has made it") };

        let mut tokens = vec![0; n];
        let mut spans = Vec::with_capacity(2 * members.len());
        for (member, (rows, output)) in members.iter().zip(&self.rows) {
            let Member { session, tokens: chunk, .. } = member;
            let pos = session.tokens.len();
            let mut span = |rows: Range<usize>, chunk: &[u32], pos: usize| {
                tokens[rows.clone()].copy_from_slice(chunk);
                scratch.set_angles(&session.ropes, rows.clone(), pos);
                spans.push(Span { first: rows.start, pos, kv: &session.kv });
            };
            let (head, last) = chunk.split_at(rows.len());
            if !head.is_empty() {
                span(rows.clone(), head, pos);
            }
            if let Some(output) = output {
                let row = outputs.start + output;
                span(row..row + 1, last, pos + head.len());
            }
            scratch.grow_scores(session.kv.capacity())?;
        }
        spans.sort_unstable_by_key(|span| span.first);
        if let Some(tenancy) = &session.tenancy {
            tenancy.gather(&tokens, &mut self.gathered)?;
        }
        let model = &session.model;
        let step = Step {
            arch: model.architecture(),
            weights: model.weights(),
            ops: session.ops,
            scratch,
            tokens: &tokens,
            spans: &spans,
            apart: n == members.len(),
            gathered: session.tenancy.as_ref().map(|_| self.gathered.as_slice()),
        };
        let tuner = &mut self.tuners[kind(n)];
        let all_threads = members.iter().any(|member| member.session.all_threads);
        let alone = tuner.crew() == Crew::Alone && !all_threads;
        let start = Instant::now();
        run(&step, session.host, model, session.tenancy.as_ref(), &outputs, (pool, alone))?;
        tuner.record(start.elapsed() / n as u32);
        finish(model, scratch, outputs.len())?;
        for member in members {
            member.session.tokens.extend_from_slice(member.tokens);
        }
        Ok(())
    }

    /// Decides which rows are whose.
    fn arrange(&mut self, members: &[Member<'_>]) {
        self.rows.clear();
        let (mut first, mut outputs) = (0, 0);
        for member in members {
            let n = member.tokens.len() - usize::from(member.logits);
            self.rows.push((first..first + n, member.logits.then_some(outputs)));
            first += n;
            outputs += usize::from(member.logits);
        }
        self.outputs = first;
    }

    /// Makes the buffers fit a pass of `rows` rows for these sessions. Under a budget a pass for one takes no more than it
    /// would alone; for several, buffers stay as long as they are not much too large.
    pub(crate) fn fit(
        &mut self,
        sessions: &[&Session],
        threads: usize,
        rows: usize,
        room: &Room,
    ) -> Result<(), EvalError> {
        let Some(&session) = sessions.first() else { return Ok(()) };
        let (outputs, most) = room.size(sessions.len());
        let budget = session.tenancy.is_some();
        // Without a budget, what nobody writes takes no memory.
        let wanted = if budget { rows.next_power_of_two().min(most) } else { most }.max(rows);
        let context = sessions.iter().map(|session| session.context).max().unwrap_or_default();
        let slack = if sessions.len() > 1 { 4 } else { 1 };
        let fits = |s: &Scratch| {
            let enough = s.threads() >= threads && s.batch >= rows && s.outputs >= sessions.len();
            let small = s.batch <= slack * wanted && s.outputs <= slack * outputs;
            enough && (!budget || small && self.context >= context)
        };
        if self.scratch.as_ref().is_some_and(fits) {
            return Ok(());
        }
        self.rest();
        let sizes = buffers(session, (wanted, outputs.max(sessions.len())), context, threads);
        let mut paid = match &session.tenancy {
            Some(tenancy) => Some(tenancy.pay(Class::Scratch, cost(session, &sizes))?),
            None => None,
        };
        let gathered = sizes.batch() * embedding_row(session);
        self.gathered.try_reserve_exact(gathered).map_err(|_| OutOfMemory { bytes: gathered })?;
        self.scratch = Some(Scratch::new(&sizes)?);
        if let Some(paid) = &mut paid {
            paid.commit();
        }
        (self.paid, self.context) = (paid, context);
        Ok(())
    }

    /// The logits of a member of the last pass; empty if it wanted none.
    pub(crate) fn logits(&mut self, member: usize) -> &mut [f32] {
        match (&mut self.scratch, self.rows.get(member)) {
            (Some(scratch), Some((_, Some(output)))) => scratch.row(Slot::Logits, *output),
            _ => &mut [],
        }
    }

    /// What the model has made of a member's `token`-th token of the last pass, as [`Session::hidden`].
    pub(crate) fn hidden(&mut self, session: &Session, member: usize, token: usize) -> Vec<f32> {
        let (Some(scratch), Some((rows, output))) = (&mut self.scratch, self.rows.get(member)) else {
            return Vec::new();
        };
        let row = if token < rows.len() { rows.start + token } else { self.outputs + output.unwrap_or(0) };
        hidden(&session.model, scratch.row(Slot::X, row))
    }
}

impl Session {
    /// Whether its passes can be shared. Those on a device cannot.
    pub(crate) fn shares(&self) -> bool {
        self.device.is_none()
    }
}
