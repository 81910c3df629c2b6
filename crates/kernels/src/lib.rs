//! nexaquant-kernels.
