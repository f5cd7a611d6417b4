//! Where the memory of syntax trees comes from.
//!
//! A tree has tens of thousands of small nodes, and all of them are given back at once when the last snapshot of a text
//! goes. The system's allocator (glibc) puts off to merge them, until another thread asks for memory, perhaps on the way of
//! a keystroke, and waits for it. Trees therefore have an allocator of their own. Other small pieces are still merged so.

use std::alloc::{Layout, handle_alloc_error};
use std::ffi::c_void;
use std::sync::Once;

use libmimalloc_sys::{mi_free, mi_malloc, mi_realloc, mi_zalloc};
use tree_sitter::{Allocator, Parser};

/// A parser. All are made here, so that no tree has its memory from elsewhere.
pub(crate) fn new_parser() -> Parser {
    static SET: Once = Once::new();
    SET.call_once(|| {
        let allocator = Allocator { malloc, calloc, realloc, free: mi_free };
        // SAFETY: the functions are one allocator's, with at least the alignment of malloc, and return null only where
        // nothing is asked for. No parser was made before, so that nothing of the library's is alive, and other threads
        // wait here until it is set.
        unsafe { tree_sitter::set_allocator(Some(allocator)) };
    });
    Parser::new()
}

unsafe extern "C" fn malloc(bytes: usize) -> *mut c_void {
    // SAFETY: any size may be asked for.
    not_null(unsafe { mi_malloc(bytes) }, bytes)
}

unsafe extern "C" fn calloc(count: usize, bytes: usize) -> *mut c_void {
    // More than there can be is refused by the allocator.
    let bytes = count.saturating_mul(bytes);
    // SAFETY: any size may be asked for.
    not_null(unsafe { mi_zalloc(bytes) }, bytes)
}

unsafe extern "C" fn realloc(memory: *mut c_void, bytes: usize) -> *mut c_void {
    // SAFETY: the library gives back what it had from these functions, or null, which is allowed.
    not_null(unsafe { mi_realloc(memory, bytes) }, bytes)
}

fn not_null(memory: *mut c_void, bytes: usize) -> *mut c_void {
    if memory.is_null() && bytes > 0 {
        handle_alloc_error(Layout::array::<u8>(bytes).unwrap_or(Layout::new::<u8>()));
    }
    memory
}
