//! Finds nvcc and compiles the kernels with it.
