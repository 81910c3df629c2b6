//! The worker pool: one function, all cores, in lock step.
//!
//! The calling thread is worker 0. Between runs the others wait at a barrier, spinning for a moment and then
//! asleep, so starting a run costs one barrier. Each worker is pinned to a physical core of its own where the
//! system allows it. Create the pool on the thread that will run it, and keep only one alive: two pools
//! spinning for the same cores slow each other down.

#![allow(unsafe_code)]

use super::Apart;
use super::barrier::{Barrier, Broken};
use super::topology::{allowed, pin, topology, unpinned};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// How a pool is made.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Workers, the calling thread included; `None`: one a physical core, within cgroup quotas.
    pub threads: Option<usize>,
    /// Pin each worker to a core of its own.
    pub pin: bool,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { threads: None, pin: true }
    }
}

/// More workers than this are refused: no machine gains from them, and each costs a stack.
pub const MAX_THREADS: usize = 512;

/// How often a worker looks whether the others have come before it sleeps: one to three hundred microseconds. Where workers share processors
/// it would only keep the others from working.
const SPINS: u32 = 6000;

/// Bits of a count of pieces.
const PIECES: u32 = 24;

type Job<'a> = &'a (dyn Fn(&Worker<'_>) + Sync);

/// A set of worker threads.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// The calling thread's processors before it was pinned.
    unpinned: Option<Vec<usize>>,
}

struct Shared {
    threads: usize,
    /// Where runs start and end.
    outer: Barrier,
    /// Where phases within a run meet.
    inner: Barrier,
    /// Of each worker's share of a phase, the pieces that are claimed: the phase's number in the upper bits, the count in
    /// the lower `PIECES`. A number of an earlier phase means that none is.
    claimed: Vec<Apart<AtomicU64>>,
    /// The number of the first phase of a run.
    phase: AtomicU64,
    quit: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The function of the current run, its lifetime erased; see `Pool::run`.
    job: UnsafeCell<Option<Job<'static>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("threads", &self.threads).finish_non_exhaustive()
    }
}

// SAFETY: `job` is written by worker 0 alone, between the end of a run and the start of the next, when every
// other worker is at the outer barrier; they read it after that barrier. All else is Sync by itself.
unsafe impl Sync for Shared {}

/// What the run function learns about the thread it runs on.
#[derive(Debug)]
pub struct Worker<'a> {
    id: usize,
    /// Workers in this run.
    threads: usize,
    shared: &'a Shared,
    phase: Cell<u64>,
}

impl Worker<'_> {
    /// 0 is the thread that called [`Pool::run`].
    pub fn id(&self) -> usize {
        self.id
    }
    /// Workers in this run.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Waits for all workers: the end of a phase. All must call it equally often.
    ///
    /// # Panics
    /// When another worker has panicked; [`Pool::run`] passes that panic on.
    #[inline]
    pub fn barrier(&self) {
        self.phase.set(self.phase.get() + 1);
        if self.threads > 1 && self.shared.inner.wait(self.id).is_err() {
            resume_unwind(Box::new(Broken));
        }
    }

    /// Calls `work` with pieces of `0..total`, at most `chunk` long, until all workers together have taken
    /// every piece. Once a phase: a barrier must lie between two claims.
    ///
    /// A worker begins with its own share, the same in every pass over a model, so its cache may still hold what belongs to
    /// it, and memory is read in one stream a worker; then it helps the others.
    #[inline]
    pub fn claim(&self, total: usize, chunk: usize, mut work: impl FnMut(Range<usize>)) {
        let chunk = chunk.max(1);
        let (pieces, n) = (total.div_ceil(chunk), self.threads);
        let mut work = |piece: usize| work(piece * chunk..((piece + 1) * chunk).min(total));
        // With one piece for each there is nothing to help with.
        if pieces <= n {
            return (pieces * self.id / n..pieces * (self.id + 1) / n).for_each(work);
        }
        let none = self.phase.get() << PIECES;
        for k in 0..n {
            let whose = (self.id + k) % n;
            let (from, to) = (pieces * whose / n, pieces * (whose + 1) / n);
            let claimed = &self.shared.claimed[whose].0;
            // Relaxed: what the pieces protect is ordered by the barriers around the phase.
            let mut found = claimed.load(Relaxed);
            loop {
                let so_far = found.max(none);
                let piece = from + (so_far - none) as usize;
                if piece >= to {
                    break;
                }
                match claimed.compare_exchange_weak(found, so_far + 1, Relaxed, Relaxed) {
                    Ok(_) => {
                        work(piece);
                        found = claimed.load(Relaxed);
                    }
                    Err(now) => found = now,
                }
            }
        }
    }

    /// This worker's even share of `0..total`, the same in every phase.
    pub fn share(&self, total: usize) -> Range<usize> {
        let (id, n) = (self.id, self.threads);
        total * id / n..total * (id + 1) / n
    }
}

