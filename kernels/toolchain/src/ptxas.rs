//! Reads what the assembler says about a kernel (`ptxas -v`).

use std::collections::BTreeMap;

/// What a kernel takes on one architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes a thread writes to memory because registers ran out, its calls included.
    pub spill_stores: u32,
    /// Bytes it reads back.
    pub spill_loads: u32,
    /// Bytes of a thread's stack frame.
    pub stack: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
}

/// The kernels of a log of `ptxas -v`, by name.
pub fn resources(log: &str) -> BTreeMap<String, Resources> {
    let mut kernels: BTreeMap<String, Resources> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split('\'').next().map(str::to_owned);
            continue;
        }
        let Some(kernel) = current.as_ref().map(|name| kernels.entry(name.clone()).or_default()) else {
            continue;
        };
        // Functions that were not inlined have lines of their own after the kernel that calls them.
        if line.contains("bytes stack frame") {
            kernel.stack += number_before(line, "bytes stack frame").unwrap_or(0);
            kernel.spill_stores += number_before(line, "bytes spill stores").unwrap_or(0);
            kernel.spill_loads += number_before(line, "bytes spill loads").unwrap_or(0);
        } else if let Some(registers) = number_before(line, "registers") {
            kernel.registers = kernel.registers.max(registers);
            kernel.shared = kernel.shared.max(number_before(line, "bytes smem").unwrap_or(0));
        }
    }
    kernels
}

/// The lines of a log that complain, as compiler (`a.cu(3): warning #177-D: ...`) and assembler
/// (`ptxas warning : ...`) do.
pub fn warnings(log: &str) -> Vec<String> {
    let complains = |line: &&str| line.contains("): warning") || line.contains("warning :");
    log.lines().filter(complains).map(|line| line.trim().to_owned()).collect()
}

/// `24` of `..., 24 bytes smem, ...` for `bytes smem`.
fn number_before(line: &str, what: &str) -> Option<u32> {
    line[..line.find(what)?].split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded with nvcc 13.0.88.
    const SAMPLE: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'big_200' for 'sm_80'
ptxas info    : Function properties for big_200
    1872 bytes stack frame, 3064 bytes spill stores, 4304 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 1872 bytes cumulative stack size, 800 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 91.002 ms
ptxas info    : Compiling entry function 'small_8' for 'sm_80'
ptxas info    : Function properties for small_8
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 39 registers, used 1 barriers, 32 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 10.804 ms
ptxas info    : Compiling entry function 'plain' for 'sm_80'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 360 bytes cmem[0]
";

    #[test]
    fn a_recorded_log_is_read() {
        let kernels = resources(SAMPLE);
        assert_eq!(kernels.len(), 3);
        assert_eq!(
            kernels["big_200"],
            Resources { registers: 64, spill_stores: 3064, spill_loads: 4304, stack: 1872, shared: 800 }
        );
        assert_eq!(kernels["small_8"], Resources { registers: 39, shared: 32, ..Resources::default() });
        assert_eq!(kernels["plain"], Resources { registers: 12, ..Resources::default() });
        assert!(warnings(SAMPLE).is_empty());
    }

    #[test]
    fn warnings_are_kept() {
        let compiler = "a.cu(3): warning #177-D: variable \"x\" was declared but never referenced";
        let assembler = "ptxas warning : Registers are spilled to local memory in function 'a'";
        let remark = "Remark: The warnings can be suppressed with \"-diag-suppress <warning-number>\"";
        assert_eq!(warnings(&[compiler, remark, assembler].join("\n\n")), [compiler, assembler]);
    }
}
