//! The loop of the engine's thread: takes commands, asks [`decide`] whose pass is next, makes it, and tells what came
//! of it. Nothing here is seen from outside; the handle and the public types are in the module above.

use super::{Command, Event, Home, Listener, Moved, Outcome, Place, RequestError, Seat, Service, Submission};
use crate::decide::{self, Choice, Limits, Running, View};
use crate::generate::{Answer, GenerateError, Progress};
use crate::m3::{Memory, MemoryError, Placed};
use crate::session::{EvalError, Session};
use crate::threads::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// A request that is served.
struct Job {
    id: u64,
    /// What [`decide`] calls its model.
    model: u32,
    session: Session,
    answer: Answer,
    listener: Listener,
    alive: Weak<()>,
    arrived: Instant,
    /// Start of its first pass.
    begun: Option<Instant>,
    /// End of its last pass.
    served: Instant,
    service: Service,
    /// The turn it had its last pass in.
    turn: u64,
    /// Its keys and values did not fit beside those of others; it waits until one of them is over.
    stalled: bool,
    place: Place,
}

pub(super) struct Scheduler {
    pool: Pool,
    limits: Limits,
    inbox: Receiver<Command>,
    home: Arc<Home>,
    jobs: Vec<Job>,
    /// Models that have jobs, and what [`decide`] calls them.
    seats: Vec<(u32, Seat)>,
    running: Option<Running>,
    /// The job that made the last pass.
    last: Option<u64>,
    turn: u64,
    next_id: u64,
    next_seat: u32,
    /// Who is expected when has changed.
    news: bool,
    /// Turn at which the memory's forecast is half used up.
    refresh: u64,
}

impl Scheduler {
    pub(super) fn new(pool: Pool, limits: Limits, inbox: Receiver<Command>, home: Arc<Home>) -> Self {
        Self {
            pool,
            limits,
            inbox,
            home,
            jobs: Vec::new(),
            seats: Vec::new(),
            running: None,
            last: None,
            turn: 0,
            next_id: 0,
            next_seat: 0,
            news: false,
            refresh: 0,
        }
    }

    fn memory(&self) -> Option<&Memory> {
        self.home.memory()
    }

    pub(super) fn run(&mut self) {
        loop {
            if self.jobs.is_empty() {
                match self.inbox.recv() {
                    Ok(command) => self.obey(command),
                    Err(_) => return,
                }
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let before = self.jobs.len();
            self.jobs.retain(|job| job.alive.strong_count() > 0);
            if self.jobs.len() != before {
                self.resettle();
            }
            self.pass();
        }
    }

    /// Seats must not keep models that nobody asks any more: they may have been removed.
    fn clear_seats(&mut self) {
        let jobs = &self.jobs;
        self.seats.retain(|(model, _)| jobs.iter().any(|job| job.model == *model));
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.admit(*submission),
            Command::SetBudget(budget, reply) => {
                // Buffers come back when they are needed.
                self.jobs.iter_mut().for_each(|job| job.session.rest());
                let done = match self.memory() {
                    Some(memory) => memory.set_budget(budget),
                    None => Err(MemoryError::Unbounded),
                };
                let _ = reply.send(done);
            }
            Command::Unload(name, reply) => {
                let done =
                    self.memory().ok_or(MemoryError::Unbounded).and_then(|memory| memory.unload(&name));
                let _ = reply.send(done);
            }
        }
    }

