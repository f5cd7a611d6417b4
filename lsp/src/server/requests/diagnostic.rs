//! `textDocument/diagnostic`

use tower_lsp::gen_lsp_types::{
    DocumentDiagnosticParams, DocumentDiagnosticReport, FullDocumentDiagnosticReport,
    RelatedFullDocumentDiagnosticReport, RelatedUnchangedDocumentDiagnosticReport,
    UnchangedDocumentDiagnosticReport,
};
use tower_lsp::jsonrpc::Result;

use crate::server::Server;
use crate::server::convert::diagnostic as to_diagnostic;
use crate::server::sync::lock;

/// The findings of a document, for clients that ask.
pub(in crate::server) async fn diagnostic(
    server: &Server,
    params: DocumentDiagnosticParams,
) -> Result<DocumentDiagnosticReport> {
    let uri = &params.text_document.uri.0;
    let workspace = lock(&server.workspace);
    let result_id = workspace.findings.revision().to_string();
    if params.previous_result_id.as_deref() == Some(result_id.as_str()) {
        let unchanged_document_diagnostic_report = UnchangedDocumentDiagnosticReport { result_id };
        return Ok(DocumentDiagnosticReport::RelatedUnchangedDocumentDiagnosticReport(
            RelatedUnchangedDocumentDiagnosticReport {
                related_documents: None,
                unchanged_document_diagnostic_report,
            },
        ));
    }
    let items = workspace.documents.get(uri).map_or_else(Vec::new, |document| {
        let text = &document.snapshot().text;
        let findings = workspace.findings.of(uri).iter();
        findings.map(|held| to_diagnostic(held, text, server.profile().encoding)).collect()
    });
    Ok(DocumentDiagnosticReport::RelatedFullDocumentDiagnosticReport(RelatedFullDocumentDiagnosticReport {
        related_documents: None,
        full_document_diagnostic_report: FullDocumentDiagnosticReport { result_id: Some(result_id), items },
    }))
}
