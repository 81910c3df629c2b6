//! Type numbers with two meanings are decided by the sizes in the file.

mod common;

use common::tensors;
use nexaquant_gguf::{Gguf, TensorType as T};

#[track_caller]
fn check(list: &[(&str, u32, &[u64], u64)], data: usize, expected: &[T]) {
    let gguf = Gguf::parse(&tensors(list, data)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(gguf.tensors.iter().map(|t| t.ty).collect::<Vec<_>>(), expected);
}

#[test]
fn id_42_by_the_next_offset() {
    // 1024 weights: 288 bytes in groups of 64, 272 in groups of 128.
    check(&[("a", 42, &[1024], 0), ("b", 0, &[8], 288)], 320, &[T::Q2_0, T::F32]);
    check(&[("a", 42, &[512, 4], 0), ("b", 0, &[8], 576)], 608, &[T::Q2_0, T::F32]);
    check(&[("a", 42, &[512, 4], 0), ("b", 0, &[8], 544)], 576, &[T::Q2_0_G128, T::F32]);
    // A row of 64 can only be groups of 64.
    check(&[("a", 42, &[64], 0)], 18, &[T::Q2_0]);
}

#[test]
fn id_42_alone_or_last() {
    check(&[("a", 42, &[512, 4], 0)], 576, &[T::Q2_0]);
    check(&[("a", 42, &[512, 4], 0)], 544, &[T::Q2_0_G128]);
    // Bytes after the last tensor do not matter, unless they would make the other meaning exact.
    check(&[("a", 42, &[512, 4], 0)], 5000, &[T::Q2_0]);
    check(&[("a", 42, &[512, 4], 0)], 560, &[T::Q2_0_G128]);
}

#[test]
fn id_42_hidden_by_padding_follows_the_others() {
    // 128 weights take 36 or 34 bytes, both 64 with padding.
    let small: (&str, u32, &[u64], u64) = ("a", 42, &[128], 0);
    check(&[small, ("b", 0, &[8], 64)], 96, &[T::Q2_0, T::F32]);
    check(
        &[small, ("b", 42, &[512, 4], 64), ("c", 0, &[8], 608)],
        640,
        &[T::Q2_0_G128, T::Q2_0_G128, T::F32],
    );
    check(&[small, ("b", 42, &[512, 4], 64), ("c", 0, &[8], 640)], 672, &[T::Q2_0, T::Q2_0, T::F32]);
}

#[test]
fn a_mixture_is_refused() {
    let list: [(&str, u32, &[u64], u64); 3] =
        [("a", 42, &[512, 4], 0), ("b", 42, &[512, 4], 576), ("c", 0, &[8], 576 + 544)];
    let error = Gguf::parse(&tensors(&list, 2000)).map(|_| ()).map_err(|error| error.to_string());
    let expected = "tensor \"b\" of type Q2_0 has 576 bytes at 736 and overlaps tensor \"c\", which starts at 1280; \
                    the file is damaged or uses another layout for this type";
    assert_eq!(error, Err(expected.to_owned()));
}

#[test]
fn a_truncated_file_is_called_truncated() {
    let list: [(&str, u32, &[u64], u64); 2] = [("a", 42, &[512, 4], 0), ("b", 42, &[512, 4], 544)];
    let error = Gguf::parse(&tensors(&list, 1000)).map(|_| ()).map_err(|error| error.to_string());
    let expected = "tensor \"b\" has 544 bytes at 672, but the file has 1128; is the download complete?";
    assert_eq!(error, Err(expected.to_owned()));
}

#[test]
fn id_39_by_size() {
    // 512 x 6: MXFP4 512/32*17*6 = 1632; TL2 256*6/3*5/8 + 256*6/2*4/8 = 320 + 384, padded to 704, plus 32.
    check(&[("a", 39, &[512, 6], 0), ("b", 0, &[8], 1632)], 1664, &[T::MXFP4, T::F32]);
    check(&[("a", 39, &[512, 6], 0), ("b", 0, &[8], 736)], 768, &[T::TL2, T::F32]);
    check(&[("a", 39, &[512, 6], 0)], 736, &[T::TL2]);
    check(&[("a", 39, &[512, 6], 0)], 9999, &[T::MXFP4]);
}
