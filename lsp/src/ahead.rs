//! Work before it is asked for: what comes after a suggestion on display, and the prompt after an edit.
//!
//! All of it is at the lowest priority, in slices so small that a keystroke hardly waits.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redstart_engine::request::Priority;
use redstart_plugins::GuestThread;
use redstart_syntax::caret::{Caret, IndentUnit};
use redstart_syntax::scope::{self, Scope};
use redstart_syntax::trigger::{self, Situation, Trigger};
use ropey::Rope;

use crate::assistant::{Assistant, NoSuggestion, Suggestion};
use crate::complete::Start;
use crate::generate::Prepared;
use crate::snapshot::{Snapshot, TextEdit};
use crate::typing::Typing;
use crate::typing::anchor::Anchor;
use crate::typing::flight::Flight;
use crate::typing::totals::Account;
use crate::window::normalized;

impl Assistant {
    /// Begins to generate what comes after a suggestion on display, so that it is there when that is accepted. Takes
    /// half a millisecond in a large file.
    pub fn continue_after(&self, typing: &Arc<Typing>, snapshot: &Snapshot, suggestion: &Suggestion) {
        if !self.works_ahead() {
            return;
        }
        let Ok(model) = self.ready() else { return };
        let Some((text, caret, lead)) = continuation(snapshot, suggestion) else {
            return tracing::trace!("nothing is welcome after the suggestion");
        };
        if typing.is_known(&text, &caret) {
            return;
        }
        let scope = scope::wants_block(&caret, text.known_tree());
        let anchor = Anchor::new(snapshot, suggestion.range.start, suggestion.range.len());
        let flight = Flight::new(anchor, lead, caret, scope, true, Account::new(&self.ledger));
        if typing.take_off_ahead(snapshot, Arc::clone(&flight)) {
            let start = Start { asked: Instant::now(), held: Duration::ZERO };
            self.fly(&flight, typing, &text, &model, Priority::WarmUp, start);
        }
    }

    /// Builds a prompt for a document that was opened and does not use it: it makes the plugin's code and data and the
    /// tokens of the text from elsewhere, with which all prompts for it begin, ready for the first request.
    pub async fn rehearse(&self, typing: &Arc<Typing>, snapshot: &Snapshot) {
        if !self.works_ahead() {
            return;
        }
        let Ok(model) = self.ready() else { return };
        let caret = Caret::new(&snapshot.text, 0, snapshot.language);
        let place = Arc::new(self.place(typing, snapshot, caret, Scope::SingleLine));
        // First beside everything else, then, when it is quick, on the thread that requests build theirs on.
        for priority in [Priority::WarmUp, Priority::Typing] {
            let of_job = (Arc::clone(&model), Arc::clone(&place));
            let build = move |thread: Option<&GuestThread<'_>>| Prepared::new(of_job.0, &of_job.1, thread);
            if let Err(error) = model.plugins.run(priority, build).await {
                tracing::debug!(error, "no prompt for a document that was opened");
            }
        }
    }

    /// Tokenizes these bytes of a document, on char boundaries, so that a prompt at a place in them need not.
    pub fn learn(&self, text: &Rope, bytes: Range<usize>) {
        if self.works_ahead()
            && let Ok(model) = self.ready()
        {
            model.assembler.learn(&normalized(text, bytes.start, bytes.end));
        }
    }

    /// Prefills the prompt for a caret at byte offset `caret`, so that a request there finds it in the cache.
    pub async fn prefill(&self, typing: &Arc<Typing>, snapshot: &Snapshot, caret: usize) {
        if !self.works_ahead() {
            return;
        }
        let Ok(model) = self.ready() else { return };
        let caret = Caret::new(&snapshot.text, caret, snapshot.language);
        if trigger::check(&caret, Trigger::Invoked).is_err() {
            return;
        }
        let scope = scope::wants_block(&caret, snapshot.known_tree());
        let place = self.place(typing, snapshot, caret, scope);
        let of_job = Arc::clone(&model);
        let submitted = model.plugins.run(Priority::WarmUp, move |thread| {
            let prepared = Prepared::new(of_job, &place, thread).map_err(NoSuggestion::Failed)?;
            prepared.submit(&place.snapshot, Priority::WarmUp, |params| {
                params.max_tokens = 0;
                params.begins_with.clear();
                params.top_logprobs = 0;
            })
        });
        match submitted.await {
            Ok(mut generation) => while generation.next().await.is_some() {},
            Err(reason) => tracing::debug!(%reason, "nothing is prefilled"),
        }
    }
}

/// The text as it would be with a suggestion accepted, the place in it where the next one is welcome, and what stands
/// between: the suggestion, perhaps a line end and the indentation that an editor puts after it.
fn continuation(snapshot: &Snapshot, suggestion: &Suggestion) -> Option<(Snapshot, Caret, String)> {
    let with = |lead: &str| {
        let mut text = snapshot.clone();
        text.edit(&TextEdit { bytes: suggestion.range.clone(), inserted: lead.to_owned() });
        let caret = Caret::new(&text.text, suggestion.range.start + lead.len(), text.language);
        (text, caret)
    };
    let lead = suggestion.text.clone();
    let (text, caret) = with(&lead);
    let is_line = !lead.contains('\n');
    if is_welcome(&text, &caret, is_line) {
        return Some((text, caret, lead));
    }
    if !caret.is_suffix_blank() {
        return None;
    }
    let lead = format!("{lead}{}{}", caret.line_ending().as_str(), indent_below(&caret));
    let (text, caret) = with(&lead);
    is_welcome(&text, &caret, false).then_some((text, caret, lead))
}

fn is_welcome(text: &Snapshot, caret: &Caret, just_accepted_line: bool) -> bool {
    let situation = Situation { path: Some(&text.path), just_accepted_line, ..Trigger::Automatic.into() };
    trigger::check(caret, situation).is_ok()
}

/// The indentation that editors give a line below the caret's.
fn indent_below(caret: &Caret) -> String {
    let unit = match caret.indent_unit() {
        IndentUnit::Tab => "\t".to_owned(),
        IndentUnit::Spaces(spaces) => " ".repeat(spaces),
    };
    let opens = caret.line_prefix().trim_end().ends_with([':', '{', '(', '[']);
    format!("{}{}", caret.indent(), if opens { &*unit } else { "" })
}