impl Pool {
    /// Starts the workers.
    ///
    /// # Errors
    /// When the system refuses a thread, or more than [`MAX_THREADS`] are asked for.
    pub fn new(options: PoolOptions) -> std::io::Result<Self> {
        // Before anything is pinned.
        let _ = unpinned();
        let topology = topology();
        let threads = options.threads.unwrap_or_else(|| topology.default_threads()).max(1);
        if threads > MAX_THREADS {
            let text = format!("{threads} threads; at most {MAX_THREADS} are possible");
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, text));
        }
        let spins = if threads > topology.parallelism { 0 } else { SPINS };
        let shared = Arc::new(Shared {
            threads,
            outer: Barrier::new(threads, spins),
            inner: Barrier::new(threads, spins),
            claimed: (0..threads).map(|_| Apart::default()).collect(),
            phase: AtomicU64::new(0),
            quit: AtomicBool::new(false),
            panic: Mutex::new(None),
            job: UnsafeCell::new(None),
        });
        // With more workers than cores the scheduler places them better than a fixed map would.
        let cores = if options.pin && threads <= topology.cores.len() { topology.cores } else { Vec::new() };
        let mut pool = Self { shared: shared.clone(), handles: Vec::new(), unpinned: None };
        for id in 1..threads {
            let (theirs, core) = (shared.clone(), cores.get(id).copied());
            let builder = std::thread::Builder::new().name(format!("worker-{id}"));
            match builder.spawn(move || work_loop(&theirs, id, core)) {
                Ok(handle) => pool.handles.push(handle),
                Err(error) => {
                    // The workers that did start wait for ones that never will.
                    shared.quit.store(true, Release);
                    shared.outer.break_it();
                    return Err(error);
                }
            }
        }
        if let Some(&core) = cores.first() {
            let before = allowed();
            if pin(&[core]) {
                pool.unpinned = Some(before);
            }
        }
        Ok(pool)
    }

    /// Workers, the calling thread included.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Calls `f` on the calling thread alone, as the one worker of a run; the others sleep on.
    pub fn run_alone(&mut self, f: impl FnOnce(&Worker<'_>)) {
        let worker = self.shared.worker(0, 1);
        f(&worker);
        self.shared.phase.store(worker.phase.get() + 1, Relaxed);
    }

    /// Calls `f` on every worker and returns when all are done.
    ///
    /// # Panics
    /// Passes on the panic of any worker; the pool stays usable.
    pub fn run(&mut self, f: impl Fn(&Worker<'_>) + Sync) {
        if self.shared.threads == 1 {
            return self.run_alone(f);
        }
        let shared = &*self.shared;
        let job: Job<'_> = &f;
        // SAFETY: the lifetime is erased, but the reference is used only until the second outer barrier below, which
        // this function reaches on every path (panics of `f` are caught), and `f` outlives that. Writing is
        // sound because all other workers wait at the outer barrier (invariant of `Shared::job`).
        unsafe { *shared.job.get() = Some(std::mem::transmute::<Job<'_>, Job<'static>>(job)) };
        let _ = shared.outer.wait(0);
        let phase = shared.run_job(0);
        let _ = shared.outer.wait(0);
        // Only now: a worker that begins late reads the number that this run began with.
        shared.phase.store(phase + 1, Relaxed);
        if let Some(payload) = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Every other worker is past its job and on the way to the outer barrier, none at the inner one.
            shared.inner.mend();
            resume_unwind(payload);
        }
    }
}

