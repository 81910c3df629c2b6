//! Files that are deleted, replaced or cut while their models run.

use super::*;
use crate::file::FileError;

/// A copy of a model in a directory of its own, on the disk of the checkout where that can be: a file system in memory
/// has no way past its cache.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let dir = tempfile::tempdir_in(target).or_else(|_| tempfile::tempdir()).unwrap();
    let file = dir.path().join("model.gguf");
    std::fs::copy(path(name), &file).unwrap();
    (dir, file)
}

fn load(file: &Path) -> Model {
    Model::load(file, LoadOptions::default()).unwrap()
}

#[cfg(unix)]
#[test]
fn a_deleted_or_replaced_file_goes_on_with_its_bytes() {
    // Before the model gets its place, or while it runs.
    for (replaced, early) in [(false, false), (false, true), (true, false), (true, true)] {
        let (_dir, file) = copy("alpha");
        let model = load(&file);
        let script = Script::new(&model);
        let lose = || {
            if replaced {
                let other = file.with_extension("other");
                std::fs::write(&other, vec![0x5a; 5 << 20]).unwrap();
                std::fs::rename(&other, &file).unwrap();
            } else {
                std::fs::remove_file(&file).unwrap();
            }
        };
        if early {
            lose();
        }
        let memory = memory(1200 << 10);
        let placed = memory.add("it", &model).unwrap();
        let mut pool = crew(2);
        let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
        let (first, rest) = script.0.split_first().unwrap();
        assert!(step(&mut session, &mut pool, first.0).unwrap() == first.1);
        if !early {
            lose();
        }
        for (tokens, wanted) in rest {
            assert!(step(&mut session, &mut pool, tokens).unwrap() == *wanted, "{replaced} {early}");
        }
        assert!(memory.stats().evictions > 0, "nothing streams");
        drop((session, placed));
        assert_empties(memory);
    }
}

/// That the step says that the file is damaged.
fn assert_truncated(error: &EvalError, session: &Session, tokens: usize) {
    let read = |e: &MemoryError| matches!(e, MemoryError::Read { .. });
    match error {
        EvalError::File(FileError::Truncated { .. }) => {}
        EvalError::Budget(inner) if read(inner) => {}
        _ => panic!("{error}"),
    }
    assert!(error.to_string().contains("truncated"), "{error}");
    assert_eq!(session.tokens().len(), tokens);
}

#[cfg(unix)]
#[test]
fn a_truncated_file_is_an_error_and_other_models_go_on() {
    let other = model("golden/llama_k_quants");
    let (original, script, other_script) = (path("alpha"), Script::new(&model("alpha")), Script::new(&other));
    let size = std::fs::metadata(original).unwrap().len();
    for direct in [false, true] {
        // Within the header; in the weights; inside the last sector.
        for left in [100, size / 3, size - size / 5, size - 4096, size - 1] {
            let (_dir, file) = copy("alpha");
            let model = load(&file);
            let (memory, hog) = if direct {
                let (memory, hog) = faults::large_blocks(&model, 1 << 20);
                (memory, Some(hog))
            } else {
                (memory(1600 << 10), None)
            };
            let io = if direct { Io::Direct } else { Io::Cached };
            let from = source(model.file(), io, direct).unwrap();
            let placed = memory.add_from("it", &model, from.into()).unwrap();
            let bystander = memory.add("other", &other).unwrap();
            let mut pool = crew(2);
            let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
            let mut other_session = Session::placed(&bystander, &pool, SESSION).unwrap();
            let (first, rest) = script.0.split_first().unwrap();
            assert!(step(&mut session, &mut pool, first.0).unwrap() == first.1);
            let cut = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
            cut.set_len(left).unwrap();
            for (tokens, wanted) in &other_script.0 {
                for (tokens, _) in rest {
                    let error = step(&mut session, &mut pool, tokens).unwrap_err();
                    assert_truncated(&error, &session, first.0.len());
                    assert_sound(&memory);
                }
                assert!(step(&mut other_session, &mut pool, tokens).unwrap() == *wanted, "{left} bytes left");
            }
            assert!(memory.stats().evictions > 0, "nothing streams");
            drop((session, other_session, placed, bystander, hog));
            assert_empties(memory);
        }
    }
}

/// Nothing has to be read any more, and yet nobody can say what was read before the file was cut.
#[cfg(unix)]
#[test]
fn a_truncated_file_is_an_error_also_when_all_of_it_is_in_memory() {
    let (_dir, file) = copy("golden/llama_tied");
    let model = load(&file);
    let memory = memory(4 << 20);
    let placed = memory.add("it", &model).unwrap();
    let mut pool = crew(1);
    let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
    Script::new(&model).check(&mut session, &mut pool);
    let tokens = session.tokens().len();
    let size = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(size - 1).unwrap();
    let error = step(&mut session, &mut pool, &[1]).unwrap_err();
    assert!(matches!(error, EvalError::File(FileError::Truncated { .. })), "{error}");
    assert_eq!(session.tokens().len(), tokens);
    drop((session, placed));
    assert_empties(memory);
}

/// `cp` writes a new model into the old file: the same file by its number, and yet another model.
#[cfg(unix)]
#[test]
fn a_file_that_was_overwritten_is_not_the_model_that_it_was() {
    let (_dir, file) = copy("golden/llama_tied");
    let old = load(&file);
    let memory = memory(4 << 20);
    let placed = memory.add("old", &old).unwrap();
    assert!(memory.add("again", &load(&file)).unwrap().is(&placed), "the same file");
    std::fs::copy(path("golden/llama_k_quants"), &file).unwrap();
    // Written in the same tick of the clock as it was before, or not.
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_modified(later).unwrap();
    let new = load(&file);
    let placed_new = memory.add("new", &new).unwrap();
    assert!(!placed_new.is(&placed), "a new model got the place of the old one");
    let mut pool = crew(1);
    let mut session = Session::placed(&placed_new, &pool, SESSION).unwrap();
    Script::new(&new).check(&mut session, &mut pool);
    drop((session, placed, placed_new));
    assert_empties(memory);
}
