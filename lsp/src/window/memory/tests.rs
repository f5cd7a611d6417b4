use proptest::prelude::*;

use super::*;

const TOKENS: usize = 448;

/// A document in an editor that asks for a window after each action.
struct Editor {
    text: Rope,
    caret: usize,
    memory: PromptMemory,
}

impl Editor {
    /// `|` marks the caret.
    fn new(text: &str) -> Self {
        let caret = text.find('|').expect("a caret");
        Self { text: Rope::from_str(&text.replace('|', "")), caret, memory: PromptMemory::default() }
    }

    /// A file of 400 lines, the caret at the end of a line.
    fn in_a_long_file(line: usize) -> Self {
        let mut editor = Self::new("|");
        editor.text =
            Rope::from_str(&(0..400).map(|line| format!("value_{line} = {line}\n")).collect::<String>());
        editor.caret = editor.text.line_to_byte(line + 1) - 1;
        editor
    }

    fn window(&self) -> Window {
        self.memory.place(&self.text, self.caret, TOKENS)
    }

    fn insert_at(&mut self, at: usize, text: &str) {
        self.text.insert(self.text.byte_to_char(at), text);
        if at < self.caret {
            self.caret += text.len();
        }
    }

    /// Text before the caret.
    fn typed(&mut self, text: &str) -> Window {
        self.text.insert(self.text.byte_to_char(self.caret), text);
        self.caret += text.len();
        self.window()
    }

    /// Text before and after the caret.
    fn typed_around(&mut self, before: &str, after: &str) -> Window {
        self.text.insert(self.text.byte_to_char(self.caret), after);
        self.typed(before)
    }

    fn removed(&mut self, before: usize, after: usize) -> Window {
        let chars = self.text.byte_to_char(self.caret - before)..self.text.byte_to_char(self.caret + after);
        self.text.remove(chars);
        self.caret -= before;
        self.window()
    }

    fn moved_to(&mut self, caret: usize) -> Window {
        self.caret = caret;
        self.window()
    }

    fn end_of_line(&self, line: usize) -> usize {
        self.text.line_to_byte(line + 1) - 1
    }
}

#[test]
fn typing_and_enter_only_append() {
    let mut editor = Editor::in_a_long_file(200);
    let first = editor.window();
    let anchored = first.prefix.len() - first.middle_bytes;
    for key in "\nif x:\n    y = 1\n\n    z".chars() {
        let window = editor.typed(&key.to_string());
        assert_eq!(window.suffix, first.suffix);
        assert!(window.prefix.starts_with(&first.prefix));
        assert_eq!(window.prefix.len() - window.middle_bytes, anchored, "the anchor holds");
    }
}

#[test]
fn accepted_lines_are_typed_lines() {
    let mut editor = Editor::new("def f(x):\n    |\n\nprint(f(1))\n");
    let first = editor.window();
    let window = editor.typed("y = x\n    z = y\n    return z");
    assert_eq!(window.suffix, first.suffix);
    assert_eq!(window.middle_bytes, "    y = x\n    z = y\n    return z".len());
}

#[test]
fn what_the_editor_closes_does_not_change_the_suffix() {
    let mut editor = Editor::new("let x = f|;\nlet y = 2;\n");
    let first = editor.window();
    assert_eq!(editor.typed_around("(", ")").suffix, first.suffix);
    assert_eq!(editor.typed_around("[\"", "\"]").suffix, first.suffix);
    assert_eq!(editor.typed("a").suffix, first.suffix);
    // Typed over, and taken away again.
    assert_eq!(editor.removed(0, 1).suffix, first.suffix);
    assert_eq!(editor.removed(2, 1).suffix, first.suffix);
}

#[test]
fn a_closer_that_is_gone_changes_the_suffix() {
    let mut editor = Editor::new("f(a|)\ng()\n");
    assert_eq!(editor.window().suffix, ")\ng()\n");
    assert_eq!(editor.removed(0, 1).suffix, "\ng()\n");
}

