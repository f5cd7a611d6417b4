//! Plays a recording: does what the person did at the time they did it, as an editor with its habits, and
//! notes when suggestions came.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::buffer::{Buffer, Change};
use super::echo::Echo;
use super::editors::Editor;
use super::recording::{Action, Part, Recording, difference};
use super::tally::{Account, Tally};

/// How long the last answers may take to come.
const LAST_ANSWERS: Duration = Duration::from_secs(30);
/// Steps looked ahead to see whether a suggestion is what the person goes on to type.
const LOOK_AHEAD: usize = 400;

/// A request under way: its answer, with everything that is to be known of it.
pub(super) type Answering = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// Who is asked for suggestions.
pub(super) trait Suggester {
    /// A file is opened.
    async fn open(&mut self, recording: &Recording) -> anyhow::Result<()>;
    /// A text was edited.
    async fn edit(&mut self, change: Change) -> anyhow::Result<()>;
    /// Asks for a suggestion at the caret, and says that the answer to the request before is no longer wanted
    /// where `cancel` is set.
    async fn ask(&mut self, buffer: &Buffer, cancel: bool) -> anyhow::Result<Answering>;
    /// A suggestion was accepted whole: runs the command that came with it.
    async fn accepted(&mut self, command: Value) -> anyhow::Result<()>;
    /// The file is closed. Returns the text that the suggester has of it, where it keeps one.
    async fn close(&mut self) -> anyhow::Result<Option<String>>;
}

/// An answer to a request.
pub(super) struct Answered {
    pub(super) received: std::time::Instant,
    /// `Ok(None)`: nothing to suggest. `Err`: an error other than that of a cancelled request.
    pub(super) item: Result<Option<Item>, String>,
    /// What the suggester says of how the suggestion came about.
    pub(super) account: Option<Account>,
}

/// A suggestion.
pub(super) struct Item {
    /// The range it replaces as an LSP range in UTF-8 bytes; `null` is the caret.
    pub(super) range: Value,
    /// What it puts there.
    pub(super) text: String,
    /// To run when it is accepted; `null` if there is none.
    pub(super) command: Value,
}

/// A request whose answer has not come.
struct Outstanding {
    serial: u64,
    pressed: Instant,
    sent: Instant,
    /// The text around the caret as it was, to place the item.
    buffer: Buffer,
    /// What was typed at the caret since; `None` once something else happened.
    since: Option<String>,
}

/// A suggestion on display: the text after the caret.
struct Ghost {
    text: String,
    command: Value,
}

/// How to play.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    pub(super) editor: Editor,
    /// 2 is twice as fast as recorded.
    pub(super) speed: f64,
}

/// Plays `recording` to `target`; `on_step` hears of every step done.
///
/// # Errors
/// When the target fails, or its text is not the recording's final text at the end.
pub(super) async fn play(
    recording: &Recording,
    target: &mut impl Suggester,
    manner: Manner,
    on_step: impl Fn(),
) -> anyhow::Result<Tally> {
    target.open(recording).await?;
    let (answers_in, answers) = mpsc::unbounded_channel();
    let mut player = Player {
        target,
        manner,
        buffer: recording.start.clone(),
        outstanding: VecDeque::new(),
        next_serial: 0,
        newest_shown: None,
        ghost: None,
        due: None,
        answers_in,
        answers,
        tally: Tally::default(),
        echo: Echo::start().context("opening a pipe")?,
    };
    player.run(recording, on_step).await.with_context(|| format!("replaying {}", recording.name))?;
    Ok(player.tally)
}

struct Player<'a, Target> {
    target: &'a mut Target,
    manner: Manner,
    buffer: Buffer,
    outstanding: VecDeque<Outstanding>,
    next_serial: u64,
    /// Serial of the newest request that was answered.
    newest_shown: Option<u64>,
    ghost: Option<Ghost>,
    /// When to ask, and for a key pressed when.
    due: Option<(Instant, Instant)>,
    answers_in: mpsc::UnboundedSender<(u64, Answered)>,
    answers: mpsc::UnboundedReceiver<(u64, Answered)>,
    tally: Tally,
    echo: Echo,
}

