//! Filling blocks: jobs that workers do between two units, and reader threads for what has to come from a disk.
//!
//! Bytes in the page cache cost a core's time to copy and nothing else, so a thread of its own would only take turns
//! with the workers on their own cores. So the workers of a step share out the next part's jobs before they compute
//! ([`Filler::help`]), and the reading of a part scales as its computing does. What is not in the page cache waits for a
//! disk, which takes no core: such a job goes to reader threads, several so that the disk has a queue to work on, while
//! the workers compute.

#![allow(unsafe_code)]

use super::blocks::Blocks;
use super::cut::Piece;
use super::source::{SECTOR, Source};
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Reads that are under way at once. Those of a small budget are small: 4 read a tenth less than 16 on the disk tried.
const READERS: usize = 16;

/// A part that is loading.
pub(crate) struct Ticket<T> {
    /// What the owner knows it by.
    pub tag: T,
    missing: AtomicU32,
    began: OnceLock<Instant>,
    took: OnceLock<Duration>,
    failure: Mutex<Option<io::Error>>,
}

impl<T> Ticket<T> {
    /// How it ended, and how long it took from its first byte on.
    pub fn outcome(&self) -> (Result<(), io::Error>, Duration) {
        let failure = lock(&self.failure).take();
        (failure.map_or(Ok(()), Err), self.took.get().copied().unwrap_or_default())
    }
}

/// Bytes of a file, one behind another, on their way into blocks.
struct Job<T> {
    ticket: Arc<Ticket<T>>,
    source: Arc<dyn Source>,
    /// Each with its block's place in memory.
    pieces: Vec<(Piece, u32)>,
}

/// Bytes that one job reads, about: enough that asking for them costs little, and several jobs a part.
pub(crate) const JOB: usize = 128 << 10;

/// One piece that has to wait for a disk.
struct Far<T> {
    ticket: Arc<Ticket<T>>,
    source: Arc<dyn Source>,
    piece: Piece,
    /// Where the block is in memory.
    block: u32,
}

/// What was read, and what it took. Measured, for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FillStats {
    /// Bytes copied from the page cache or from the program itself.
    pub cached_bytes: u64,
    /// Time that took, summed over the threads that copied.
    pub cached_time: Duration,
    /// Time that waiting for the memory of large blocks took before that: the system clears what is used for the first time.
    pub given_time: Duration,
    /// Bytes that reader threads waited for.
    pub disk_bytes: u64,
    /// Time during which at least one such read was under way.
    pub disk_time: Duration,
    /// Time that steps spent on copying between two units, all workers at once.
    pub shared_time: Duration,
}

impl FillStats {
    /// What was read after `before`, an earlier copy.
    #[must_use]
    pub fn since(&self, before: &FillStats) -> FillStats {
        FillStats {
            cached_bytes: self.cached_bytes - before.cached_bytes,
            cached_time: self.cached_time.saturating_sub(before.cached_time),
            given_time: self.given_time.saturating_sub(before.given_time),
            disk_bytes: self.disk_bytes - before.disk_bytes,
            disk_time: self.disk_time.saturating_sub(before.disk_time),
            shared_time: self.shared_time.saturating_sub(before.shared_time),
        }
    }
}

impl AddAssign for FillStats {
    fn add_assign(&mut self, other: FillStats) {
        self.cached_bytes += other.cached_bytes;
        self.cached_time += other.cached_time;
        self.given_time += other.given_time;
        self.disk_bytes += other.disk_bytes;
        self.disk_time += other.disk_time;
        self.shared_time += other.shared_time;
    }
}

#[derive(Default)]
struct Counters {
    cached_bytes: AtomicU64,
    cached_nanos: AtomicU64,
    given_nanos: AtomicU64,
    shared_nanos: AtomicU64,
}

struct State<T> {
    /// Not looked at yet.
    near: VecDeque<Job<T>>,
    /// Not in the page cache.
    far: VecDeque<Far<T>>,
    /// Jobs of `far` and those that readers are at.
    far_open: usize,
    far_since: Option<Instant>,
    done: VecDeque<Arc<Ticket<T>>>,
    /// Tickets that are not in `done` yet.
    open: usize,
    readers: Vec<JoinHandle<()>>,
    quit: bool,
    disk_bytes: u64,
    disk_time: Duration,
}

struct Shared<T> {
    memory: Arc<Blocks>,
    state: Mutex<State<T>>,
    /// Jobs in `near`, to look at without the lock.
    waiting: AtomicU32,
    work: Condvar,
    finished: Condvar,
    counters: Counters,
    /// The processors that readers may use.
    processors: Vec<usize>,
}

