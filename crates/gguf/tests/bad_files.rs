//! One hand-made file per way to be wrong, with the text a user reads.

mod common;

use common::{Raw, tensors};
use nexaquant_gguf::Gguf;

#[track_caller]
fn check(file: &[u8], expected: &str) {
    match Gguf::parse(file) {
        Ok(gguf) => panic!("accepted: {gguf:?}; expected: {expected}"),
        Err(error) => {
            let text = error.to_string();
            assert_eq!(text, expected);
            assert!(!text.contains('\n'));
        }
    }
}

#[test]
fn start_of_the_file() {
    check(b"", "this is not a GGUF file: it is empty");
    check(
        b"<!DOCTYPE html>\n<html>",
        "this is not a GGUF file: starts with \"<!DOCTYPE html>\\n\" instead of \"GGUF\"",
    );
    check(b"PK\x03\x04", "this is not a GGUF file: starts with \"PK\\x03\\x04\" instead of \"GGUF\"");
    check(b"X", "this is not a GGUF file: starts with \"X\" instead of \"GGUF\"");
    check(
        b"GG",
        "the file ends inside the header: 4 bytes wanted at 0, the file has 2; is the download complete?",
    );
    check(
        b"GGUF\x03\0\0\0\x01\0",
        "the file ends inside the header: 8 bytes wanted at 8, the file has 10; is the download complete?",
    );
    let big = "this GGUF file is big-endian; only little-endian files can be read, convert it again on a PC";
    check(b"GGUF\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", big);
    check(b"FUGG\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", big);
    for version in [0u32, 1, 4, 1000] {
        let file = Raw(b"GGUF".to_vec()).u32(version).bytes(&[0; 16]);
        check(
            &file.0,
            &format!(
                "this is a GGUF version {version} file; versions 2 and 3 can be read, convert the model again"
            ),
        );
    }
}

#[test]
fn counts() {
    check(
        &Raw::new(1 << 60, 0).bytes(&[0; 100]).0,
        "the header counts 1152921504606846976 tensors, but the 100 bytes that follow have room for 3 at most",
    );
    check(
        &Raw::new(0, 1 << 60).bytes(&[0; 100]).0,
        "the header counts 1152921504606846976 metadata keys, but the 100 bytes that follow have room for 7 at most",
    );
    check(
        &Raw::new(0, 1).0,
        "the header counts 1 metadata keys, but the 0 bytes that follow have room for 0 at most",
    );
}

#[test]
fn metadata() {
    check(
        &Raw::new(0, 1).u64(1 << 60).bytes(b"general.name").bytes(&[0; 8]).0,
        "metadata key number 0 is a string of 1152921504606846976 bytes at 32, \
         but the file has only 20 bytes left there",
    );
    check(
        &Raw::new(0, 1).key("k", 8).u64(u64::MAX).bytes(b"text").0,
        "the value of \"k\" is a string of 18446744073709551615 bytes at 45, \
         but the file has only 4 bytes left there",
    );
    check(
        &Raw::new(0, 1).key("k", 12).u32(0).0,
        "the file ends inside the value of \"k\": 8 bytes wanted at 37, the file has 41; is the download complete?",
    );
    check(
        &Raw::new(0, 1).key("k", 9).u32(4).u64(1 << 62).u64(0).0,
        "the value of \"k\" is an array of 4611686018427387904 u32 at 49, but the file has only 8 bytes left there",
    );
    check(
        &Raw::new(0, 1).key("k", 9).u32(8).u64(3).string("a").string("b").0,
        "the value of \"k\" is an array of 3 string at 49, but the file has only 18 bytes left there",
    );
    check(
        &Raw::new(0, 1).key("k", 9).u32(8).u64(2).string("a").u64(9).bytes(b"b").0,
        "the value of \"k\" is a string of 9 bytes at 66, but the file has only 1 bytes left there",
    );
    check(
        &Raw::new(0, 1).key("k", 9).u32(9).u64(0).0,
        "the value of \"k\" is an array of arrays, which is not supported",
    );
    check(
        &Raw::new(0, 1).key("k", 13).u64(0).0,
        "the value of \"k\" has type 13; metadata types are 0 to 12",
    );
    check(
        &Raw::new(0, 1).key("k", 9).u32(77).u64(0).0,
        "an element of the value of \"k\" has type 77; metadata types are 0 to 12",
    );
    check(
        &Raw::new(0, 2).key("k", 0).bytes(&[1]).key("k", 0).bytes(&[1]).0,
        "metadata key \"k\" appears twice",
    );
    check(
        &Raw::new(0, 1).u64(2).bytes(b"\xff\n").u32(0).bytes(&[0]).0,
        "metadata key number 0 is not UTF-8: \"\\xff\\n\"",
    );
    // A key is shown on one line, and not all of it.
    let long = format!("a\nb{}", "é".repeat(200));
    check(
        &Raw::new(0, 1).key(&long, 99).u64(0).0,
        &format!("the value of \"a\\nb{}…\" has type 99; metadata types are 0 to 12", "é".repeat(97)),
    );
}

