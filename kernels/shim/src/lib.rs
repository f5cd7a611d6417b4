//! Runs the CUDA kernels as plain C++ on the host.
