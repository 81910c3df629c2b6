//! Damaged files never panic, and memory follows the bytes that are there, not the counts.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::Raw;
use nexaquant_gguf::{Gguf, TensorType as T, Value, write::Writer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, noting this thread's largest single request.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; noting a number does not allocate.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

fn largest_allocation<R>(work: impl FnOnce() -> R) -> (R, usize) {
    LARGEST.set(0);
    let result = work();
    (result, LARGEST.get())
}

/// A small file with every value type and several tensor types.
fn small_file() -> Vec<u8> {
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").set("general.alignment", 64u32);
    writer.set("u8", 1u8).set("i8", -1i8).set("u16", 1u16).set("i16", -1i16).set("i32", -1i32);
    writer.set("f32", 0.5f32).set("f64", 0.25f64).set("bool", true).set("u64", 1u64).set("i64", -1i64);
    writer.set("numbers", vec![1u16, 2, 3]).set("bools", vec![true, false]).set("floats", vec![1.0f32]);
    let words: nexaquant_gguf::StringArray = ["", "a", "bc"].into_iter().collect();
    writer.set("words", words);
    let shapes: [(&str, T, &[u64]); 5] = [
        ("a", T::F32, &[5]),
        ("b", T::I2_S, &[128, 2]),
        ("c", T::Q2_0, &[512, 4]),
        ("d", T::IQ1_BN, &[64, 3]),
        ("e", T::TQ2_0, &[256, 1, 2]),
    ];
    for (name, ty, dims) in shapes {
        writer.tensor(name, ty, dims).unwrap();
    }
    let mut out = writer.start(Vec::new()).unwrap();
    while let Some((name, bytes)) = out.next().map(|(name, bytes)| (name.to_owned(), bytes)) {
        out.write(&name, &vec![7; bytes as usize]).unwrap();
    }
    out.finish().unwrap()
}

/// Parses and, if that works, uses everything the result promises.
fn exercise(file: &[u8]) -> bool {
    let Ok(gguf) = Gguf::parse(file) else { return false };
    for tensor in &gguf.tensors {
        assert_eq!(tensor.data(file).unwrap().len() as u64, tensor.bytes);
        assert_eq!(tensor.row_len() * tensor.rows(), tensor.elements());
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
    }
    for (key, value) in gguf.metadata.iter() {
        assert!(gguf.metadata.get(key).is_some());
        if let Value::Array(array) = value {
            assert_eq!(array.iter().count(), array.len());
        }
    }
    true
}

#[test]
fn truncated_at_every_byte() {
    let file = small_file();
    assert!(exercise(&file));
    let last = Gguf::parse(&file).unwrap().tensors.iter().map(|t| t.offset + t.bytes).max().unwrap();
    for length in 0..file.len() {
        assert_eq!(exercise(&file[..length]), length as u64 >= last, "cut at {length}");
    }
}

#[test]
fn flipped_bytes() {
    let file = small_file();
    let header = Gguf::parse(&file).unwrap().data_offset as usize;
    let (mut accepted, mut refused) = (0, 0);
    let mut check = |file: &[u8]| if exercise(file) { accepted += 1 } else { refused += 1 };
    // Every header byte with telling values, alone.
    for at in 0..header {
        for value in [0, 1, 2, 8, 9, 39, 42, 0x7f, 0x80, 0xff] {
            let mut bad = file.clone();
            bad[at] = value;
            check(&bad);
        }
    }
    // Several random ones together.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    for _ in 0..20_000 {
        let mut bad = file.clone();
        for _ in 0..=random(6) {
            bad[random(header)] = random(256) as u8;
        }
        check(&bad);
    }
    assert!(accepted > 100 && refused > 100, "the test tests both: {accepted} accepted, {refused} refused");
}

#[test]
fn counts_do_not_allocate() {
    let many = u64::MAX / 16;
    let cases = [
        Raw::new(many, 0).bytes(&[0; 64]),
        Raw::new(0, many).bytes(&[0; 64]),
        Raw::new(0, 1).key("k", 9).u32(0).u64(many),
        Raw::new(0, 1).key("k", 9).u32(8).u64(1 << 40).bytes(&[0; 64]),
        Raw::new(0, 1).key("k", 8).u64(1 << 40).bytes(&[0; 64]),
        Raw::new(0, 1).u64(1 << 40).bytes(&[0; 64]),
        Raw::new(1, 0).string("t").u32(u32::MAX).bytes(&[0; 64]),
        Raw::new(1, 0).u64(1 << 40).bytes(&[0; 64]),
        Raw::new(1, 0).tensor("t", 0, &[1 << 40], 0),
    ];
    for (i, raw) in cases.iter().enumerate() {
        let (result, largest) = largest_allocation(|| Gguf::parse(&raw.0));
        assert!(result.is_err(), "case {i}");
        assert!(largest < 1024, "case {i} allocated {largest} bytes at once");
    }
}

#[test]
fn arrays_take_the_bytes_they_have_in_the_file() {
    // 100,000 empty strings, then 100,000 short ones; a million bools.
    let empty = (0..100_000).fold(Raw::new(0, 1).key("k", 9).u32(8).u64(100_000), |raw, _| raw.string(""));
    let short =
        (0..100_000).fold(Raw::new(0, 1).key("k", 9).u32(8).u64(100_000), |raw, _| raw.string("token"));
    let bools = Raw::new(0, 1).key("k", 9).u32(7).u64(1_000_000).bytes(&vec![1; 1_000_000]);
    for raw in [empty, short, bools] {
        let (result, largest) = largest_allocation(|| Gguf::parse(&raw.0));
        assert!(result.is_ok());
        assert!(largest <= raw.0.len(), "{largest} bytes for a file of {}", raw.0.len());
    }
}

#[test]
fn smallest_entries_cost_a_bounded_multiple() {
    // The most entries per byte: one-element tensors, alignment 1, names of four bytes.
    let n = 50_000u64;
    let raw = Raw::new(n, 1).key("general.alignment", 4).u32(1);
    let raw = (0..n).fold(raw, |raw, i| raw.tensor(&format!("{i:04x}"), 24, &[1], i));
    let file = raw.data(1, n as usize);
    let (result, largest) = largest_allocation(|| Gguf::parse(&file));
    assert_eq!(result.unwrap().tensors.len() as u64, n);
    assert!(largest <= 4 * file.len(), "{largest} bytes for a file of {}", file.len());
}
