//! Watching the editor's process: a server whose editor died must not stay.

use std::time::Duration;

/// Returns when process `editor` has ended. Never returns when it cannot be seen in the first place,
/// as from inside a container.
pub(super) async fn ended(editor: u32, every: Duration) {
    if !is_alive(editor) {
        tracing::warn!("the editor's process {editor} cannot be seen and is not watched");
        return std::future::pending().await;
    }
    let parent = parent_id();
    while is_alive(editor) && (parent != Some(editor) || parent_id() == parent) {
        tokio::time::sleep(every).await;
    }
}

/// The process that started this one. It changes when that one ends, whoever takes its number.
#[cfg(unix)]
fn parent_id() -> Option<u32> {
    Some(std::os::unix::process::parent_id())
}

#[cfg(not(unix))]
fn parent_id() -> Option<u32> {
    None
}

#[cfg(unix)]
fn is_alive(id: u32) -> bool {
    let Some(pid) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw) else {
        return false;
    };
    // Not being allowed to signal a process proves that it exists.
    let exists = rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH);
    exists && !is_zombie(id)
}

/// Ended, but not yet collected by its own parent.
#[cfg(unix)]
fn is_zombie(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    // The name in parentheses may itself hold parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('Z'))
}

/// The end of stdin is what tells there.
#[cfg(not(unix))]
fn is_alive(_id: u32) -> bool {
    true
}
