//! Standard input and output without a thread in between, where the system allows it.
//!
//! The runtime's own stdin and stdout hand every read and write to another thread and back, which a keystroke
//! would pay twice. Editors connect a server by pipes or by pairs of sockets; both can be waited for directly.

use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes from the editor.
pub(super) type Input = Box<dyn AsyncRead + Unpin + Send>;
/// Bytes to the editor.
pub(super) type Output = Box<dyn AsyncWrite + Unpin + Send>;

/// What this process reads. To be called within the runtime.
pub(super) fn input() -> Input {
    #[cfg(unix)]
    if let Some(input) = unix::input() {
        return input;
    }
    Box::new(tokio::io::stdin())
}

/// What this process writes. To be called within the runtime. Nothing else may write to standard output
/// afterwards.
pub(super) fn output() -> Output {
    #[cfg(unix)]
    if let Some(output) = unix::output() {
        return output;
    }
    Box::new(tokio::io::stdout())
}

#[cfg(unix)]
mod unix {
    use std::io;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use tokio::net::unix::pipe;

    use super::{Input, Output};

    /// `None` when standard input is neither a pipe nor a socket: a terminal, a file.
    pub(super) fn input() -> Option<Input> {
        let fd = || io::stdin().as_fd().try_clone_to_owned().ok();
        match pipe::Receiver::from_owned_fd(fd()?) {
            Ok(pipe) => Some(Box::new(pipe)),
            Err(_) => Some(Box::new(socket(fd()?)?)),
        }
    }

    pub(super) fn output() -> Option<Output> {
        let fd = || io::stdout().as_fd().try_clone_to_owned().ok();
        match pipe::Sender::from_owned_fd(fd()?) {
            Ok(pipe) => Some(Box::new(pipe)),
            Err(_) => Some(Box::new(socket(fd()?)?)),
        }
    }

    fn socket(fd: OwnedFd) -> Option<tokio::net::UnixStream> {
        let socket = UnixStream::from(fd);
        // Says whether it is one.
        socket.local_addr().ok()?;
        socket.set_nonblocking(true).ok()?;
        tokio::net::UnixStream::from_std(socket).ok()
    }
}
