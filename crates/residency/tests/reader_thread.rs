//! The pool with a store as an engine would write it: a reader thread fills slots while the caller computes, leases are
//! dropped on another thread, and each byte under a lease is the right one.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nexaquant_residency::*;

const LOAD: Duration = Duration::from_millis(2);

/// The byte at `offset` of a unit: what a file would hold.
fn byte(unit: UnitId, offset: usize) -> u8 {
    (unit.model.0 as usize * 97 + unit.index as usize * 31 + offset) as u8
}

type Image = Arc<Vec<u8>>;
type Job = (UnitId, Vec<u8>, Range<u64>);

struct Reader {
    jobs: Option<Sender<Job>>,
    done: Receiver<Finished<Image>>,
    /// A clone of each handle, which must be the last one when the unit is evicted.
    images: HashMap<UnitId, Image>,
    /// What is left of units that were given up in part.
    fronts: HashMap<UnitId, Vec<u8>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reader {
    fn new() -> Reader {
        let (jobs, inbox) = channel::<Job>();
        let (outbox, done) = channel();
        let thread = thread::spawn(move || {
            for (unit, mut image, missing) in inbox {
                let began = Instant::now();
                thread::sleep(LOAD);
                image.extend(missing.map(|offset| byte(unit, offset as usize)));
                let finished = Finished { unit, result: Ok(Arc::new(image)), took: began.elapsed() };
                if outbox.send(finished).is_err() {
                    return;
                }
            }
        });
        let (images, fronts) = (HashMap::new(), HashMap::new());
        Reader { jobs: Some(jobs), done, images, fronts, thread: Some(thread) }
    }

    fn keep(&mut self, finished: Finished<Image>) -> Finished<Image> {
        self.images.insert(finished.unit, Arc::clone(finished.result.as_ref().unwrap()));
        finished
    }
}

impl Store for Reader {
    type Handle = Image;

    fn load(&mut self, unit: UnitId, missing: Range<u64>) -> Result<Started<Image>, Reason> {
        let front = self.fronts.remove(&unit).unwrap_or_default();
        assert_eq!(front.len() as u64, missing.start);
        self.jobs.as_ref().unwrap().send((unit, front, missing))?;
        Ok(Started::Pending)
    }

    fn poll(&mut self) -> Option<Finished<Image>> {
        let finished = self.done.try_recv().ok()?;
        Some(self.keep(finished))
    }

    fn wait(&mut self) -> Option<Finished<Image>> {
        let finished = self.done.recv().ok()?;
        Some(self.keep(finished))
    }

    fn evict(&mut self, unit: UnitId, keep: Bytes) {
        let mut front = match self.images.remove(&unit) {
            Some(image) => Arc::try_unwrap(image).expect("the store holds the last clone"),
            None => self.fronts.remove(&unit).unwrap(),
        };
        front.truncate(keep.0 as usize);
        if !front.is_empty() {
            self.fronts.insert(unit, front);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.jobs = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn loads_overlap_and_bytes_are_right() {
    const UNITS: u32 = 8;
    let mut pool = Pool::new(Reader::new(), Bytes(6_500), Box::new(TwoLevel));
    let sizes = [Size::paged(Bytes(1_000), Bytes(64)); UNITS as usize];
    let models = ["a", "b"].map(|name| pool.register(name, &sizes).unwrap());
    pool.expect(&models.map(|model| Turn { model, passes: 2 }));
    let events = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&events);
    pool.subscribe(move |_| *counter.lock().unwrap() += 1);

    let order = models.into_iter().flat_map(|m| [m, m]).cycle().take(12);
    let order: Vec<_> =
        order.flat_map(|model| (0..UNITS).map(move |index| UnitId { model, index })).collect();
    let (fences, ended) = channel::<Lease<Image>>();
    let device = thread::spawn(move || {
        for lease in ended {
            assert!(lease.iter().enumerate().all(|(i, b)| *b == byte(lease.unit(), i)), "{lease:?}");
        }
    });
    let mut slept = Duration::ZERO;
    for (t, unit) in order.iter().enumerate() {
        // At most one unit is with the device, one computes and one comes.
        let lease = pool.acquire(*unit).unwrap();
        assert_eq!(lease.len(), 1_000);
        if let Some(next) = order.get(t + 1) {
            pool.prefetch(*next).unwrap();
        }
        let began = Instant::now();
        thread::sleep(LOAD * 2);
        slept += began.elapsed();
        fences.send(lease).unwrap();
        pool.audit();
    }
    drop(fences);
    device.join().unwrap();
    let stats = pool.stats();
    println!("{stats:?}, computed {slept:?}");
    assert_eq!(stats.acquires(), order.len() as u64);
    assert!(stats.prefetched > 20 && stats.misses == 1, "{stats:?}");
    assert!(*events.lock().unwrap() > 4 * stats.loads);
    // Loads take half as long as the work they hide behind; on a loaded machine some of that is lost.
    assert!(stats.stall < stats.load_time / 2, "{stats:?}");
    for model in models {
        pool.unregister(model).unwrap();
    }
    assert_eq!(pool.books().used(), Bytes::ZERO);
}
