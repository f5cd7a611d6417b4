//! To be written.

use crate::Case;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    Vec::new()
}
