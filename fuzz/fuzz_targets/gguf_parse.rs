//! Any bytes: the parser does not panic, and a file it accepts keeps every promise of `Gguf::parse` and survives
//! being written again. From the root of the repository, with the test files as seeds:
//!
//! ```sh
//! mkdir -p fuzz/corpus/gguf_parse
//! cargo +nightly fuzz run gguf_parse fuzz/corpus/gguf_parse crates/gguf/tests/fixtures -- \
//!     -max_total_time=60 -malloc_limit_mb=64
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use nexaquant_gguf::{Gguf, TensorType, write::Writer};

fuzz_target!(|file: &[u8]| {
    let Ok(gguf) = Gguf::parse(file) else { return };
    let mut places = Vec::new();
    for tensor in &gguf.tensors {
        assert_eq!(tensor.data(file).unwrap().len() as u64, tensor.bytes);
        assert_eq!(tensor.ty.bytes(&tensor.dims), Some(tensor.bytes));
        assert_eq!(tensor.row_len() * tensor.rows(), tensor.elements());
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        assert!((tensor.offset - gguf.data_offset).is_multiple_of(gguf.alignment));
        places.push((tensor.offset, tensor.offset + tensor.bytes));
    }
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0));

    // Padding to an alignment of megabytes would make every input slow.
    if gguf.alignment > 4096 {
        return;
    }
    let mut writer = Writer::new();
    writer.metadata = gguf.metadata.clone();
    writer.set_version(gguf.version).unwrap();
    for tensor in &gguf.tensors {
        assert_eq!(writer.tensor(tensor.name.as_str(), tensor.ty, &tensor.dims).unwrap(), tensor.bytes);
    }
    let mut out = writer.start(Vec::new()).unwrap();
    for tensor in &gguf.tensors {
        out.write(&tensor.name, tensor.data(file).unwrap()).unwrap();
    }
    let copy = out.finish().unwrap();
    let again = Gguf::parse(&copy).unwrap();
    // As text, where NaN equals itself.
    assert_eq!(format!("{:?}", again.metadata), format!("{:?}", gguf.metadata));
    assert_eq!(again.tensors.len(), gguf.tensors.len());
    for (new, old) in again.tensors.iter().zip(&gguf.tensors) {
        assert_eq!((&new.name, &new.dims), (&old.name, &old.dims));
        // The order of the data may change, and with it what decides a number that has two meanings.
        if TensorType::with_id(old.ty.id()).count() == 1 {
            assert_eq!(new.ty, old.ty);
            assert_eq!(new.data(&copy).unwrap(), old.data(file).unwrap());
        }
    }
});