impl Shared {
    /// A worker at the beginning of a run.
    fn worker(&self, id: usize, threads: usize) -> Worker<'_> {
        Worker { id, threads, shared: self, phase: Cell::new(self.phase.load(Relaxed)) }
    }

    /// Runs the current job as worker `id`, keeping a panic for [`Pool::run`]. Returns the number of its last phase.
    fn run_job(&self, id: usize) -> u64 {
        // SAFETY: written before the outer barrier this worker has passed, not written again until it arrives
        // at the next one.
        let Some(job) = (unsafe { *self.job.get() }) else { return 0 };
        let worker = self.worker(id, self.threads);
        match catch_unwind(AssertUnwindSafe(|| job(&worker))) {
            Err(payload) if !payload.is::<Broken>() => {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
                self.inner.break_it();
            }
            _ => {}
        }
        worker.phase.get()
    }
}

fn work_loop(shared: &Shared, id: usize, core: Option<usize>) {
    if let Some(core) = core {
        pin(&[core]);
    }
    while shared.outer.wait(id).is_ok() && !shared.quit.load(Acquire) {
        shared.run_job(id);
        if shared.outer.wait(id).is_err() {
            return;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.quit.store(true, Release);
        self.shared.outer.break_it();
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
        if let Some(cpus) = &self.unpinned {
            pin(cpus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    fn pool(threads: usize) -> Pool {
        Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap()
    }

    #[test]
    fn every_item_of_every_phase_is_claimed_once() {
        for threads in [1, 2, 3, 5] {
            let mut pool = pool(threads);
            for total in [0, 1, 7, 64, 1000] {
                let seen: Vec<AtomicU64> = (0..total).map(|_| AtomicU64::new(0)).collect();
                pool.run(|w| {
                    for phase in 0..50 {
                        w.claim(total, 3, |r| {
                            for i in r {
                                assert_eq!(seen[i].fetch_add(1, Relaxed), phase);
                            }
                        });
                        w.barrier();
                    }
                });
                assert!(seen.iter().all(|s| s.load(Relaxed) == 50), "{threads} threads, {total} items");
            }
        }
    }

    /// Work without a barrier is over before some workers have begun: those must not take it for the next run's.
    #[test]
    fn a_worker_that_comes_late_finds_everything_claimed() {
        let mut pool = pool(4);
        let seen: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
        for run in 1..=20_000 {
            pool.run(|w| {
                w.claim(64, 1, |pieces| {
                    for i in pieces {
                        seen[i].fetch_add(1, Relaxed);
                    }
                });
            });
            for (i, seen) in seen.iter().enumerate() {
                assert_eq!(seen.load(Relaxed), run, "piece {i}");
            }
        }
    }

    #[test]
    fn shares_cover_everything_in_order() {
        let mut pool = pool(3);
        let sum = AtomicU64::new(0);
        pool.run(|w| {
            sum.fetch_add(w.share(100).map(|i| i as u64).sum(), Relaxed);
        });
        assert_eq!(sum.load(Relaxed), 4950);
    }

    #[test]
    fn a_panic_in_any_worker_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = pool(4);
        for culprit in 0..4 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|w| {
                    w.barrier();
                    assert!(w.id() != culprit, "worker {culprit}");
                    w.barrier();
                });
            }));
            let text = *caught.unwrap_err().downcast::<String>().unwrap();
            assert!(text.contains(&format!("worker {culprit}")), "{text}");
            let count = AtomicU64::new(0);
            pool.run(|w| {
                count.fetch_add(1, Relaxed);
                w.barrier();
            });
            assert_eq!(count.load(Relaxed), 4);
        }
    }

    #[test]
    fn too_many_threads_are_refused() {
        let error = Pool::new(PoolOptions { threads: Some(100_000), pin: true }).unwrap_err();
        assert!(error.to_string().contains("100000 threads"), "{error}");
    }

    #[test]
    fn a_dropped_pool_gives_the_processors_back() {
        let before = allowed();
        drop(Pool::new(PoolOptions::default()).unwrap());
        assert_eq!(allowed(), before);
    }
}