    fn admit(&mut self, submission: Submission) {
        let Submission { seat, tenancy, request, mut listener, alive, arrived, place } = submission;
        let opened = caught(|| {
            let session = seat.open(&self.pool, request.session)?;
            #[cfg(test)]
            tests::trip(tests::OPENING);
            let answer = Answer::new(&session, request.prompt, request.generate)?;
            Ok((session, answer))
        });
        drop(tenancy);
        let (session, answer) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                drop((seat, place));
                return listener(Event::Failed(error));
            }
        };
        let known = self.seats.iter().find(|(_, s)| s.is(&seat)).map(|(model, _)| *model);
        let model = known.unwrap_or_else(|| {
            self.next_seat = self.next_seat.wrapping_add(1);
            self.seats.push((self.next_seat, seat));
            self.next_seat
        });
        let (id, service) = (self.next_id, Service::default());
        self.next_id += 1;
        let (served, turn) = (arrived, u64::MAX);
        let (begun, stalled) = (None, false);
        let job = Job {
            id,
            model,
            session,
            answer,
            listener,
            alive,
            arrived,
            begun,
            served,
            service,
            turn,
            stalled,
            place,
        };
        self.jobs.push(job);
        self.news = true;
    }

    /// Makes one pass for whoever is next.
    fn pass(&mut self) {
        // One instant for all, or those that are looked at later would seem to have waited longer.
        let now = Instant::now();
        let requests: Vec<decide::Request> = self
            .jobs
            .iter()
            .filter(|job| !job.stalled)
            .map(|job| decide::Request {
                id: job.id,
                model: job.model,
                waited: now.saturating_duration_since(job.served),
                passes: job.answer.passes_left(job.session.batch()),
            })
            .collect();
        let view = View { requests: &requests, running: self.running };
        let Some(choice) = decide::next(&view, &self.limits) else { return };
        if std::mem::take(&mut self.news) || self.turn >= self.refresh {
            self.refresh = self.turn + decide::MOST_TURNS as u64 / 2;
            self.announce(&view);
        }
        self.make_way(&choice);
        self.running = Some(choice.running(self.running));
        self.turn += u64::from(choice.begins);
        let Some(at) = self.jobs.iter().position(|job| job.id == choice.request) else { return };
        let mut over = self.step(at);
        self.last = Some(choice.request);
        if let Some(Err(RequestError::Generate(GenerateError::Eval(EvalError::Budget(error))))) = &over
            && error.is_for_lack_of_room()
            && self.preempt(at)
        {
            over = None;
        }
        if let Some(over) = over {
            let job = self.jobs.swap_remove(at);
            self.resettle();
            let Job { session, answer, mut listener, service, place, .. } = job;
            // Its memory and its place are free before anybody hears of the end.
            drop((session, place));
            let outcome = over.and_then(|()| caught(|| Ok(Outcome { generation: answer.finish(), service })));
            listener(match outcome {
                Ok(outcome) => Event::Done(Box::new(outcome)),
                Err(error) => Event::Failed(error),
            });
        }
    }

    /// Somebody has gone: seats of models without jobs go, there may be room again, and other turns are to come.
    fn resettle(&mut self) {
        self.clear_seats();
        self.jobs.iter_mut().for_each(|job| job.stalled = false);
        self.news = true;
    }

    /// Makes room for the job at `at`, whose step found none: whoever came last of those that hold keys and values gives
    /// them up, and waits until a request is over. False if there is no other. The request that came first never is
    /// the one, so somebody always goes on.
    fn preempt(&mut self, at: usize) -> bool {
        let holds = |job: &Job| job.session.bytes() > 0;
        if !self.jobs.iter().enumerate().any(|(i, job)| i != at && holds(job)) {
            return false;
        }
        let id = self.jobs[at].id;
        let candidates = self.jobs.iter_mut().filter(|job| job.id == id || job.session.bytes() > 0);
        let Some(last) = candidates.max_by_key(|job| job.id) else { return false };
        last.session.truncate(0);
        last.session.rest();
        last.stalled = true;
        self.news = true;
        true
    }

    /// Tells the memory who is expected when.
    fn announce(&self, view: &View<'_>) {
        let Some(memory) = self.memory() else { return };
        let turns = decide::turns(view, &self.limits);
        let placed = |model: u32| match self.seats.iter().find(|(m, _)| *m == model) {
            Some((_, Seat::Placed(placed))) => Some(placed.clone()),
            _ => None,
        };
        let turns: Vec<(Placed, u32)> =
            turns.into_iter().filter_map(|(model, passes)| Some((placed(model)?, passes))).collect();
        memory.expect(&turns);
    }

    /// Lets whoever made the last pass keep its keys and values and nothing else, if somebody else is next.
    fn make_way(&mut self, choice: &Choice) {
        if self.last != Some(choice.request)
            && let Some(job) = self.jobs.iter_mut().find(|job| Some(job.id) == self.last)
        {
            job.session.rest();
        }
    }

    /// One step of a job; how it ended if it did.
    fn step(&mut self, at: usize) -> Option<Result<(), RequestError>> {
        let memory = self.home.memory();
        let (job, pool) = (&mut self.jobs[at], &mut self.pool);
        let start = Instant::now();
        if job.begun.is_none() {
            job.begun = Some(start);
            job.service.waited = start - job.arrived;
            (job.listener)(Event::Begun);
        }
        job.service.turns += u32::from(job.turn != self.turn);
        job.turn = self.turn;
        let before = Moved::now(memory);
        let (session, answer) = (&mut job.session, &mut job.answer);
        let stepped = caught(|| Ok(answer.step(session, pool)?));
        let after = Moved::now(memory);
        job.served = Instant::now();
        job.service.busy += job.served - start;
        job.service.passes += 1;
        job.service.all.add(&before, &after);
        let progress = match stepped {
            Ok(progress) => progress,
            Err(error) => return Some(Err(error)),
        };
        if job.answer.sampled() > 0 {
            job.first_token();
        }
        let mut over = job.tell(progress);
        // What needs no further pass ends now and not at its model's next turn.
        while over.is_none() && job.answer.passes_left(job.session.batch()) == 0 {
            let stepped = caught(|| {
                #[cfg(test)]
                tests::trip(tests::ENDING);
                Ok(job.answer.step(&mut job.session, pool)?)
            });
            over = match stepped {
                Ok(progress) => job.tell(progress),
                Err(error) => Some(Err(error)),
            };
        }
        over
    }
}

