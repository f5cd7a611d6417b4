//! `redstart/typingStats`: what typing cost and brought since the start.

use tower_lsp::jsonrpc::Result;

use crate::server::Server;
use crate::typing::totals::Totals;

/// The sums over all documents.
pub(in crate::server) async fn typing_stats(server: &Server) -> Result<Totals> {
    Ok(server.assistant.totals())
}
