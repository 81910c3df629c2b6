//! Sizes of the types that Python's package does not know, and of shapes that are not possible.
//! The upstream types are compared with its table in `python.rs`.

use nexaquant_gguf::TensorType as T;

fn check(ty: T, dims: &[u64], bytes: u64) {
    assert_eq!(ty.bytes(dims), Some(bytes), "{ty} {dims:?}");
}

#[test]
fn sizes_of_other_programs_types() {
    // n/4 and the tail, once per tensor whatever its rows.
    check(T::I2_S, &[2560, 6912], 2560 * 6912 / 4 + 32);
    check(T::I2_S, &[64, 2], 64);
    check(T::TL1, &[2560, 3], 2560 * 3 / 4 + 32);
    // (2560-256)*4/3*5/8 = 1920, 256*4/2*4/8 = 256: 2176 is a multiple of 32.
    check(T::TL2, &[2560, 4], 2176 + 32);
    // (352-256)*1/3*5/8 = 20, 256*1/2*4/8 = 64: 84, padded to 96.
    check(T::TL2, &[352], 96 + 32);
    check(T::Q1_0, &[2048, 3], 2048 / 128 * 18 * 3);
    check(T::Q2_0, &[2048, 3], 2048 / 64 * 18 * 3);
    check(T::Q2_0_G128, &[2048, 3], 2048 / 128 * 34 * 3);
    check(T::PQ2_0, &[2048, 3], 2048 / 128 * 34 * 3);
    check(T::PTQ1_0, &[2048, 3], 2048 / 128 * 28 * 3);
    check(T::NVFP4, &[2048, 3], 2048 / 64 * 36 * 3);
    // A scale at the head of every row.
    check(T::IQ1_BN, &[2560, 3], (2 + 2560 / 64 * 13) * 3);
    check(T::IQ2_BN, &[2560, 3], (4 + 2560 / 4) * 3);
    check(T::IQ2_BN_R4, &[2560, 4], (4 + 2560 / 4) * 4);
}

#[test]
fn numbers_and_names() {
    let named = [
        ("I2_S", 36),
        ("TL1", 38),
        ("MXFP4", 39),
        ("TL2", 39),
        ("NVFP4", 40),
        ("Q1_0", 41),
        ("Q2_0", 42),
        ("Q2_0_G128", 42),
        ("IQ1_BN", 134),
        ("IQ2_BN", 135),
        ("PQ2_0", 142),
        ("PTQ1_0", 143),
        ("IQ2_BN_R4", 335),
    ];
    for (name, id) in named {
        assert_eq!(T::by_name(name).map(T::id), Some(id), "{name}");
    }
    assert_eq!(T::by_name("q4_k"), None);
    for (i, ty) in T::ALL.iter().enumerate() {
        assert_eq!(T::by_name(ty.name()), Some(*ty));
        assert!(i == 0 || T::ALL[i - 1].id() <= ty.id(), "{ty} is out of order");
        assert!(T::with_id(ty.id()).any(|other| other == *ty));
    }
    assert_eq!(T::with_id(42).map(T::name).collect::<Vec<_>>(), ["Q2_0", "Q2_0_G128"]);
    assert_eq!(T::with_id(39).map(T::name).collect::<Vec<_>>(), ["MXFP4", "TL2"]);
    assert_eq!(T::with_id(37).next(), None);
}

#[test]
fn impossible_shapes_have_no_size() {
    for dims in
        [&[][..], &[0], &[32, 0], &[32, 1, 1, 1, 1], &[31], &[33, 32], &[1 << 32, 1 << 32], &[1 << 63]]
    {
        assert_eq!(T::Q8_0.bytes(dims), None, "{dims:?}");
    }
    assert_eq!(T::TL2.bytes(&[128, 4]), None);
    assert_eq!(T::I2_S.bytes(&[64, 3]), None);
    assert_eq!(T::F64.bytes(&[1 << 60]), None, "2^63 bytes");
    assert_eq!(T::F32.bytes(&[1 << 60]), Some(1 << 62));
}

#[test]
fn of_two_meanings_upstreams_is_larger() {
    for (first, second) in [(T::MXFP4, T::TL2), (T::Q2_0, T::Q2_0_G128)] {
        for row in [256, 384, 2560, 1 << 20] {
            for rows in [1, 2, 3, 1000] {
                assert!(
                    first.bytes(&[row, rows]) > second.bytes(&[row, rows]),
                    "{first} {second} {row} {rows}"
                );
            }
        }
    }
}
