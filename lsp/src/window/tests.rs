use super::*;

fn file(lines: usize) -> Rope {
    Rope::from_str(&(0..lines).map(|line| format!("value_{line} = {line}\n")).collect::<String>())
}

#[test]
fn a_small_file_is_taken_whole() {
    let text = Rope::from_str("a\r\nb|c\r\n");
    let window = Window::around(&text, 4, 5, 100);
    assert_eq!((window.prefix.as_str(), window.suffix.as_str()), ("a\nb", "c\n"));
    assert_eq!(window.first_line, 0);
}

#[test]
fn typing_seldom_moves_the_start() {
    let mut text = file(3000);
    let mut caret = text.line_to_byte(1500);
    let mut starts = Vec::new();
    for _ in 0..40 {
        for _ in 0..20 {
            text.insert(text.byte_to_char(caret), "x");
            caret += 1;
            starts.push(Window::around(&text, caret, caret, 448).first_line);
        }
        text.insert(text.byte_to_char(caret), "\n");
        caret += 1;
    }
    let moves = starts.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(moves <= 8, "the window moved {moves} times in 800 keystrokes");
}

#[test]
fn typing_does_not_change_the_suffix() {
    let mut text = file(300);
    let caret = text.line_to_byte(150);
    let before = Window::around(&text, caret, caret, 448).suffix;
    text.insert(text.byte_to_char(caret), "new line\nand more");
    assert_eq!(Window::around(&text, caret + 17, caret + 17, 448).suffix, before);
}

#[test]
fn long_lines_and_wide_characters_are_cut_at_characters() {
    let text = Rope::from_str(&"é".repeat(100_000));
    for caret in [0, 2, 50_000, 200_000] {
        let window = Window::around(&text, caret, caret, 448);
        assert!(window.prefix.len() <= 448 * 2 + 2, "{}", window.prefix.len());
        assert!(window.suffix.len() <= 448, "{}", window.suffix.len());
    }
}

#[test]
fn an_empty_text_has_an_empty_window() {
    let window = Window::around(&Rope::new(), 0, 0, 448);
    assert_eq!(
        window,
        Window { prefix: String::new(), suffix: String::new(), first_line: 0, middle_bytes: 0 }
    );
}
