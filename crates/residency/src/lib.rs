//! nexaquant-residency.
