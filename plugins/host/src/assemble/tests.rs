use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::trim::STEP;
use super::*;
use crate::prompt::{Stability, Trim};

const CONTROL: u32 = 1_000_000;

/// One token for each run of letters and for each other character; control tokens above all of them.
#[derive(Default)]
struct Words {
    encoded_bytes: AtomicUsize,
}

impl Tokenize for Words {
    fn encode(&self, text: &str) -> Vec<u32> {
        self.encoded_bytes.fetch_add(text.len(), Ordering::Relaxed);
        let mut tokens = Vec::new();
        let mut in_word = false;
        for c in text.chars() {
            match (c.is_alphabetic(), in_word) {
                (true, true) => {
                    let last = tokens.last_mut().expect("a word has begun");
                    *last = (*last * 31 + c as u32) % 900_000;
                }
                _ => tokens.push(c as u32),
            }
            in_word = c.is_alphabetic();
        }
        tokens
    }

    fn control_token(&self, name: &str) -> Option<u32> {
        ["<|a|>", "<|b|>"].iter().position(|known| *known == name).map(|index| CONTROL + index as u32)
    }
}

fn text(text: &str, stability: Stability, trim: Trim, weight: u8) -> Segment {
    Segment { pieces: vec![Piece::Text(text.into())], stability, trim, weight }
}

fn control(name: &str) -> Segment {
    Segment {
        pieces: vec![Piece::Control(name.into())],
        stability: Stability::Document,
        trim: Trim::Keep,
        weight: 255,
    }
}

fn prompt(segments: Vec<Segment>) -> Prompt {
    Prompt { segments, stop: vec![], stop_control: vec![], max_tokens: 10, prompt_tokens: 0, facts: vec![] }
}

fn assemble(prompt: &Prompt, max_prompt_tokens: usize) -> Result<Assembled, AssembleError> {
    Assembler::new(Arc::new(Words::default()), 1 << 16).assemble(prompt, Budget { max_prompt_tokens })
}

fn lines(range: Range<usize>) -> String {
    range.map(|line| format!("l{line}\n")).collect()
}

fn encode(text: &str) -> Vec<u32> {
    Words::default().encode(text)
}

#[test]
fn stable_segments_come_first_and_keep_their_order() {
    let prompt = prompt(vec![
        text("e", Stability::Line, Trim::Keep, 0),
        text("c", Stability::Document, Trim::Keep, 0),
        text("a", Stability::Model, Trim::Keep, 0),
        text("d", Stability::Document, Trim::Keep, 0),
        text("b", Stability::Workspace, Trim::Keep, 0),
    ]);
    let assembled = assemble(&prompt, 10).unwrap();
    assert_eq!(assembled.tokens, ["a", "b", "c", "d", "e"].map(|word| encode(word)[0]));
    assert_eq!(assembled.spans.iter().map(|span| span.segment).collect::<Vec<_>>(), [2, 4, 1, 3, 0]);
}

#[test]
fn neighbouring_texts_of_a_segment_are_one_text() {
    let mut segment = text("ab", Stability::Model, Trim::Keep, 0);
    segment.pieces.push(Piece::Text("cd".into()));
    assert_eq!(assemble(&prompt(vec![segment]), 10).unwrap().tokens, encode("abcd"));
}

#[test]
fn text_that_spells_a_control_token_stays_text() {
    let assembled =
        assemble(&prompt(vec![text("<|a|>", Stability::Model, Trim::Keep, 0), control("<|a|>")]), 10)
            .unwrap();
    assert_eq!(assembled.tokens.iter().filter(|token| **token >= CONTROL).count(), 1);
    assert_eq!(assembled.tokens[..5], encode("<|a|>")[..]);
}

#[test]
fn unknown_control_tokens_are_named() {
    assert_eq!(
        assemble(&prompt(vec![control("<|z|>")]), 10),
        Err(AssembleError::UnknownControl("<|z|>".into()))
    );
}