#[test]
fn real_text_on_the_line_changes_the_suffix() {
    let mut editor = Editor::new("f(|)\ng()\n");
    editor.window();
    assert_eq!(editor.typed_around("", "x").suffix, "x)\ng()\n");
    let mut editor = Editor::new("f|\ng()\n");
    editor.window();
    assert_eq!(
        editor.typed_around("", ")))))))))").suffix,
        ")))))))))\ng()\n",
        "too much to be the editor's"
    );
}

#[test]
fn a_closer_on_the_next_line_changes_the_suffix() {
    let mut editor = Editor::new("fn f() |\n\nfn g() {}\n");
    let first = editor.window();
    assert_eq!(editor.typed_around("{", "}").suffix, first.suffix);
    assert_eq!(editor.typed_around("\n    ", "\n").suffix, "\n}\n\nfn g() {}\n");
}

#[test]
fn an_edit_in_the_suffix_changes_it() {
    let mut editor = Editor::in_a_long_file(200);
    let first = editor.window();
    let below = editor.end_of_line(205);
    editor.insert_at(below, "0");
    assert_ne!(editor.window().suffix, first.suffix);
    // Below it, nothing does.
    let first = editor.window();
    let below = editor.end_of_line(390);
    editor.insert_at(below, "0");
    assert_eq!(editor.window(), first);
}

#[test]
fn the_end_of_the_document_is_no_suffix_for_its_middle() {
    let mut editor = Editor::new("a\nb\nc|");
    assert_eq!(editor.window().suffix, "");
    assert_eq!(editor.typed_around("(", ")").suffix, "", "closed by the editor");
    assert_eq!(editor.moved_to(1).suffix, "\nb\nc()");
}

#[test]
fn an_edit_above_the_window_moves_it_along() {
    let mut editor = Editor::in_a_long_file(200);
    let first = editor.window();
    assert!(first.first_line > 20);
    editor.insert_at(0, "import x\nimport y\n");
    assert_eq!(editor.window(), Window { first_line: first.first_line + 2, ..first });
}

#[test]
fn an_edit_within_the_window_keeps_its_start() {
    let mut editor = Editor::in_a_long_file(200);
    let first = editor.window();
    let within = editor.end_of_line(first.first_line + 5);
    editor.insert_at(within, "99");
    let window = editor.window();
    assert_eq!((window.first_line, &window.suffix), (first.first_line, &first.suffix));
    assert_eq!(window.middle_bytes, first.middle_bytes);
}

#[test]
fn moving_inside_the_window_keeps_its_start() {
    let mut editor = Editor::in_a_long_file(200);
    let first = editor.window();
    let up = editor.end_of_line(190);
    let window = editor.moved_to(up);
    assert_eq!(window.first_line, first.first_line);
    assert!(first.prefix.starts_with(&window.prefix));
    assert_eq!(window.middle_bytes, "value_190 = 190".len(), "anchored where the caret is");
    // A window that begins just above the caret would be too little.
    let top = editor.end_of_line(first.first_line + 1);
    assert!(editor.moved_to(top).first_line < first.first_line);
}

#[test]
fn coming_back_asks_what_was_asked_before() {
    let mut editor = Editor::in_a_long_file(200);
    editor.typed("\nfirst");
    let there = editor.typed(" = 1");
    let caret = editor.caret;
    for line in [20, 300, 320] {
        let elsewhere = editor.end_of_line(line);
        editor.moved_to(elsewhere);
    }
    assert_eq!(editor.moved_to(caret), there);
}

#[test]
fn undoing_asks_what_was_asked_before() {
    let mut editor = Editor::in_a_long_file(200);
    let before = editor.typed("\nlet x = 1");
    editor.typed("\nlet y = 2\nlet z");
    let typed = "\nlet y = 2\nlet z".len();
    assert_eq!(editor.removed(typed, 0), before);
}

#[test]
fn a_long_middle_is_anchored_anew() {
    let mut editor = Editor::new("# top\n|\n# end\n");
    let first = editor.window();
    let mut lengths = Vec::new();
    for _ in 0..40 {
        let window = editor.typed("x = 1\n");
        assert_eq!(window.suffix, first.suffix);
        assert_eq!(window.first_line, 0);
        lengths.push(window.middle_bytes / "x = 1\n".len());
    }
    assert_eq!(lengths.iter().max(), Some(&(MIDDLE_LINES - 1)));
    assert_eq!(lengths.iter().filter(|length| **length == 0).count(), 40 / MIDDLE_LINES);
}

