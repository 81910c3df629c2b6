//! The device of these tests, and models on it.
#![allow(clippy::unwrap_used, dead_code, reason = "helpers of several tests")]

use nexaquant_engine::opencl::{Gpu, GpuOptions, find};
use nexaquant_engine::{LoadOptions, Model, Pool, PoolOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn pool() -> Pool {
    Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap()
}

pub fn model(name: &str) -> Model {
    Model::load(&root().join(format!("models/{name}.gguf")), LoadOptions::default()).unwrap()
}

/// The device, or the reason why there is none.
///
/// `NEXAQUANT_TEST_GROUP` and `NEXAQUANT_TEST_LANES` give work-groups real sizes, which a simulator of GPUs wants.
pub fn gpu(mut options: GpuOptions) -> Option<Gpu> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    (options.group, options.lanes) = (number("NEXAQUANT_TEST_GROUP"), number("NEXAQUANT_TEST_LANES"));
    options.no_cache = options.group > 0;
    match find() {
        Ok(found) => Some(Gpu::open(&found[0], options).unwrap()),
        Err(error) => {
            // Not `eprintln!`, which the test harness swallows when a test passes.
            std::io::stderr().write_all(format!("SKIPPED opencl: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}
