//! Work-done progress: what takes longer than a moment is seen, and can be stopped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::sync::oneshot;
use tower_lsp::Client;
use tower_lsp::gen_lsp_types::{
    ProgressNotification, ProgressParams, ProgressToken, WorkDoneProgressBegin, WorkDoneProgressEnd,
    WorkDoneProgressReport,
};

use super::outbox::Outbox;
use super::sync::{Background, lock};

/// Starts progress and receives the user's wish to stop it.
pub(super) struct ProgressBoard {
    client: Client,
    outbox: Outbox,
    background: Background,
    cancels: Arc<Mutex<HashMap<ProgressToken, oneshot::Sender<()>>>>,
    started: Mutex<u64>,
}

/// How the client comes to know of a piece of work.
pub(super) enum Channel {
    /// Under a token that the client sent with its request.
    Requested(ProgressToken),
    /// Under one that we make, which the client has to agree to.
    Offered,
    /// Not at all.
    Silent,
}

impl ProgressBoard {
    pub(super) fn new(client: Client, outbox: Outbox) -> Self {
        let background = Background::default();
        Self { client, outbox, background, cancels: Arc::default(), started: Mutex::new(0) }
    }

    /// Starts progress. The second result resolves when the user cancels; never if they cannot.
    /// Work need not wait for the client to agree to a token: what is reported meanwhile shows then.
    pub(super) fn start(
        &self,
        channel: Channel,
        title: &str,
        message: &str,
        cancellable: bool,
    ) -> (Progress, oneshot::Receiver<()>) {
        let (cancel, cancelled) = oneshot::channel();
        let token = match &channel {
            Channel::Requested(token) => token.clone(),
            Channel::Offered | Channel::Silent => {
                let mut started = lock(&self.started);
                *started += 1;
                // Zed takes only strings.
                ProgressToken::String(format!("redstart/{started}"))
            }
        };
        lock(&self.cancels).insert(token.clone(), cancel);
        let progress = Progress {
            shared: Arc::new(Shared {
                outbox: self.outbox.clone(),
                token: token.clone(),
                title: title.to_owned(),
                cancellable,
                state: Mutex::new(State::Unagreed { message: message.to_owned() }),
            }),
            cancels: Arc::clone(&self.cancels),
        };
        match channel {
            Channel::Requested(_) => progress.shared.begin(),
            Channel::Offered => {
                let client = self.client.clone();
                let shared = Arc::clone(&progress.shared);
                self.background.spawn(async move {
                    // A client that refuses is not told; that is its wish.
                    if client.create_work_done_progress(token).await.is_ok() {
                        shared.begin();
                    }
                });
            }
            Channel::Silent => {}
        }
        (progress, cancelled)
    }

    /// The user cancels.
    pub(super) fn cancel(&self, token: &ProgressToken) {
        if let Some(cancel) = lock(&self.cancels).remove(token) {
            // Work that has just ended is no longer listening.
            let _ = cancel.send(());
        }
    }
}

/// A piece of work under way. Dropping it ends it for the client too.
pub(super) struct Progress {
    shared: Arc<Shared>,
    cancels: Arc<Mutex<HashMap<ProgressToken, oneshot::Sender<()>>>>,
}

struct Shared {
    outbox: Outbox,
    token: ProgressToken,
    title: String,
    cancellable: bool,
    state: Mutex<State>,
}

enum State {
    /// Waiting for the client to agree to the token.
    Unagreed {
        message: String,
    },
    Shown,
    Ended,
}

impl Progress {
    /// Says where the work stands.
    pub(super) fn report(&self, message: &str) {
        match &mut *lock(&self.shared.state) {
            State::Unagreed { message: latest } => message.clone_into(latest),
            State::Shown => self.shared.send(&WorkDoneProgressReport {
                cancellable: Some(self.shared.cancellable),
                message: Some(message.to_owned()),
                percentage: None,
            }),
            State::Ended => {}
        }
    }

    /// Ends with a last word.
    pub(super) fn end(self, message: &str) {
        self.shared.end(Some(message.to_owned()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        lock(&self.cancels).remove(&self.shared.token);
        self.shared.end(None);
    }
}

impl Shared {
    fn begin(&self) {
        let mut state = lock(&self.state);
        if let State::Unagreed { message } = &*state {
            self.send(&WorkDoneProgressBegin {
                title: self.title.clone(),
                cancellable: Some(self.cancellable),
                message: Some(message.clone()),
                percentage: None,
            });
            *state = State::Shown;
        }
    }

    fn end(&self, message: Option<String>) {
        let mut state = lock(&self.state);
        if let State::Shown = *state {
            self.send(&WorkDoneProgressEnd { message });
        }
        *state = State::Ended;
    }

    fn send(&self, value: &impl serde::Serialize) {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.outbox.notify::<ProgressNotification>(ProgressParams { token: self.token.clone(), value });
    }
}
