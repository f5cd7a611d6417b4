//! How long a thread may compute before others that want its processor get it.

/// Asks for the longest time slices for the calling thread. Its share of the processor stays what it is, but a thread that
/// wakes up while this one computes, such as the one that answers a keystroke or the editor's own, has the
/// earlier deadline and runs at once: Linux since 6.12. With equal slices it would wait for the
/// end of this thread's, which is milliseconds. Elsewhere nothing changes.
pub(super) fn lengthen() {
    if let Err(error) = scheduler::lengthen() {
        tracing::debug!(%error, "a thread keeps the slices that every thread has");
    }
}

#[cfg(target_os = "linux")]
mod scheduler {
    use std::io;
    use std::mem::size_of;

    /// The longest that Linux grants, in nanoseconds.
    const LONGEST: u64 = 100_000_000;

    const CALLING_THREAD: libc::pid_t = 0;
    const NO_FLAGS: libc::c_uint = 0;

    pub(super) fn lengthen() -> io::Result<()> {
        let mut attributes = attributes()?;
        // Other policies were chosen by somebody, and mean something else by the runtime.
        if attributes.sched_policy != libc::SCHED_OTHER as u32 {
            return Ok(());
        }
        attributes.sched_runtime = LONGEST;
        // SAFETY: the kernel reads as many bytes as the structure says it has.
        let result = unsafe {
            libc::syscall(libc::SYS_sched_setattr, CALLING_THREAD, &raw const attributes, NO_FLAGS)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What the scheduler knows of the calling thread.
    pub(super) fn attributes() -> io::Result<libc::sched_attr> {
        // SAFETY: numbers only, for which zero is a value.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let bytes = size_of::<libc::sched_attr>() as libc::c_uint;
        // SAFETY: the kernel writes no more than the number of bytes it is told, and the structure is that large.
        let result = unsafe {
            libc::syscall(libc::SYS_sched_getattr, CALLING_THREAD, &raw mut attributes, bytes, NO_FLAGS)
        };
        if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn only_the_slice_changes() {
            // On a thread of its own: the slice would stay with the test's.
            let of_thread = || {
                let before = attributes().unwrap();
                lengthen().unwrap();
                (before, attributes().unwrap())
            };
            let (before, after) = std::thread::spawn(of_thread).join().unwrap();
            assert_eq!((after.sched_policy, after.sched_nice), (before.sched_policy, before.sched_nice));
            // Older kernels do not say how long a slice is.
            assert!(after.sched_runtime == before.sched_runtime || after.sched_runtime == LONGEST);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod scheduler {
    pub(super) fn lengthen() -> std::io::Result<()> {
        Ok(())
    }
}
