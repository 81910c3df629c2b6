//! The device of these tests, and models on it.
#![allow(clippy::unwrap_used, dead_code, reason = "helpers of several tests")]

use nexaquant_engine::opencl::{Extras, Gpu, GpuOptions, find};
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

/// A device with sub-groups, with and without their shuffles. Not PoCL's: its compiler stops the program at such barriers (5.0).
pub fn with_sub_groups() -> Vec<Gpu> {
    for found in find().unwrap_or_default() {
        if found.platform == "Portable Computing Language" {
            continue;
        }
        let open =
            |extras| Gpu::open(&found, GpuOptions { extras, ..GpuOptions::sub_groups_of_16() }).unwrap();
        let both = [Extras::All, Extras::NoShuffles].map(open);
        if both.iter().all(|gpu| gpu.sub_groups().is_some()) {
            return both.into();
        }
    }
    std::io::stderr().write_all(b"SKIPPED sub-groups: no driver here has such of 16\n").unwrap();
    Vec::new()
}

/// The device, or the reason why there is none.
///
/// `NEXAQUANT_TEST_GROUP` and `NEXAQUANT_TEST_LANES` give work-groups real sizes, which a simulator of GPUs wants. With
/// `NEXAQUANT_TEST_PLAIN` it has no instructions that only some devices have: a GPU can show that the plain program is right there.
pub fn gpu(mut options: GpuOptions) -> Option<Gpu> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    (options.group, options.lanes) = (number("NEXAQUANT_TEST_GROUP"), number("NEXAQUANT_TEST_LANES"));
    options.no_cache = options.group > 0;
    if std::env::var_os("NEXAQUANT_TEST_PLAIN").is_some() {
        options.extras = Extras::None;
    }
    match find() {
        Ok(found) => Some(Gpu::open(&found[0], options).unwrap()),
        Err(error) => {
            // Not `eprintln!`, which the test harness swallows when a test passes.
            std::io::stderr().write_all(format!("SKIPPED opencl: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}
