//! Requests for several models, served by one thread.
//!
//! The thread owns every session and the workers, so nothing here is locked but the memory, and that for one decision at
//! a time. Between two forward passes it takes in new requests, drops those nobody waits for, asks [`decide`] who is
//! next, and makes one pass for that one. Models come and go through the [`Engine`] handle meanwhile.
//!
//! A request that does not run keeps its keys and values and gives back everything else; when it runs again it goes on
//! where it was. If the keys and values of all of them do not fit the budget together, the request that came last gives
//! its own up and waits until another one is over; then they are computed again. Nobody fails who would fit alone.

use crate::decide::{self, Choice, Limits, Running, View};
use crate::generate::{Answer, GenerateError, GenerateOptions, Generation, Progress};
use crate::loader::Model;
use crate::m3::{FillStats, Memory, MemoryError, Placed, ResidencyStats, Tenancy};
use crate::session::{EvalError, Session, SessionError, SessionOptions};
use crate::threads::{Pool, PoolOptions};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How an engine is started.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where models live; `None`: in their mapped files, without a budget.
    pub memory: Option<Memory>,
    /// The workers.
    pub pool: PoolOptions,
    /// What bounds a model's turn.
    pub limits: Limits,
    /// Requests that may wait or run at once; more are refused.
    pub most_requests: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { memory: None, pool: PoolOptions::default(), limits: Limits::default(), most_requests: 256 }
    }
}

/// What is asked of a model.
#[derive(Clone, Debug)]
pub struct Request {
    /// The name it was added under.
    pub model: String,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// What bounds the answer, and how tokens are chosen.
    pub generate: GenerateOptions,
    /// How its session is opened.
    pub session: SessionOptions,
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// No model of that name.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Too many others.
    #[error("{waiting} requests are waiting or running already; try again later")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The engine's thread has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Its session cannot be opened.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A step failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A fault in this program; other requests go on.
    #[error("a fault in this program: {0}; please report it")]
    Fault(String),
}

/// What comes of a request.
#[derive(Debug)]
pub enum Event {
    /// Its first pass is about to be made.
    Begun,
    /// A chunk of the prompt was computed.
    Prompt {
        /// Tokens computed.
        done: usize,
        /// Tokens to compute.
        total: usize,
    },
    /// Text, whole UTF-8.
    Text(String),
    /// It is over.
    Done(Box<Outcome>),
    /// It failed.
    Failed(RequestError),
}

/// An answer and what it took.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The answer.
    pub generation: Generation,
    /// What it took.
    pub service: Service,
}

/// What a request took, measured. Passes of other requests are not in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Service {
    /// From its arrival to its first pass.
    pub waited: Duration,
    /// From the beginning of its first pass to its first token.
    pub first_token: Duration,
    /// Time of its passes.
    pub busy: Duration,
    /// Passes made.
    pub passes: u32,
    /// Turns of its model that it had a pass in.
    pub turns: u32,
    /// What the memory did during its passes up to its first token, and in all.
    pub switch: Moved,
    /// The same in all.
    pub all: Moved,
}

/// What a memory did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// Loads, evictions and waiting.
    pub residency: ResidencyStats,
    /// Reading.
    pub fill: FillStats,
}

impl Moved {
    fn now(memory: Option<&Memory>) -> Self {
        memory.map_or_else(Self::default, |m| Self { residency: m.stats(), fill: m.fill_stats() })
    }

    fn add(&mut self, before: &Moved, after: &Moved) {
        self.residency += after.residency.since(&before.residency);
        self.fill += after.fill.since(&before.fill);
    }

    /// Time that passes lost to bringing weights in: waiting for them, and copying them between two units.
    pub fn page_in(&self) -> Duration {
        self.residency.stall + self.fill.shared_time
    }
}

/// What comes of a request, in order. Dropping it cancels the request before its next pass.
#[derive(Debug)]
pub struct Stream {
    events: Receiver<Event>,
    _alive: Arc<()>,
}

impl Stream {
    /// Waits for the next event; `None` after the last.
    pub fn next_event(&self) -> Option<Event> {
        self.events.recv().ok()
    }

    /// The same, waiting at most `time`; the error says whether there may be more.
    pub fn next_within(&self, time: Duration) -> Result<Event, std::sync::mpsc::RecvTimeoutError> {
        self.events.recv_timeout(time)
    }
}

/// Where models live.
enum Home {
    Memory(Memory),
    Mapped(Mutex<BTreeMap<String, Model>>),
}