impl<Target: Suggester> Player<'_, Target> {
    async fn run(&mut self, recording: &Recording, on_step: impl Fn()) -> anyhow::Result<()> {
        let mut clock = Instant::now();
        let mut at = 0;
        while let Some(step) = recording.steps.get(at) {
            clock += step.wait.div_f64(self.manner.speed);
            self.tally.typing += step.wait;
            self.wait_until(clock).await?;
            at += 1;
            on_step();
            if let Action::Accept(part) = step.action {
                let skipped = self.accept(part, recording, at).await?;
                (0..skipped).for_each(|_| on_step());
                at += skipped;
            } else {
                self.press(&step.action).await?;
            }
        }
        self.last_answers().await?;
        self.check_text(recording).await
    }

    /// Takes answers, and asks when that is due, until a moment comes.
    async fn wait_until(&mut self, moment: Instant) -> anyhow::Result<()> {
        loop {
            let due = self.due.filter(|(due, _)| *due < moment);
            let wake = due.map_or(moment, |(due, _)| due);
            tokio::select! {
                // An answer that is there is on display before the next key.
                biased;
                Some((serial, answered)) = self.answers.recv() => self.take(serial, answered),
                () = tokio::time::sleep_until(wake) => match due {
                    Some((_, pressed)) => {
                        self.due = None;
                        self.ask(pressed).await?;
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    async fn last_answers(&mut self) -> anyhow::Result<()> {
        let patience = Instant::now() + LAST_ANSWERS;
        while self.due.is_some() || !self.outstanding.is_empty() {
            if Instant::now() > patience {
                bail!("{} requests were not answered within {LAST_ANSWERS:?}", self.outstanding.len());
            }
            self.wait_until(Instant::now() + Duration::from_millis(20)).await?;
        }
        Ok(())
    }

    /// A key, a move of the caret or an edit elsewhere.
    async fn press(&mut self, action: &Action) -> anyhow::Result<()> {
        self.tally.echo(self.echo.round_trip()?);
        self.tally.keys += 1;
        let change = action.apply(&mut self.buffer).map_err(anyhow::Error::msg)?;
        // What the editor does with the key itself is its own affair.
        let pressed = Instant::now();
        self.note_typed(if let Action::Insert(text) = action { Some(text) } else { None });
        let edited = change.is_some();
        if let Some(change) = change {
            self.target.edit(change).await?;
        }
        self.after(pressed, edited).await
    }

    /// Asks for a suggestion, now or when nothing has happened for a while.
    async fn after(&mut self, pressed: Instant, edited: bool) -> anyhow::Result<()> {
        let editor = self.manner.editor;
        if !edited && !editor.asks_on_moves() {
            self.due = None;
            return Ok(());
        }
        if editor.debounce().is_zero() {
            return self.ask(pressed).await;
        }
        self.due = Some((pressed + editor.debounce().div_f64(self.manner.speed), pressed));
        Ok(())
    }

    /// What was typed shortens the suggestion on display and those to come, or makes them void.
    fn note_typed(&mut self, typed: Option<&str>) {
        for request in &mut self.outstanding {
            match (&mut request.since, typed) {
                (Some(since), Some(typed)) => since.push_str(typed),
                (since, _) => *since = None,
            }
        }
        let stays = self.manner.editor.types_through();
        self.ghost = self.ghost.take().filter(|_| stays).and_then(|ghost| {
            let rest = ghost.text.strip_prefix(typed?)?;
            (!rest.is_empty()).then(|| Ghost { text: rest.to_owned(), command: ghost.command.clone() })
        });
    }

    async fn ask(&mut self, pressed: Instant) -> anyhow::Result<()> {
        let newest = self.outstanding.back().map(|request| request.serial);
        let unanswered = newest.is_some_and(|serial| serial + 1 == self.next_serial);
        let cancel = self.manner.editor.cancels() && unanswered;
        self.tally.requests += 1;
        self.tally.cancelled_by_editor += usize::from(cancel);
        let sent = Instant::now();
        let answering = self.target.ask(&self.buffer, cancel).await?;
        let serial = self.next_serial;
        self.next_serial += 1;
        self.outstanding.push_back(Outstanding {
            serial,
            pressed,
            sent,
            buffer: self.buffer.clone(),
            since: Some(String::new()),
        });
        let answers = self.answers_in.clone();
        tokio::spawn(async move {
            // Nobody listens once the replay has failed.
            let _ = answers.send((serial, answering.await));
        });
        Ok(())
    }

    fn take(&mut self, serial: u64, answered: Answered) {
        let Some(index) = self.outstanding.iter().position(|request| request.serial == serial) else {
            return;
        };
        let Some(request) = self.outstanding.remove(index) else { return };
        let item = match answered.item {
            Ok(Some(item)) => item,
            Ok(None) => {
                self.tally.nothing += 1;
                return;
            }
            Err(error) => {
                self.tally.errors.push(error);
                return;
            }
        };
        let milliseconds =
            |from: Instant| answered.received.saturating_duration_since(from.into_std()).as_secs_f64() * 1e3;
        self.tally.answer(milliseconds(request.pressed), milliseconds(request.sent), answered.account);
        if self.newest_shown.is_none_or(|newest| newest < serial) {
            self.newest_shown = Some(serial);
            if let Some(ghost) = ghost(&request, item, self.manner.editor) {
                self.ghost = Some(ghost);
            }
        }
    }

    /// Accepts the suggestion, or that part of it, if the steps from `next` on would type the same. Returns
    /// how many of them are not needed then.
    async fn accept(&mut self, part: Part, recording: &Recording, next: usize) -> anyhow::Result<usize> {
        self.tally.looks += 1;
        let Some(ghost) = &self.ghost else { return Ok(0) };
        let piece = piece(&ghost.text, part).to_owned();
        let Some(skipped) = steps_that_type(&piece, &self.buffer, &recording.steps[next..]) else {
            return Ok(0);
        };
        let command = if piece.len() == ghost.text.len() { ghost.command.clone() } else { Value::Null };
        self.tally.accepts += 1;
        self.tally.accepted_characters += piece.chars().count();
        let pressed = Instant::now();
        let change = self.buffer.insert(&piece);
        self.note_typed(Some(&piece));
        self.target.edit(change).await?;
        if !command.is_null() {
            self.target.accepted(command).await?;
        }
        self.after(pressed, true).await?;
        Ok(skipped)
    }

    async fn check_text(&mut self, recording: &Recording) -> anyhow::Result<()> {
        if let Some(difference) = difference(&self.buffer.own_text(), &recording.final_text) {
            bail!("the editor's text is not the recording's final_text: {difference}");
        }
        if let Some(theirs) = self.target.close().await?
            && let Some(difference) = difference(&theirs, &self.buffer.text().to_string())
        {
            bail!("the server's copy of the file is not the editor's: {difference}");
        }
        Ok(())
    }
}

/// What an answer puts on display, if it still fits what was typed since it was asked for and replaces
/// nothing to the right of the caret.
fn ghost(request: &Outstanding, item: Item, editor: Editor) -> Option<Ghost> {
    let since = request.since.as_deref()?;
    if !since.is_empty() && !editor.types_through() {
        return None;
    }
    let (caret, text) = (request.buffer.caret(), request.buffer.text());
    let (start, end) = match &item.range {
        Value::Null => (caret, caret),
        range => (request.buffer.byte_of(&range["start"])?, request.buffer.byte_of(&range["end"])?),
    };
    if start > caret || end != caret {
        return None;
    }
    let repeated = text.byte_slice(start..caret).to_string();
    let rest = item.text.strip_prefix(&repeated)?.strip_prefix(since)?;
    (!rest.is_empty()).then(|| Ghost { text: rest.to_owned(), command: item.command })
}

/// The part of a suggestion that is accepted.
fn piece(text: &str, part: Part) -> &str {
    let content = text.len() - text.trim_start().len();
    let end = match part {
        Part::Whole => None,
        Part::Line => text[content..].find('\n').map(|end| content + end),
        Part::Word => {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let word = text[content..].starts_with(is_word);
            let ends = |c: char| if word { !is_word(c) } else { is_word(c) || c.is_whitespace() };
            text[content..].find(ends).map(|end| content + end)
        }
    };
    &text[..end.unwrap_or(text.len())]
}

/// How many steps have the same effect as inserting `piece` at the caret; `None` if no number of them has.
/// Comparing what comes of the steps, not their keys, allows for brackets that the editor closed and
/// for typing errors that were put right.
fn steps_that_type(piece: &str, buffer: &Buffer, steps: &[super::recording::Step]) -> Option<usize> {
    let mut wanted = buffer.clone();
    wanted.insert(piece);
    let mut typed = buffer.clone();
    for (count, step) in (1..).zip(steps.iter().take(LOOK_AHEAD)) {
        step.action.apply(&mut typed).ok()?;
        let same_place =
            typed.caret() == wanted.caret() && typed.text().len_bytes() == wanted.text().len_bytes();
        if same_place && typed.text() == wanted.text() {
            return Some(count);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::buffer::Place;
    use super::super::recording::{Edit, Step};
    use super::*;

    /// Knows what comes next at one caret, answers at once and keeps the text as a server does.
    struct Scripted {
        text: Buffer,
        after: &'static str,
        suggestion: &'static str,
        /// Loses this edit, counted from 0.
        lose: Option<usize>,
        edits: usize,
        commands: usize,
    }

    impl Scripted {
        fn new() -> Self {
            let text = Buffer::new("", "");
            Self { text, after: "a = ", suggestion: "b + c", lose: None, edits: 0, commands: 0 }
        }
    }

    impl Suggester for Scripted {
        async fn open(&mut self, recording: &Recording) -> anyhow::Result<()> {
            self.text = recording.start.clone();
            Ok(())
        }

        async fn edit(&mut self, change: Change) -> anyhow::Result<()> {
            if self.lose != Some(self.edits) {
                let place = |position: &Value| Place {
                    line: position["line"].as_u64().expect("a line") as usize,
                    character: position["character"].as_u64().expect("a character") as usize,
                };
                let range = &change.event["range"];
                let text = change.event["text"].as_str().expect("a text");
                self.text.edit(place(&range["start"]), place(&range["end"]), text).expect("a range");
            }
            self.edits += 1;
            Ok(())
        }

        async fn ask(&mut self, buffer: &Buffer, _: bool) -> anyhow::Result<Answering> {
            let item = (buffer.own_text() == self.after).then(|| Item {
                range: Value::Null,
                text: self.suggestion.to_owned(),
                command: Value::from("accepted"),
            });
            let received = std::time::Instant::now();
            Ok(Box::pin(async move { Answered { received, item: Ok(item), account: None } }))
        }

        async fn accepted(&mut self, _: Value) -> anyhow::Result<()> {
            self.commands += 1;
            Ok(())
        }

        async fn close(&mut self) -> anyhow::Result<Option<String>> {
            Ok(Some(self.text.text().to_string()))
        }
    }

    /// Types `a = b + c;` and looks at the suggestion after `a = `.
    fn recording(part: &str) -> Recording {
        let events = serde_json::json!([
            {"at_ms": 0, "insert": "a"}, {"at_ms": 5, "insert": " = "},
            {"at_ms": 1000, "accept": part, "otherwise": "b + c"}, {"at_ms": 1005, "insert": ";"},
        ]);
        let file = serde_json::json!({
            "format": super::super::recording::FORMAT, "language": "c", "file": "a.c",
            "text": "", "events": events, "final_text": "a = b + c;",
        });
        Recording::parse("a.json", &file.to_string()).expect("well-formed")
    }

    const MANNER: Manner = Manner { editor: Editor::Eager, speed: 10.0 };

    #[tokio::test]
    async fn an_accepted_suggestion_spares_its_keys_and_runs_its_command() {
        let mut target = Scripted::new();
        let tally = play(&recording("whole"), &mut target, MANNER, || {}).await.expect("played");
        assert_eq!((tally.looks, tally.accepts, tally.accepted_characters), (1, 1, 5));
        assert_eq!((target.edits, target.commands, tally.keys), (4, 1, 3));

        let mut target = Scripted::new();
        let tally = play(&recording("word"), &mut target, MANNER, || {}).await.expect("played");
        assert_eq!((tally.accepts, tally.accepted_characters), (1, 1));
        assert_eq!((target.edits, target.commands, tally.keys), (8, 0, 7), "the rest is typed");
    }

    #[tokio::test]
    async fn a_suggestion_that_is_not_wanted_is_typed_over() {
        let mut target = Scripted { suggestion: "b + d", ..Scripted::new() };
        let tally = play(&recording("whole"), &mut target, MANNER, || {}).await.expect("played");
        assert_eq!((tally.looks, tally.accepts, tally.keys), (1, 0, 8));
    }

    #[tokio::test]
    async fn a_lost_character_fails_the_replay() {
        let mut target = Scripted { lose: Some(3), ..Scripted::new() };
        let error = play(&recording("whole"), &mut target, MANNER, || {}).await.expect_err("noticed");
        assert!(format!("{error:#}").contains("copy of the file is not the editor's"), "{error:#}");
    }

    fn steps(actions: &[Action]) -> Vec<Step> {
        actions.iter().map(|action| Step { wait: Duration::ZERO, action: action.clone() }).collect()
    }

    fn keys(text: &str) -> Vec<Action> {
        text.chars().map(|key| Action::Insert(key.to_string())).collect()
    }

    #[test]
    fn words_and_lines_take_the_blanks_before_them_along() {
        let text = "\n    total += price\n    return";
        assert_eq!(piece(text, Part::Word), "\n    total");
        assert_eq!(piece(text, Part::Line), "\n    total += price");
        assert_eq!(piece(text, Part::Whole), text);
        assert_eq!(piece(" += 1", Part::Word), " +=");
        assert_eq!(piece("x", Part::Line), "x");
    }

    #[test]
    fn an_accept_takes_the_place_of_the_steps_that_type_the_same() {
        let buffer = Buffer::new("", "");
        let plain = steps(&keys("total = 0"));
        assert_eq!(steps_that_type("total", &buffer, &plain), Some(5));
        assert_eq!(steps_that_type("totals", &buffer, &plain), None);
        let error = [keys("tp"), vec![Action::DeleteBefore(1)], keys("otal")].concat();
        assert_eq!(steps_that_type("total", &buffer, &steps(&error)), Some(7));
    }

    #[test]
    fn closed_brackets_agree_once_they_were_typed_over() {
        let place = |character| Place { line: 0, character };
        let close = Edit { start: place(2), end: place(2), text: ")".into() };
        let actions =
            [keys("f("), vec![Action::Edit(close, Some(place(2)))], keys("x"), vec![Action::Caret(place(4))]]
                .concat();
        let buffer = Buffer::new("", "");
        assert_eq!(steps_that_type("f(x)", &buffer, &steps(&actions)), Some(5));
        assert_eq!(steps_that_type("f(x", &buffer, &steps(&actions)), None, "the bracket would be left over");
    }
}
