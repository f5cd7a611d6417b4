//! `window/workDoneProgress/cancel`

use tower_lsp::gen_lsp_types::WorkDoneProgressCancelParams;

use crate::server::Server;

/// The user pressed cancel on a progress message.
pub(in crate::server) async fn work_done_progress_cancel(
    server: &Server,
    params: WorkDoneProgressCancelParams,
) {
    server.progress.cancel(&params.token);
}