#[test]
fn lower_weights_are_cut_first() {
    let prompt = prompt(vec![
        text(&lines(0..20), Stability::Document, Trim::Start, 100),
        control("<|a|>"),
        text(&lines(50..70), Stability::Document, Trim::End, 50),
    ]);
    let full = assemble(&prompt, 1000).unwrap();
    // A few tokens over: the last block of the lighter segment goes, and nothing else.
    let cut = assemble(&prompt, full.tokens.len() - 3).unwrap();
    assert_eq!(cut.tokens[..], full.tokens[..cut.tokens.len()]);
    assert!(cut.spans[2].cut_tokens > 0 && cut.spans[0].cut_tokens == 0 && cut.spans[1].cut_tokens == 0);
    // Far over: the lighter one is gone, and the heavier one lost whole blocks at its start.
    let cut = assemble(&prompt, 50).unwrap();
    assert!(cut.spans[2].tokens.is_empty());
    assert!(cut.tokens.len() <= 50 && cut.spans[1].tokens.len() == 1);
    assert!(encode(&lines(0..20)).ends_with(&cut.tokens[cut.spans[0].tokens.clone()]));
}

#[test]
fn drop_is_all_or_nothing() {
    let prompt = prompt(vec![
        text(&lines(0..40), Stability::Session, Trim::Drop, 10),
        text("x", Stability::Document, Trim::Keep, 0),
    ]);
    let cut = assemble(&prompt, 50).unwrap();
    assert_eq!(cut.tokens, encode("x"));
    assert_eq!(cut.spans[0].cut_tokens, encode(&lines(0..40)).len());
}

#[test]
fn a_line_that_is_one_block_is_cut_in_steps() {
    let line = "é ".repeat(1000);
    let of_budget = |budget| {
        assemble(&prompt(vec![text(&line, Stability::Line, Trim::Start, 9)]), budget).unwrap().tokens
    };
    let tokens = of_budget(500);
    assert!(tokens.len() > 500 - STEP && tokens.len() <= 500);
    assert_eq!((2000 - tokens.len()) % STEP, 0);
    assert_eq!(tokens, of_budget(tokens.len() + 1), "the cut holds until a whole step more must go");
}

#[test]
fn what_must_stay_and_does_not_fit_is_an_error() {
    let error =
        assemble(&prompt(vec![text(&lines(0..40), Stability::Line, Trim::Keep, 0), control("<|a|>")]), 20);
    assert_eq!(error, Err(AssembleError::DoesNotFit { needed: encode(&lines(0..40)).len() + 1, budget: 20 }));
}

#[test]
fn typing_tokenizes_the_last_block_only() {
    let words = Arc::new(Words::default());
    let assembler = Assembler::new(words.clone(), 1 << 20);
    let mut typed = lines(0..2000);
    let budget = Budget { max_prompt_tokens: 1 << 20 };
    for key in "let value".chars() {
        typed.push(key);
        let before = words.encoded_bytes.load(Ordering::Relaxed);
        assembler.assemble(&prompt(vec![text(&typed, Stability::Line, Trim::Start, 9)]), budget).unwrap();
        let cost = words.encoded_bytes.load(Ordering::Relaxed) - before;
        assert!(key == 'l' || cost < 200, "{cost} bytes tokenized for one key");
    }
}

#[test]
fn a_part_of_what_was_learned_is_tokenized_at_its_ends_only() {
    let words = Arc::new(Words::default());
    let assembler = Assembler::new(words.clone(), 1 << 20);
    let code = |lines: Range<usize>| -> String {
        lines.map(|line| format!("    values[{line}] = scaled(values, {line})\n")).collect()
    };
    assembler.learn(&code(0..2000));
    let before = words.encoded_bytes.load(Ordering::Relaxed);
    let part = code(700..900);
    let segment = text(&part, Stability::Line, Trim::Keep, 9);
    let assembled =
        assembler.assemble(&prompt(vec![segment]), Budget { max_prompt_tokens: 1 << 20 }).unwrap();
    let cost = words.encoded_bytes.load(Ordering::Relaxed) - before;
    assert!(cost < part.len() / 8, "{cost} bytes tokenized of {}", part.len());
    assert_eq!(assembled.tokens, encode(&part));
}

/// Takes line ends and the blanks after them, up to the one before the next word, as GPT-2's pattern does.
struct Blanks;

