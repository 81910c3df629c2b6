//! Requests for several models, served by one thread.
//!
//! The thread owns every session and the workers, so nothing here is locked but the memory, and that for one decision at
//! a time. Between two forward passes it takes in new requests, drops those nobody waits for, asks
//! [`decide`](crate::decide) who is next (`run.rs`), and makes one pass for those: requests of one model share passes, the
//! prompts of some and the next tokens of others together (`pass.rs`). So a request joins at the next pass and leaves when
//! it is over, and what it gets is to the last bit what it would get alone. Models come and go through the [`Engine`] handle
//! meanwhile.
//!
//! Each request has keys and values of its own; everything else a pass needs belongs to the model, and is given back while
//! another model runs. What full pages a request has computed stay when it is over, for requests that begin alike, and are
//! the first thing given up (`cache.rs`). A pass is as large as its buffers may be (`session/shared.rs`); where they do not fit, it serves
//! fewer requests. If the keys and values of all of them do not fit the budget together, the request that came last gives
//! its own up and waits until another one is over; then they are computed again. Nobody fails who would fit alone.

mod cache;
mod job;
mod pass;
mod run;
#[cfg(test)]
mod tests;

use crate::decide::Limits;
use crate::generate::{GenerateError, GenerateOptions, Generation, Scored};
use crate::loader::Model;
use crate::m3::{FillStats, Memory, MemoryError, Placed, ResidencyStats, Tenancy, Uploads};
use crate::session::{Session, SessionError, SessionOptions};
use crate::threads::{Pool, PoolOptions};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::mpsc::{Receiver, Sender, channel};
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
    /// A token came, and somebody wants to know how probable it was. Its text follows, when it is whole.
    Scored(Box<Scored>),
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

/// What a request took, measured. A pass that it shares counts in full; those that it has no part in are not in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Service {
    /// From its arrival to its first pass.
    pub waited: Duration,
    /// From the beginning of its first pass to its first token; zero if it has none.
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
    /// Copying to a device.
    pub uploads: Uploads,
}

impl Moved {
    fn now(memory: Option<&Memory>) -> Self {
        memory.map_or_else(Self::default, |m| Self {
            residency: m.stats(),
            fill: m.fill_stats(),
            uploads: m.uploads().unwrap_or_default(),
        })
    }

    fn add(&mut self, before: &Moved, after: &Moved) {
        self.residency += after.residency.since(&before.residency);
        self.fill += after.fill.since(&before.fill);
        self.uploads += after.uploads.since(&before.uploads);
    }

    /// Time that passes lost to bringing weights in: waiting for them, and copying them between two units. On a device, the time
    /// that copies took there; some of it may have gone by beside computing.
    pub fn page_in(&self) -> Duration {
        match self.uploads.parts {
            0 => self.residency.stall + self.fill.shared_time,
            _ => self.uploads.copying,
        }
    }
}

/// Whom the events of a request are told, in order. Called by the thread that computes: it must be quick, and must not
/// wait. It is dropped after the last event.
pub type Listener = Box<dyn FnMut(Event) + Send>;

/// A request's life: dropping it cancels the request before its next pass.
#[derive(Debug)]
pub struct Ticket(#[allow(dead_code, reason = "held, not read")] Arc<()>);

/// What comes of a request, in order. Dropping it cancels the request before its next pass.
#[derive(Debug)]
pub struct Stream {
    events: Receiver<Event>,
    _alive: Ticket,
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

    /// Whether the model is still there.
    fn has(&self, seat: &Seat) -> bool {
        match (self, seat) {
            (Home::Mapped(models), Seat::Mapped(model)) => {
                models.lock().unwrap_or_else(PoisonError::into_inner).values().any(|m| m.same(model))
            }
            _ => true,
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

    fn placed(&self) -> Option<&Placed> {
        match self {
            Seat::Placed(placed) => Some(placed),
            Seat::Mapped(_) => None,
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
    listener: Listener,
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
    /// The same.
    Unload(String, Sender<Result<(), MemoryError>>),
    /// Gives up keys and values that are kept of requests that are over: those of one model, or all.
    Forget(Option<Seat>, Sender<()>),
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
                    run::Scheduler::new(pool, limits, inbox, memory).run();
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
        self.add_last(name, model, usize::MAX)
    }

    /// The same where a device with a budget has the last `layers` layers only, as in [`Memory::add_last`].
    pub fn add_last(&self, name: &str, model: &Model, layers: usize) -> Result<(), MemoryError> {
        match &*self.home {
            Home::Memory(memory) => {
                // What is only kept in case it is of use takes no room from a model.
                self.forget(None);
                memory.add_last(name, model, layers).map(|_| ())
            }
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
        let seat = self.seat(name)?;
        match &*self.home {
            Home::Memory(memory) => memory.remove(name)?,
            Home::Mapped(models) => {
                let mut models = Self::mapped(models);
                models.remove(name).ok_or_else(|| MemoryError::unknown(name, models.keys()))?;
            }
        }
        self.forget(Some(seat));
        Ok(())
    }

    /// Gives up the keys and values that are kept of requests that are over, of all models: room for something else.
    pub fn forget_kept(&self) {
        self.forget(None);
    }

    /// Waits until what is kept of requests that are over is given up, of one model or all.
    fn forget(&self, seat: Option<Seat>) {
        let (reply, done) = channel();
        if self.send(Command::Forget(seat, reply)).is_ok() {
            let _ = done.recv();
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
        let (sender, events) = channel();
        // Nobody listens any more: noticed before the next pass.
        let ticket = self.submit_to(request, Box::new(move |event| drop(sender.send(event))))?;
        Ok(Stream { events, _alive: ticket })
    }

    /// Takes a request. What comes of it is told to `listener`.
    pub fn submit_to(&self, request: Request, listener: Listener) -> Result<Ticket, SubmitError> {
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
        let alive = Arc::new(());
        let submission = Submission {
            seat,
            tenancy,
            request,
            listener,
            alive: Arc::downgrade(&alive),
            arrived: Instant::now(),
            place,
        };
        self.send(Command::Submit(Box::new(submission)))?;
        Ok(Ticket(alive))
    }

    /// Requests that are waiting or running.
    pub fn taken(&self) -> usize {
        self.taken.load(Acquire)
    }

    /// Evicts what is in memory of a model and not pinned, between two passes, and gives up what is kept of its requests that are
    /// over. It comes back when it is asked.
    pub fn unload(&self, name: &str) -> Result<(), SubmitError> {
        let (reply, answer) = channel();
        self.send(Command::Unload(name.to_owned(), reply))?;
        answer.recv().map_err(|_| SubmitError::Stopped)?.map_err(SubmitError::Memory)?;
        self.forget(Some(self.seat(name).map_err(SubmitError::Memory)?));
        Ok(())
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
