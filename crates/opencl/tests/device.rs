//! What a device does with bytes and programs. Any device will do, PoCL's too.

#![allow(clippy::unwrap_used)]
use nexaquant_opencl::{Arg, Cache, Choice, Device, Error, choose, find};
use std::io::Write;
use std::sync::Arc;

/// A device, or the reason why there is none.
fn device(cache: Cache) -> Option<Device> {
    match find() {
        Ok(found) => Some(Device::open(&found[0], cache).unwrap()),
        Err(error) => {
            // Not `eprintln!`, which the test harness swallows when a test passes.
            std::io::stderr().write_all(format!("SKIPPED opencl: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}

const SOURCE: &str = "kernel void twice(global uint *x, uint n, local uint *y) {
    uint i = get_global_id(0);
    y[get_local_id(0)] = 2;
    if (i < n) x[i] *= y[get_local_id(0)];
}";

#[test]
fn bytes_go_there_and_come_back_through_a_kernel() {
    let Some(device) = device(Cache::none()) else { return };
    let (queue, buffer) = (device.queue().unwrap(), device.buffer(400).unwrap());
    let mut pinned = device.pinned(400).unwrap();
    for (i, x) in pinned.bytes_mut().chunks_exact_mut(4).enumerate() {
        x.copy_from_slice(&(i as u32).to_le_bytes());
    }
    let pinned = Arc::new(pinned);
    let there = queue.upload(&buffer, 0, &pinned, 0..400, &[]).unwrap();
    let kernel = device.kernels(SOURCE, "", &["twice"]).unwrap().pop().unwrap();
    let args = [Arg::Buffer(&buffer), Arg::U32(90), Arg::Local(4 * 50)];
    let done = queue.launch(&kernel, &args, 2, 50, &[&there]).unwrap();
    done.wait().unwrap();
    assert!(done.is_over().unwrap());
    queue.zero(&buffer, 0..8).unwrap();
    let mut out = [0; 400];
    queue.read(&buffer, 0, &mut out).unwrap();
    for (i, x) in out.chunks_exact(4).enumerate() {
        let want = if i < 2 { 0 } else { i as u32 * if i < 90 { 2 } else { 1 } };
        assert_eq!(x, want.to_le_bytes(), "{i}");
    }
}

#[test]
fn sub_groups_are_those_that_a_kernel_sees() {
    let devices = find().unwrap_or_default();
    let sized = devices.iter().filter(|found| !found.sub_groups.is_empty());
    let mut seen = 0;
    for found in sized {
        let device = Device::open(found, Cache::none()).unwrap();
        for &size in &found.sub_groups {
            let Some(sub) = device.sub_groups(4 * size, size) else { continue };
            seen += 1;
            assert_eq!(
                (sub.size, sub.shuffles),
                (size, found.has("cl_khr_subgroup_shuffle")),
                "{}",
                found.name
            );
            assert!(!sub.without_shuffles().shuffles && device.sub_groups(4 * size + 1, size).is_none());
        }
        // Another size than one of those is not taken at its word.
        assert!(device.sub_groups(30, 10).is_none() && device.sub_groups(64, 1).is_none());
    }
    if seen == 0 {
        std::io::stderr().write_all(b"SKIPPED sub-groups: no driver here has them\n").unwrap();
    }
}

#[test]
fn a_damaged_or_foreign_cache_entry_is_compiled_anew() {
    let folder = tempfile::tempdir().unwrap();
    let Some(device) = device(Cache::at(folder.path())) else { return };
    let entries = || std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    device.kernels(SOURCE, "", &["twice"]).unwrap();
    assert_eq!(entries().len(), 1);
    device.kernels(SOURCE, "", &["twice"]).unwrap();
    device.kernels(SOURCE, "-DOTHER", &["twice"]).unwrap();
    assert_eq!(entries().len(), 2);
    for path in entries() {
        std::fs::write(path, b"damaged").unwrap();
    }
    device.kernels(SOURCE, "", &["twice"]).unwrap();
}

#[test]
fn refusals_say_why() {
    let Some(device) = device(Cache::none()) else { return };
    let error = device.buffer(usize::MAX / 2).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
    let error = device.kernels("kernel void f() { nothing; }", "", &["f"]).unwrap_err();
    assert!(matches!(error, Error::Build { .. }), "{error}");
    let error = device.kernels(SOURCE, "", &["thrice"]).unwrap_err();
    assert!(error.to_string().contains("clCreateKernel"), "{error}");
    let error = choose("no such card").unwrap_err().to_string();
    assert!(error.contains("no such card") && error.contains(&device.found().name), "{error}");
    assert!(matches!(choose("cpu"), Ok(Choice::Cpu(None))));
    assert!(matches!(choose("0"), Ok(Choice::Device(_))));
    // A driver that computes on the CPU is never chosen unasked.
    match choose("auto").unwrap() {
        Choice::Cpu(why) => assert!(why.is_some()),
        Choice::Device(found) => assert!(found.gpu),
    }
}

#[test]
fn what_a_device_does_is_measured() {
    let Some(device) = device(Cache::none()) else { return };
    let rates = device.measure().unwrap();
    assert!(rates.read > 0.0 && rates.page_in.iter().all(|p| !p.time.is_zero()), "{rates:?}");
    println!("{rates:?}");
}