impl Tokenize for Blanks {
    fn encode(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let run: usize = rest
                .chars()
                .take_while(|c| c.is_whitespace() == first.is_whitespace())
                .map(char::len_utf8)
                .sum();
            let last = if run < rest.len() && first.is_whitespace() && run > 1 { run - 1 } else { run };
            tokens.push(rest[..last].bytes().fold(7, |hash, byte| hash * 31 % 900_001 + u32::from(byte)));
            rest = &rest[last..];
        }
        tokens
    }

    fn control_token(&self, _: &str) -> Option<u32> {
        None
    }
}

#[test]
fn a_tokenizer_that_joins_line_ends_and_indents_is_not_cut_between() {
    let text: String = (0..400).map(|n| format!("{}value_{n} = 1\n", " ".repeat(n % 7))).collect();
    let cuts = CutPoints::of(&Blanks);
    assert_ne!(cuts, CutPoints::of(&Words::default()));
    let blocks: Vec<&str> = cuts.blocks(&text).collect();
    assert!(blocks.len() > 10 && blocks.iter().all(|block| !block.starts_with(' ')), "{}", blocks.len());
    let assembler = Assembler::new(Arc::new(Blanks), 1 << 16);
    let prompt = prompt(vec![self::text(&text, Stability::Line, Trim::Keep, 0)]);
    let tokens = assembler.assemble(&prompt, Budget { max_prompt_tokens: 1 << 16 }).unwrap().tokens;
    assert_eq!(tokens, Blanks.encode(&text));
}

#[test]
fn a_lone_carriage_return_stays_with_the_line_ends_before_it() {
    let text: String =
        (0..400).map(|n| format!("{}value_{n} = 1\n", ["", "\r", " \r ", " "][n % 4])).collect();
    let blocks: Vec<&str> = CutPoints::of(&Words::default()).blocks(&text).collect();
    assert!(blocks.len() > 10 && blocks.iter().all(|block| !block.trim_start_matches(' ').starts_with('\r')));
}

#[test]
fn appended_chunks_are_given_up_from_the_last() {
    let chunk = |from: usize| text(&lines(from..from + 10), Stability::Session, Trim::Drop, 10);
    let file = || text(&lines(0..30), Stability::Document, Trim::Start, 100);
    let tokens = |prompt: &Prompt, budget| assemble(prompt, budget).unwrap();
    let two = prompt(vec![chunk(100), chunk(200), file()]);
    let three = prompt(vec![chunk(100), chunk(200), chunk(300), file()]);
    let budget = tokens(&two, 1000).tokens.len();
    let cut = tokens(&three, budget + 3);
    assert_eq!(cut.tokens, tokens(&two, 1000).tokens);
    // With less room still, the first one stays for last.
    let cut = tokens(&three, budget - 1);
    assert_eq!(
        cut.spans.iter().map(|span| span.tokens.is_empty()).collect::<Vec<_>>(),
        [false, true, true, false]
    );
}

#[test]
fn the_cache_is_bounded_and_forgets_the_oldest() {
    let mut cache = SegmentCache::new(100);
    let tokens: Arc<[u32]> = [1].into();
    cache.insert("hot".into(), tokens.clone());
    for number in 0..1000 {
        assert!(cache.get("hot").is_some(), "what is used all the time was forgotten");
        cache.insert(format!("text {number}").into(), tokens.clone());
        assert!(cache.bytes() <= 100);
    }
    cache.insert("x".repeat(1000).into(), tokens);
    assert!(cache.bytes() <= 100, "a text larger than the cache is not kept");
}

fn any_segment() -> impl Strategy<Value = Segment> {
    let stability = prop_oneof![
        Just(Stability::Model),
        Just(Stability::Session),
        Just(Stability::Document),
        Just(Stability::Line)
    ];
    let trim = prop_oneof![Just(Trim::Keep), Just(Trim::Start), Just(Trim::End), Just(Trim::Drop)];
    let piece = prop_oneof![
        6 => "([a-c ]{0,6}\n){0,30}[a-c ]{0,5}".prop_map(Piece::Text),
        1 => prop_oneof![Just("<|a|>"), Just("<|b|>")].prop_map(|name| Piece::Control(name.into())),
    ];
    (prop::collection::vec(piece, 0..4), stability, trim, 0u8..4)
        .prop_map(|(pieces, stability, trim, weight)| Segment { pieces, stability, trim, weight })
}