#[test]
fn alignment() {
    for alignment in [0u32, 3, 33, 1 << 25, u32::MAX] {
        check(
            &Raw::new(0, 1).key("general.alignment", 4).u32(alignment).0,
            &format!("general.alignment is {alignment}; it must be a power of two, 16777216 at most"),
        );
    }
    check(
        &Raw::new(0, 1).key("general.alignment", 8).string("32").0,
        "metadata key \"general.alignment\" is the string \"32\"; wanted an integer that is not negative",
    );
    check(
        &Raw::new(0, 1).key("general.alignment", 5).u32(u32::MAX).0,
        "metadata key \"general.alignment\" is the i32 -1; wanted an integer that is not negative",
    );
}

#[test]
fn tensor_entries() {
    check(
        &Raw::new(1, 0).string("t").u32(2).u64(1).u64(1).u32(0).0,
        "the file ends inside the entry of tensor \"t\": 8 bytes wanted at 57, the file has 57; \
         is the download complete?",
    );
    check(
        &Raw::new(1, 0).u64(99).bytes(&[b'x'; 40]).0,
        "the name of tensor number 0 is a string of 99 bytes at 32, but the file has only 40 bytes left there",
    );
    check(&tensors(&[("t", 0, &[], 0)], 64), "tensor \"t\" has 0 dimensions; 1 to 4 are possible");
    check(&tensors(&[("t", 0, &[1; 5], 0)], 64), "tensor \"t\" has 5 dimensions; 1 to 4 are possible");
    check(
        &Raw::new(1, 0).string("t").u32(u32::MAX).bytes(&[0; 64]).0,
        "tensor \"t\" has 4294967295 dimensions; 1 to 4 are possible",
    );
    check(&tensors(&[("t", 0, &[4, 0], 0)], 64), "tensor \"t\" has shape [4, 0]; no dimension may be 0");
    let too_large = "more elements than any file can hold";
    // The count overflows 64 bits, only the sign bit, only with the element size, only with the row head.
    for (id, dims) in
        [(0, vec![1 << 32, 1 << 32]), (24, vec![1 << 63]), (0, vec![1 << 62]), (135, vec![64, 1 << 59])]
    {
        check(&tensors(&[("t", id, &dims, 0)], 64), &format!("tensor \"t\" has shape {dims:?}, {too_large}"));
    }
    check(
        &tensors(&[("t", 12, &[128, 2], 0)], 640),
        "tensor \"t\" of type Q4_K has shape [128, 2]; its row length must be a multiple of 256",
    );
    check(
        &tensors(&[("t", 36, &[64, 3], 0)], 640),
        "tensor \"t\" of type I2_S has shape [64, 3]; its element count must be a multiple of 128",
    );
    check(
        &tensors(&[("t", 42, &[32, 4], 0)], 640),
        "tensor \"t\" of type Q2_0 has shape [32, 4]; its row length must be a multiple of 64",
    );
    for id in [4, 5, 9, 15, 31, 33, 37, 43, 1000] {
        check(
            &tensors(&[("t", id, &[256], 0)], 640),
            &format!(
                "tensor \"t\" has type {id}, which is not known here; the file may come from a newer program, \
                 convert it to a common type such as Q8_0"
            ),
        );
    }
    check(
        &tensors(&[("t", 0, &[8], 0), ("u", 0, &[8], 32), ("t", 0, &[8], 64)], 96),
        "tensor \"t\" appears twice",
    );
}

