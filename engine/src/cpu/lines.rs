//! Memory for weights: zeroed, in whole cache lines, on large pages where the system has them.

use memmap2::MmapMut;

use super::kernels::{LINE_BYTES, Line};
use crate::checkpoint::CheckpointError;

/// An array of cache lines.
pub(super) struct Lines {
    /// `None` for an empty array, which cannot be mapped.
    map: Option<MmapMut>,
    len: usize,
}

impl Lines {
    /// `len` lines of zeros.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub(super) fn zeroed(len: usize) -> Result<Self, CheckpointError> {
        let bytes = len * LINE_BYTES;
        let map = (len > 0).then(|| MmapMut::map_anon(bytes)).transpose();
        let map =
            map.map_err(|detail| CheckpointError::NoMemory { wanted_mb: bytes.div_ceil(1 << 20), detail })?;
        // Streaming through small pages stalls at the end of every one. Only advice: without it, slower.
        #[cfg(target_os = "linux")]
        if let Some(map) = &map {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, len })
    }

    pub(super) fn as_slice(&self) -> &[Line] {
        let Some(map) = &self.map else { return &[] };
        // SAFETY: the map has `len` lines, is aligned to a page, and any bytes are a Line.
        unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Line] {
        let Some(map) = &mut self.map else { return &mut [] };
        // SAFETY: as in `as_slice`, and the map is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.len) }
    }
}

/// The lines as bytes.
pub(super) fn as_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a Line is LINE_BYTES initialized bytes without padding (its size is its alignment).
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// The lines as bytes to write.
pub(super) fn as_bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as in `as_bytes`, and any byte is a valid one.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_start_as_zeros_and_keep_what_is_written() {
        for len in [0, 1, 100_000] {
            let mut lines = Lines::zeroed(len).unwrap();
            assert!(lines.as_slice().iter().all(|line| line.0 == [0; LINE_BYTES]));
            as_bytes_mut(lines.as_mut_slice()).fill(7);
            assert_eq!(as_bytes(lines.as_slice()).len(), len * LINE_BYTES);
            assert!(lines.as_slice().iter().all(|line| line.0 == [7; LINE_BYTES]));
        }
    }
}