#[test]
fn another_budget_is_another_window() {
    let editor = Editor::in_a_long_file(200);
    let small = editor.window();
    let large = editor.memory.place(&editor.text, editor.caret, 4 * TOKENS);
    assert!(large.prefix.len() > small.prefix.len() && large.suffix.len() > small.suffix.len());
}

#[test]
fn windows_line_ends_are_no_difference() {
    let mut editor = Editor::new("a = 1\r\nb = f|\r\nc = 3\r\n");
    let first = editor.window();
    assert_eq!(first.suffix, "\nc = 3\n");
    let window = editor.typed_around("(\r\n  ", ")");
    assert_eq!(window.suffix, first.suffix);
    assert_eq!(window.middle_bytes, "b = f(\n  ".len());
}

/// One random action of an editor.
#[derive(Clone, Debug)]
enum Action {
    Insert(String),
    Close(String),
    Remove(usize),
    Move(f64),
    Elsewhere(f64, String),
}

fn any_action() -> impl Strategy<Value = Action> {
    let piece = "[a-c(){} é\r\n\t😀]{1,6}";
    prop_oneof![
        4 => piece.prop_map(Action::Insert),
        1 => "[)\\]}\"' ;,]{1,3}".prop_map(Action::Close),
        1 => (1usize..40).prop_map(Action::Remove),
        1 => (0.0f64..1.0).prop_map(Action::Move),
        1 => ((0.0f64..1.0), piece).prop_map(|(at, text)| Action::Elsewhere(at, text)),
    ]
}

fn place_in(text: &Rope, share: f64) -> usize {
    super::super::char_floor(text, (text.len_bytes() as f64 * share) as usize)
}

proptest! {
    /// Whatever happens, a window is the text around the caret, within the budget.
    #[test]
    fn a_window_is_the_text_around_the_caret(
        text in "([a-c(){} é😀]{0,30}(\r\n|\n|\r)){0,200}", actions in prop::collection::vec(any_action(), 1..40),
        tokens in 10usize..200,
    ) {
        let mut editor = Editor::new("|");
        editor.text = Rope::from_str(&text);
        for action in actions {
            match action {
                Action::Insert(text) => { editor.insert_at(editor.caret, &text); editor.caret += text.len(); }
                Action::Close(text) => editor.insert_at(editor.caret, &text),
                Action::Remove(bytes) => {
                    let start = super::super::char_floor(&editor.text, editor.caret.saturating_sub(bytes));
                    editor.text.remove(editor.text.byte_to_char(start)..editor.text.byte_to_char(editor.caret));
                    editor.caret = start;
                }
                Action::Move(share) => editor.caret = place_in(&editor.text, share),
                Action::Elsewhere(share, text) => { let at = place_in(&editor.text, share); editor.insert_at(at, &text); }
            }
            let window = editor.memory.place(&editor.text, editor.caret, tokens);
            let (before, after) = (
                editor.text.byte_slice(..editor.caret).to_string().replace("\r\n", "\n"),
                editor.text.byte_slice(editor.caret..).to_string().replace("\r\n", "\n"),
            );
            prop_assert!(before.ends_with(&window.prefix));
            prop_assert!(window.prefix.len() <= tokens * 2 + 4 && window.suffix.len() <= tokens);
            prop_assert!(window.prefix.is_char_boundary(window.prefix.len() - window.middle_bytes));
            let anchored = &window.prefix[..window.prefix.len() - window.middle_bytes];
            let skipped = (0..=MAX_AUTO_CLOSED).any(|skipped| {
                after.is_char_boundary(skipped.min(after.len()))
                    && after[..skipped.min(after.len())].chars().all(|c| AUTO_CLOSED.contains(c))
                    && after[skipped.min(after.len())..].starts_with(&window.suffix)
            });
            prop_assert!(skipped, "{:?} is not what follows: {:?}", window.suffix, after);
            prop_assert!(anchored.lines().count() + window.first_line <= editor.text.len_lines());
        }
    }
}