/// The text of a segment, blocks joined, as one list of tokens.
fn whole(segment: &Segment) -> Vec<u32> {
    assemble(&prompt(vec![segment.clone()]), usize::MAX).unwrap().tokens
}

proptest! {
    #[test]
    fn never_over_budget(segments in prop::collection::vec(any_segment(), 1..6), budget in 0usize..200) {
        let prompt = prompt(segments);
        match assemble(&prompt, budget) {
            Ok(assembled) => {
                prop_assert!(assembled.tokens.len() <= budget);
                for span in &assembled.spans {
                    let segment = &prompt.segments[span.segment];
                    let (tokens, all) = (&assembled.tokens[span.tokens.clone()], whole(segment));
                    prop_assert_eq!(tokens.len() + span.cut_tokens, all.len());
                    match segment.trim {
                        Trim::Keep => prop_assert_eq!(tokens, &all[..]),
                        Trim::Drop => prop_assert!(tokens.is_empty() || tokens == &all[..]),
                        Trim::Start | Trim::End => {
                            let controls = |tokens: &[u32]| tokens.iter().filter(|t| **t >= CONTROL).count();
                            prop_assert_eq!(controls(tokens), controls(&all), "controls stay");
                        }
                    }
                }
            }
            Err(AssembleError::DoesNotFit { needed, .. }) => {
                prop_assert!(needed > budget);
                let fixed: usize = prompt.segments.iter().map(|segment| match segment.trim {
                    Trim::Keep => whole(segment).len(),
                    Trim::Drop => 0,
                    Trim::Start | Trim::End => whole(segment).iter().filter(|t| **t >= CONTROL).count(),
                }).sum();
                prop_assert_eq!(needed, fixed, "everything that may be cut was");
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
    }

    /// Boundaries do not move while text is appended: every block but the last is a block of the longer
    /// text too.
    #[test]
    fn blocks_stand_still(text in "([ab]{0,3}\n| {0,3}\n){0,40}", more in "([ab ]{0,3}\n?){0,20}") {
        let cuts = CutPoints::of(&Words::default());
        let short: Vec<String> = cuts.blocks(&text).map(str::to_owned).collect();
        let longer = format!("{text}{more}");
        let long: Vec<&str> = cuts.blocks(&longer).collect();
        prop_assert_eq!(long.concat(), longer.as_str());
        for (block, same) in short.iter().rev().skip(1).rev().zip(&long) {
            prop_assert_eq!(block, same);
        }
    }

    /// Typing at the end moves the cut only once per block of tokens: between two moves, each prompt
    /// starts with the one before it, but for the word being typed.
    #[test]
    fn typing_keeps_the_prefix(before in 100usize..140, keys in "[a-c (]{100,400}") {
        let mut typed = lines(0..before);
        let assembler = Assembler::new(Arc::new(Words::default()), 1 << 16);
        let mut last: Vec<u32> = Vec::new();
        let mut moves = 0;
        for key in keys.chars() {
            typed.push(key);
            let prompt = prompt(vec![
                control("<|b|>"),
                text(&typed, Stability::Line, Trim::Start, 9),
                Segment { stability: Stability::Line, ..control("<|a|>") },
            ]);
            let tokens = assembler.assemble(&prompt, Budget { max_prompt_tokens: 300 }).unwrap().tokens;
            let shared = last.iter().zip(&tokens).take_while(|(old, new)| old == new).count();
            // The last word and the control token after it change with every key.
            if shared + 2 < last.len() {
                moves += 1;
            }
            last = tokens;
        }
        // A block of these lines is 8 * 4 or more tokens ("l", one to three digits, line end).
        let tokens_in_block = 8 * 4;
        prop_assert!(moves <= keys.len() / tokens_in_block + 1, "{moves} moves for {} keys", keys.len());
    }
}
