//! What a step costs besides computing: no allocation, and no growth.

use nexaquant_engine::kernels::KvType;
use nexaquant_engine::{LoadOptions, Model, PAGE, Pool, PoolOptions, Session, SessionOptions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises, passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

/// One test in this file, so that no other thread's allocations are counted.
#[test]
fn a_decode_step_allocates_nothing_and_a_session_does_not_grow() {
    let mut pool = Pool::new(PoolOptions { threads: Some(2), pin: false }).unwrap();
    // A session made on one pool runs on a larger one.
    {
        let model = Model::load(&model("alpha.gguf"), LoadOptions::default()).unwrap();
        let alone = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
        let mut larger = Pool::new(PoolOptions { threads: Some(4), pin: false }).unwrap();
        let options = SessionOptions { batch: 1, all_threads: true, ..SessionOptions::default() };
        let mut session = Session::new(&model, &alone, options).unwrap();
        let there = session.eval(&mut larger, &[1, 2, 3]).unwrap().to_vec();
        let mut session = Session::new(&model, &larger, options).unwrap();
        assert_eq!(session.eval(&mut larger, &[1, 2, 3]).unwrap(), there);
    }
    for name in ["alpha.gguf", "delta.gguf"] {
        let model = Model::load(&model(name), LoadOptions::default()).unwrap();
        for kv in KvType::ALL {
            let options = SessionOptions { context: 512, kv, ..SessionOptions::default() };
            let mut session = Session::new(&model, &pool, options).unwrap();
            // The first token of a page brings the page; the others of it bring nothing.
            session.eval(&mut pool, &[5; PAGE + 1]).unwrap();
            let before = ALLOCATIONS.load(Relaxed);
            for token in 0..PAGE as u32 - 2 {
                session.eval(&mut pool, &[token]).unwrap();
            }
            assert_eq!(ALLOCATIONS.load(Relaxed) - before, 0, "{name} {kv:?}");
        }
        // Four thousand tokens in one session, forgotten whenever the context is full.
        let mut session =
            Session::new(&model, &pool, SessionOptions { context: 128, ..SessionOptions::default() })
                .unwrap();
        session.eval(&mut pool, &[7; 128]).unwrap();
        let full = session.bytes();
        for _ in 0..30 {
            session.truncate(0);
            session.eval(&mut pool, &[7; 128]).unwrap();
        }
        assert_eq!(session.bytes(), full, "{name}");
    }
}