impl Home {
    fn memory(&self) -> Option<&Memory> {
        match self {
            Home::Memory(memory) => Some(memory),
            Home::Mapped(_) => None,
        }
    }
}

/// A model's place.
#[derive(Clone)]
enum Seat {
    Placed(Placed),
    Mapped(Model),
}

impl Seat {
    fn is(&self, other: &Seat) -> bool {
        match (self, other) {
            (Seat::Placed(a), Seat::Placed(b)) => a.is(b),
            (Seat::Mapped(a), Seat::Mapped(b)) => a.same(b),
            _ => false,
        }
    }

    fn open(&self, pool: &Pool, options: SessionOptions) -> Result<Session, SessionError> {
        match self {
            Seat::Placed(placed) => Session::placed(placed, pool, options),
            Seat::Mapped(model) => Session::new(model, pool, options),
        }
    }
}

struct Submission {
    seat: Seat,
    /// Keeps the model until its session does.
    tenancy: Option<Tenancy>,
    request: Request,
    events: Sender<Event>,
    alive: Weak<()>,
    arrived: Instant,
    place: Place,
}

/// A request's place among those that are taken.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, AcqRel);
    }
}

enum Command {
    Submit(Box<Submission>),
    /// Between two passes, when nothing is in use.
    SetBudget(u64, Sender<Result<(), MemoryError>>),
}

