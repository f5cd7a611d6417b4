//! The kernels that this program carries: their sources always, and compiled where nvcc was there when the
//! program was built.

/// The kernels of one source file, compiled.
#[derive(Debug)]
pub struct Module {
    /// The source file's name without its ending.
    pub name: &'static str,
    /// A fat binary: machine code for every one of [`architectures`] and PTX of the newest. Aligned to 16
    /// bytes.
    pub image: &'static [u8],
    /// Its kernels, by name.
    pub kernels: &'static [Kernel],
}

/// What must be known of a kernel to launch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Its name.
    pub name: &'static str,
    /// The bytes of its parameter block.
    pub parameter_bytes: usize,
}

/// A source file. Sources include only each other (and the host shim's header, on the host).
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its name, with its ending.
    pub name: &'static str,
    /// What is in it.
    pub text: &'static str,
}

include!(concat!(env!("OUT_DIR"), "/image.rs"));

/// The compiled kernels; none when there was no nvcc.
pub fn embedded() -> &'static [Module] {
    MODULES
}

/// The release of the toolkit that compiled [`embedded`], such as (13, 0).
pub fn toolkit() -> Option<(u32, u32)> {
    TOOLKIT
}

/// The architectures that [`embedded`] has machine code for, such as 80, oldest first.
pub fn architectures() -> &'static [u32] {
    ARCHITECTURES
}

/// The source files, by name.
pub fn sources() -> &'static [Source] {
    SOURCES
}

/// Those that are compiled.
pub fn units() -> impl Iterator<Item = Source> {
    SOURCES.iter().copied().filter(|source| source.name.ends_with(".cu"))
}

/// Those that are included by others.
pub fn headers() -> impl Iterator<Item = Source> {
    SOURCES.iter().copied().filter(|source| !source.name.ends_with(".cu"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_embedded_is_whole() {
        assert!(sources().iter().any(|source| source.name == "primitives.cuh"));
        assert_eq!(toolkit().is_some(), !architectures().is_empty());
        for module in embedded() {
            assert!(module.image.as_ptr().addr().is_multiple_of(16), "{}", module.name);
            assert_eq!(module.image[..4], [0x50, 0xed, 0x55, 0xba], "{}: no fat binary", module.name);
            assert!(sources().iter().any(|source| source.name.strip_suffix(".cu") == Some(module.name)));
            for kernel in module.kernels {
                assert!((1..=4096).contains(&kernel.parameter_bytes), "{kernel:?}");
            }
        }
    }

    #[test]
    fn no_two_kernels_have_the_same_name() {
        let mut names: Vec<_> = embedded().iter().flat_map(|module| module.kernels).map(|k| k.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