#[test]
fn tensor_places() {
    let three = |b: u64, c: u64, n| tensors(&[("a", 0, &[8], 0), ("b", 8, &[32], b), ("c", 0, &[8], c)], n);
    // The header of these three ends at 123, so the data section starts at 128.
    assert!(Gguf::parse(&three(32, 96, 128)).is_ok());
    assert!(Gguf::parse(&three(32, 96, 4096)).is_ok(), "bytes after the last tensor are fine");
    check(
        &three(32, 96, 127),
        "tensor \"c\" has 32 bytes at 224, but the file has 255; is the download complete?",
    );
    check(
        &three(32, 96, 65),
        "tensor \"b\" has 34 bytes at 160, but the file has 193; is the download complete?",
    );
    check(
        &tensors(&[("a", 0, &[8], 0)], 0),
        "tensor \"a\" has 32 bytes at 64, but the file has 64; is the download complete?",
    );
    check(
        &tensors(&[("a", 0, &[1 << 40], 0)], 64),
        "tensor \"a\" has 4398046511104 bytes at 64, but the file has 128; is the download complete?",
    );
    check(
        &three(48, 96, 128),
        "tensor \"b\" starts at 48 of the data section, not a multiple of the alignment 32",
    );
    let overlap = |a, ty, bytes, at, b, next| {
        format!(
            "tensor \"{a}\" of type {ty} has {bytes} bytes at {at} and overlaps tensor \"{b}\", \
             which starts at {next}; the file is damaged or uses another layout for this type"
        )
    };
    check(&three(32, 64, 128), &overlap("b", "Q8_0", 34, 160, "c", 192));
    check(&three(0, 64, 128), &overlap("a", "F32", 32, 128, "b", 128));
    check(
        &three(u64::MAX - 31, 32, 128),
        "tensor \"b\" has 34 bytes at 18446744073709551615, but the file has 256; \
         is the download complete?",
    );
    let gap = |name, wanted, after, at| {
        format!(
            "tensor \"{name}\" should start at {wanted}, right after \"{after}\", but starts at {at}; \
             the file is damaged or uses another layout for a type"
        )
    };
    check(&three(32, 128, 256), &gap("c", 224, "b", 256));
    check(&tensors(&[("a", 0, &[8], 32)], 128), &gap("a", 64, "the header", 96));
    // Directory order is not file order.
    assert!(Gguf::parse(&tensors(&[("a", 0, &[8], 64), ("b", 8, &[32], 0)], 96)).is_ok());
    check(&tensors(&[("a", 0, &[8], 32), ("b", 8, &[32], 0)], 96), &overlap("b", "Q8_0", 34, 96, "a", 128));
}

#[test]
fn whole_tensor_tails_are_counted() {
    // 256 weights of I2_S take 64 bytes and a tail of 32.
    let file = |next| tensors(&[("w", 36, &[128, 2], 0), ("n", 0, &[8], next)], 160);
    assert!(Gguf::parse(&file(96)).is_ok());
    let error = Gguf::parse(&file(64)).map(|_| ()).map_err(|error| error.to_string());
    assert!(error.is_err_and(|text| text.contains("type I2_S has 96 bytes")));
}
