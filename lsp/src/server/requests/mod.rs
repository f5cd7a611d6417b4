//! What the client asks of us.

pub(super) mod code_action;
pub(super) mod code_action_resolve;
pub(super) mod completion;
pub(super) mod diagnostic;
pub(super) mod execute_command;
pub(super) mod initialize;
pub(super) mod inline_completion;
pub(super) mod last_suggestion;
mod review;
pub(super) mod status;
pub(super) mod suggest;
pub(super) mod typing_stats;
pub(super) mod view_file_text;
