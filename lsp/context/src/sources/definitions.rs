//! x
#[derive(Debug, Default)]
pub(crate) struct Cache {}
pub(crate) fn offer(
    _turn: &mut super::Turn<'_>,
    _query: &crate::query::Query<'_>,
    _documents: &crate::documents::Snapshot,
    _shared: &crate::context::Shared,
) {
}