/// A handle to the thread that serves requests. Dropping it ends the thread after the pass at hand.
pub struct Engine {
    commands: Option<Sender<Command>>,
    home: Arc<Home>,
    taken: Arc<AtomicUsize>,
    most: usize,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread and its workers.
    pub fn start(options: EngineOptions) -> std::io::Result<Self> {
        let home = match options.memory {
            Some(memory) => Home::Memory(memory),
            None => Home::Mapped(Mutex::default()),
        };
        let home = Arc::new(home);
        let (commands, inbox) = channel();
        let (ready, started) = channel();
        let (limits, pool, memory) = (options.limits, options.pool, Arc::clone(&home));
        let thread = std::thread::Builder::new().name("nexaquant-engine".to_owned()).spawn(move || {
            // The thread that makes the pool is its first worker.
            match Pool::new(pool) {
                Ok(pool) => {
                    let _ = ready.send(Ok(()));
                    Scheduler::new(pool, limits, inbox, memory).run();
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started.recv().unwrap_or_else(|_| Err(std::io::Error::other("the engine's thread has ended")))?;
        let (taken, most) = (Arc::new(AtomicUsize::new(0)), options.most_requests);
        Ok(Self { commands: Some(commands), home, taken, most, thread: Some(thread) })
    }

    /// The memory, if there is a budget.
    pub fn memory(&self) -> Option<&Memory> {
        self.home.memory()
    }

    fn mapped(models: &Mutex<BTreeMap<String, Model>>) -> MutexGuard<'_, BTreeMap<String, Model>> {
        models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a model known under a name, at any time.
    pub fn add(&self, name: &str, model: &Model) -> Result<(), MemoryError> {
        match &*self.home {
            Home::Memory(memory) => memory.add(name, model).map(|_| ()),
            Home::Mapped(models) => match Self::mapped(models).entry(name.to_owned()) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(model.clone());
                    Ok(())
                }
                std::collections::btree_map::Entry::Occupied(_) => {
                    Err(MemoryError::NameTaken { name: name.to_owned() })
                }
            },
        }
    }

    /// Forgets a name. In a memory with a budget that is refused while requests use the model's last name; without one
    /// they end with the copy they have.
    pub fn remove(&self, name: &str) -> Result<(), MemoryError> {
        match &*self.home {
            Home::Memory(memory) => memory.remove(name),
            Home::Mapped(models) => {
                let mut models = Self::mapped(models);
                models.remove(name).map(|_| ()).ok_or_else(|| MemoryError::unknown(name, models.keys()))
            }
        }
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Result<Model, MemoryError> {
        self.seat(name).map(|seat| match seat {
            Seat::Placed(placed) => placed.model().clone(),
            Seat::Mapped(model) => model,
        })
    }

    fn seat(&self, name: &str) -> Result<Seat, MemoryError> {
        match &*self.home {
            Home::Memory(memory) => memory.get(name).map(Seat::Placed),
            Home::Mapped(models) => {
                let models = Self::mapped(models);
                let model = models.get(name).cloned();
                model.map(Seat::Mapped).ok_or_else(|| MemoryError::unknown(name, models.keys()))
            }
        }
    }

    /// Takes a request. What comes of it arrives in the stream.
    pub fn submit(&self, request: Request) -> Result<Stream, SubmitError> {
        let (seat, tenancy) = match &*self.home {
            Home::Memory(memory) => {
                let (placed, tenancy) = memory.enter(&request.model)?;
                (Seat::Placed(placed), Some(tenancy))
            }
            Home::Mapped(_) => (self.seat(&request.model)?, None),
        };
        let one_more = |taken: usize| (taken < self.most).then_some(taken + 1);
        if let Err(waiting) = self.taken.fetch_update(AcqRel, Acquire, one_more) {
            return Err(SubmitError::Busy { waiting });
        }
        let place = Place(Arc::clone(&self.taken));
        let (sender, events) = channel();
        let alive = Arc::new(());
        let submission = Submission {
            seat,
            tenancy,
            request,
            events: sender,
            alive: Arc::downgrade(&alive),
            arrived: Instant::now(),
            place,
        };
        self.send(Command::Submit(Box::new(submission)))?;
        Ok(Stream { events, _alive: alive })
    }

    /// Changes the budget between two passes, evicting as needed; all or nothing.
    pub fn set_budget(&self, budget: u64) -> Result<(), SubmitError> {
        let (reply, answer) = channel();
        self.send(Command::SetBudget(budget, reply))?;
        answer.recv().map_err(|_| SubmitError::Stopped)?.map_err(SubmitError::Memory)
    }

    fn send(&self, command: Command) -> Result<(), SubmitError> {
        let sent = self.commands.as_ref().map(|commands| commands.send(command));
        sent.and_then(Result::ok).ok_or(SubmitError::Stopped)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request that is served.
struct Job {
    id: u64,
    /// What [`decide`] calls its model.
    model: u32,
    session: Session,
    answer: Answer,
    events: Sender<Event>,
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

struct Scheduler {
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
    fn new(pool: Pool, limits: Limits, inbox: Receiver<Command>, home: Arc<Home>) -> Self {
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

    fn run(&mut self) {
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
        }
    }

    fn admit(&mut self, submission: Submission) {
        let Submission { seat, tenancy, request, events, alive, arrived, place } = submission;
        let opened = seat.open(&self.pool, request.session).map_err(RequestError::from).and_then(|session| {
            let answer = Answer::new(&session, request.prompt, request.generate)?;
            Ok::<_, RequestError>((session, answer))
        });
        drop(tenancy);
        let (session, answer) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                drop((seat, place));
                return drop(events.send(Event::Failed(error)));
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
            events,
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
            let Job { session, answer, events, service, place, .. } = job;
            // Its memory and its place are free before anybody hears of the end.
            drop((session, place));
            let _ = events.send(match over {
                Ok(()) => Event::Done(Box::new(Outcome { generation: answer.finish(), service })),
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
            let _ = job.events.send(Event::Begun);
        }
        job.service.turns += u32::from(job.turn != self.turn);
        job.turn = self.turn;
        let before = Moved::now(memory);
        let (session, answer) = (&mut job.session, &mut job.answer);
        let stepped = catch_unwind(AssertUnwindSafe(|| answer.step(session, pool)));
        let after = Moved::now(memory);
        job.served = Instant::now();
        job.service.busy += job.served - start;
        job.service.passes += 1;
        job.service.all.add(&before, &after);
        let progress = match stepped {
            Ok(Ok(progress)) => progress,
            Ok(Err(error)) => return Some(Err(error.into())),
            Err(panic) => return Some(Err(RequestError::Fault(message(&*panic)))),
        };
        if !matches!(progress, Progress::Prompt { .. }) {
            job.first_token();
        }
        let mut over = job.tell(progress);
        // What needs no further pass ends now and not at its model's next turn.
        while over.is_none() && job.answer.passes_left(job.session.batch()) == 0 {
            over = match job.answer.step(&mut job.session, pool) {
                Ok(progress) => job.tell(progress),
                Err(error) => Some(Err(error.into())),
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
    fn tell(&self, progress: Progress) -> Option<Result<(), RequestError>> {
        let (event, over) = match progress {
            Progress::Prompt { done, total } => (Event::Prompt { done, total }, None),
            Progress::Token(text) => (Event::Text(text), None),
            Progress::Done(_, text) => (Event::Text(text), Some(Ok(()))),
        };
        if !matches!(&event, Event::Text(text) if text.is_empty()) {
            // Nobody listens any more: noticed before the next pass.
            let _ = self.events.send(event);
        }
        over
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic").to_owned()
}
