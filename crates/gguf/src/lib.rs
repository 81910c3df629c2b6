//! nexaquant-gguf.
