//! nexaquant-engine.