impl Job {
    /// Notes what it took to the first token, if this is it.
    fn first_token(&mut self) {
        if let (Some(begun), true) = (self.begun, self.service.first_token.is_zero()) {
            self.service.first_token = self.served - begun;
            self.service.switch = self.service.all;
        }
    }

    /// Passes on what a step brought; how the job ended if it did.
    fn tell(&mut self, progress: Progress) -> Option<Result<(), RequestError>> {
        if let Some(scored) = self.answer.take_scored() {
            (self.listener)(Event::Scored(Box::new(scored)));
        }
        let (event, over) = match progress {
            Progress::Prompt { done, total } => (Event::Prompt { done, total }, None),
            Progress::Token(text) => (Event::Text(text), None),
            Progress::Done(_, text) => (Event::Text(text), Some(Ok(()))),
        };
        if !matches!(&event, Event::Text(text) if text.is_empty()) {
            (self.listener)(event);
        }
        over
    }
}

/// What is done for one request: a panic in it is the end of that request and of nothing else.
fn caught<R>(what: impl FnOnce() -> Result<R, RequestError>) -> Result<R, RequestError> {
    let done = catch_unwind(AssertUnwindSafe(what));
    done.unwrap_or_else(|panic| Err(RequestError::Fault(message(&*panic))))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic").to_owned()
}

#[cfg(test)]
mod tests {
    use crate::generate::GenerateOptions;
    use crate::scheduler::{Engine, EngineOptions, Event, Request, RequestError};
    use crate::session::SessionOptions;
    use crate::{LoadOptions, Model};
    use std::path::Path;
    use std::sync::atomic::{AtomicU8, Ordering::*};

    pub(super) const OPENING: u8 = 1;
    pub(super) const ENDING: u8 = 2;
    static TRIPS: AtomicU8 = AtomicU8::new(0);

    /// Panics once where the test below says.
    pub(super) fn trip(place: u8) {
        assert!(TRIPS.compare_exchange(place, 0, AcqRel, Relaxed).is_err(), "tripped at {place}");
    }

    #[test]
    fn a_panic_before_the_first_pass_or_after_the_last_fails_that_request_only() {
        let engine = Engine::start(EngineOptions::default()).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3.gguf");
        engine.add("m", &Model::load(&path, LoadOptions::default()).unwrap()).unwrap();
        let end = || {
            let generate =
                GenerateOptions { max_tokens: Some(3), ignore_end: true, ..GenerateOptions::default() };
            let session = SessionOptions::default();
            let request = Request { model: "m".to_owned(), prompt: vec![5, 6, 7], generate, session };
            let stream = engine.submit(request).unwrap();
            std::iter::from_fn(|| stream.next_event()).last()
        };
        for place in [OPENING, ENDING] {
            TRIPS.store(place, Release);
            let Some(Event::Failed(RequestError::Fault(text))) = end() else { panic!("no fault at {place}") };
            assert_eq!(text, format!("tripped at {place}"));
            assert!(matches!(end(), Some(Event::Done(_))), "the engine goes on");
        }
    }
}
