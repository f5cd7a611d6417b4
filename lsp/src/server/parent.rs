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

/// Whether a process runs, where the system says so in `/proc`. Elsewhere a change of parent and the
/// end of stdin have to tell.
#[cfg(target_os = "linux")]
fn is_alive(id: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{id}/stat")) {
        // Ended, but not yet collected by its own parent. Its name may itself hold parentheses.
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with(['Z', 'X'])),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(not(target_os = "linux"))]
fn is_alive(_id: u32) -> bool {
    true
}