/// The queue of jobs and its readers. Clones share it.
pub(crate) struct Filler<T: Send + Sync + 'static>(Arc<Shared<T>>);

impl<T: Send + Sync + 'static> Clone for Filler<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a source says. A panic in it is an error too: somebody waits for the end of the job.
fn guarded<R>(read: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    let read = catch_unwind(AssertUnwindSafe(read));
    read.unwrap_or_else(|_| Err(io::Error::other("a panic while it was read")))
}

impl<T: Send + Sync + 'static> Filler<T> {
    /// An empty queue for blocks of `memory`.
    pub fn new(memory: Arc<Blocks>) -> Self {
        let state = State {
            near: VecDeque::new(),
            far: VecDeque::new(),
            far_open: 0,
            far_since: None,
            done: VecDeque::new(),
            open: 0,
            readers: Vec::new(),
            quit: false,
            disk_bytes: 0,
            disk_time: Duration::ZERO,
        };
        Self(Arc::new(Shared {
            memory,
            state: Mutex::new(state),
            waiting: AtomicU32::new(0),
            work: Condvar::new(),
            finished: Condvar::new(),
            counters: Counters::default(),
            processors: crate::threads::unpinned(),
        }))
    }

    /// Takes on a part: `pieces` from `source` into `blocks`, each counted from the first of them.
    ///
    /// The caller leaves the blocks alone until the ticket is done.
    pub fn start(&self, tag: T, source: &Arc<dyn Source>, pieces: &[Piece], blocks: &[u32]) {
        let mut jobs: Vec<Vec<(Piece, u32)>> = Vec::new();
        let mut open: Option<(u64, usize)> = None;
        for piece in pieces {
            let end = piece.offset + piece.len as u64;
            let placed = (piece.clone(), blocks[piece.block as usize]);
            match (open, jobs.last_mut()) {
                (Some((at, bytes)), Some(job)) if at == piece.offset && bytes + piece.len <= JOB => {
                    job.push(placed);
                    open = Some((end, bytes + piece.len));
                }
                _ => {
                    jobs.push(vec![placed]);
                    open = Some((end, piece.len));
                }
            }
        }
        let missing = AtomicU32::new(jobs.len() as u32);
        let (began, took, failure) = (OnceLock::new(), OnceLock::new(), Mutex::new(None));
        let ticket = Arc::new(Ticket { tag, missing, began, took, failure });
        let mut state = lock(&self.0.state);
        if jobs.is_empty() {
            state.done.push_back(ticket);
            return;
        }
        state.open += 1;
        for pieces in jobs {
            let (ticket, source) = (Arc::clone(&ticket), Arc::clone(source));
            state.near.push_back(Job { ticket, source, pieces });
        }
        self.0.waiting.store(state.near.len() as u32, Release);
    }

    /// Does jobs as long as there are any that take no waiting. Any number of threads may help at once.
    pub fn help(&self) {
        while self.0.waiting.load(Acquire) > 0 {
            let job = {
                let mut state = lock(&self.0.state);
                let job = state.near.pop_front();
                self.0.waiting.store(state.near.len() as u32, Release);
                job
            };
            let Some(job) = job else { return };
            let start = Instant::now();
            let _ = job.ticket.began.set(start);
            job.pieces.iter().for_each(|(_, block)| self.0.memory.populate(*block));
            let given = start.elapsed();
            let bytes: usize = job.pieces.iter().map(|(piece, _)| piece.len).sum();
            let read = guarded(|| {
                let to = job.pieces.iter().map(|(piece, block)| {
                    // SAFETY: the job's own bytes, by `start`.
                    IoSliceMut::new(unsafe { self.0.memory.write(*block, piece.at..piece.at + piece.len) })
                });
                job.source.read_cached(job.pieces[0].0.offset, &mut to.collect::<Vec<_>>())
            });
            match read {
                Ok(true) => {
                    self.0.counters.cached_bytes.fetch_add(bytes as u64, Relaxed);
                    let copied = start.elapsed().saturating_sub(given);
                    self.0.counters.cached_nanos.fetch_add(copied.as_nanos() as u64, Relaxed);
                    self.0.counters.given_nanos.fetch_add(given.as_nanos() as u64, Relaxed);
                    self.end(&job.ticket, Ok(()));
                }
                Ok(false) => self.hand_over(job),
                Err(error) => self.end(&job.ticket, Err(error)),
            }
        }
    }

    /// [`Filler::help`] as worker `id` of a step.
    pub fn share(&self, id: usize) {
        if self.0.waiting.load(Acquire) == 0 {
            return;
        }
        let start = Instant::now();
        self.help();
        if id == 0 {
            self.0.counters.shared_nanos.fetch_add(start.elapsed().as_nanos() as u64, Relaxed);
        }
    }

    /// A part that is loaded, or has failed to.
    pub fn poll(&self) -> Option<Arc<Ticket<T>>> {
        lock(&self.0.state).done.pop_front()
    }

    /// The next part to end; `None` if none is under way.
    pub fn wait(&self) -> Option<Arc<Ticket<T>>> {
        loop {
            self.help();
            let mut state = lock(&self.0.state);
            loop {
                if let Some(ticket) = state.done.pop_front() {
                    return Some(ticket);
                }
                if state.open == 0 {
                    return None;
                }
                if !state.near.is_empty() {
                    break;
                }
                state = self.0.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// What was read so far.
    pub fn stats(&self) -> FillStats {
        let state = lock(&self.0.state);
        let since = state.far_since.map_or(Duration::ZERO, |since| since.elapsed());
        FillStats {
            cached_bytes: self.0.counters.cached_bytes.load(Relaxed),
            cached_time: Duration::from_nanos(self.0.counters.cached_nanos.load(Relaxed)),
            given_time: Duration::from_nanos(self.0.counters.given_nanos.load(Relaxed)),
            disk_bytes: state.disk_bytes,
            disk_time: state.disk_time + since,
            shared_time: Duration::from_nanos(self.0.counters.shared_nanos.load(Relaxed)),
        }
    }

    /// Ends the readers; jobs that are left are dropped.
    pub fn close(&self) {
        let readers = {
            let mut state = lock(&self.0.state);
            state.quit = true;
            std::mem::take(&mut state.readers)
        };
        self.0.work.notify_all();
        for reader in readers {
            let _ = reader.join();
        }
    }

    /// The job has to wait for a disk: readers do that, piece by piece, or the caller where there can be none.
    fn hand_over(&self, job: Job<T>) {
        let Job { ticket, source, pieces } = job;
        ticket.missing.fetch_add(pieces.len() as u32 - 1, AcqRel);
        let far = pieces.into_iter().map(|(piece, block)| Far {
            ticket: Arc::clone(&ticket),
            source: Arc::clone(&source),
            piece,
            block,
        });
        let mut state = lock(&self.0.state);
        while state.readers.len() < READERS && !state.quit {
            let queue = self.clone();
            let reader = std::thread::Builder::new().name("nexaquant-read".to_owned());
            match reader.spawn(move || queue.read_on()) {
                Ok(handle) => state.readers.push(handle),
                Err(_) => break,
            }
        }
        if state.far_open == 0 {
            state.far_since = Some(Instant::now());
        }
        state.far_open += far.len();
        if state.readers.is_empty() {
            drop(state);
            far.for_each(|job| self.do_far(&job));
        } else {
            state.far.extend(far);
            self.0.work.notify_all();
        }
    }

    fn read_on(&self) {
        crate::threads::pin(&self.0.processors);
        loop {
            let job = {
                let mut state = lock(&self.0.state);
                loop {
                    if state.quit {
                        return;
                    }
                    if let Some(job) = state.far.pop_front() {
                        break job;
                    }
                    state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            self.do_far(&job);
        }
    }

    fn do_far(&self, job: &Far<T>) {
        let Piece { offset, len, at, .. } = job.piece;
        // The cut leaves a piece the room of the sectors around it where sources take them.
        let before = (offset % SECTOR as u64) as usize;
        let range = if job.source.takes_sectors() {
            at - before..(at + len).next_multiple_of(SECTOR)
        } else {
            at..at + len
        };
        let within = at - range.start;
        let result = guarded(|| {
            // SAFETY: the job's own bytes, by `start`.
            let block = unsafe { self.0.memory.write(job.block, range) };
            job.source.read_far(offset, block, within, len)
        });
        let mut state = lock(&self.0.state);
        state.disk_bytes += if result.is_ok() { len as u64 } else { 0 };
        state.far_open -= 1;
        if state.far_open == 0 {
            let since = state.far_since.take();
            state.disk_time += since.map_or(Duration::ZERO, |since| since.elapsed());
        }
        drop(state);
        self.end(&job.ticket, result);
    }

    fn end(&self, ticket: &Arc<Ticket<T>>, result: io::Result<()>) {
        if let Err(error) = result {
            lock(&ticket.failure).get_or_insert(error);
        }
        if ticket.missing.fetch_sub(1, AcqRel) == 1 {
            let took = ticket.began.get().map_or(Duration::ZERO, Instant::elapsed);
            let _ = ticket.took.set(took);
            let mut state = lock(&self.0.state);
            state.open -= 1;
            state.done.push_back(Arc::clone(ticket));
            drop(state);
            self.0.finished.notify_all();
        }
    }
}
