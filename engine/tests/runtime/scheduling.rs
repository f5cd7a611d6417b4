//! Who goes first, what is shared, how a generation ends.

use std::sync::Arc;
use std::time::Instant;

use redstart_engine::generator::Generation;
use redstart_engine::request::{FinishReason, Priority, Request, SamplingParams, SubmitError};
use redstart_engine::scheduler::{Scheduler, SchedulerConfig, WARM_UP_CHUNK};
use redstart_engine::step_output::StepOutput;
use redstart_engine::step_plan::{BLOCK_SIZE, StepPlan};
use redstart_engine::tokenizer::Tokenizer;

use crate::toy_backend::{Driver, EOS, VOCAB_SIZE, collect, config, prompt, request, solo};

fn with_priority(priority: Priority, request: Request) -> Request {
    Request { priority, ..request }
}

#[test]
fn a_long_prompt_is_prefilled_in_chunks_of_the_budget() {
    let mut driver = Driver::new(config(16));
    let (_, mut generation) = driver.submit(request(prompt(1, 100), 1));
    let mut rows = Vec::new();
    while driver.step() {
        rows.push((driver.plan.num_rows(), driver.plan.logits_rows.len()));
    }
    assert_eq!(rows, [(32, 0), (32, 0), (32, 0), (4, 1)]);
    assert_eq!(collect(&mut generation).reason, FinishReason::MaxTokens);
}

#[test]
fn sequences_decode_together_beside_a_prefill() {
    let mut driver = Driver::new(config(16));
    let mut first = driver.submit(request(prompt(1, 8), 10)).1;
    let mut second = driver.submit(request(prompt(2, 9), 10)).1;
    driver.step();
    let mut third = driver.submit(request(prompt(3, 100), 4)).1;
    driver.step();
    assert_eq!(driver.plan.num_rows(), 32, "two decodes and the third's first chunk fill the budget");
    assert_eq!(driver.plan.sequences.len(), 3);
    assert_eq!(driver.plan.logits_rows, [0, 1]);
    driver.run_to_end();
    for (generation, seed, len, count) in
        [(&mut first, 1, 8, 10), (&mut second, 2, 9, 10), (&mut third, 3, 100, 4)]
    {
        assert_eq!(collect(generation).ids(), solo(&request(prompt(seed, len), count), 256).0);
    }
}

#[test]
fn a_higher_class_takes_the_whole_step_even_in_mid_prefill() {
    let mut driver = Driver::new(SchedulerConfig { max_batch_tokens: 200, ..config(32) });
    let _warm_up = driver.submit(with_priority(Priority::WarmUp, request(prompt(1, 300), 1)));
    driver.step();
    assert_eq!(driver.plan.num_rows(), WARM_UP_CHUNK, "a warm-up is cut into small slices");
    let mut action = driver.submit(with_priority(Priority::Action, request(prompt(2, 250), 1))).1;
    driver.step();
    assert_eq!(driver.plan.num_rows(), 200);
    let mut typing = driver.submit(request(prompt(3, 20), 1)).1;
    driver.step();
    assert_eq!(driver.plan.tokens, prompt(3, 20), "the keystroke alone");
    assert_eq!(collect(&mut typing).reason, FinishReason::MaxTokens);
    driver.step();
    assert_eq!(driver.plan.tokens, prompt(2, 250)[200..], "the action goes on where it was");
    assert_eq!(collect(&mut action).reason, FinishReason::MaxTokens);
    driver.step();
    assert_eq!(driver.plan.positions[0] as usize, WARM_UP_CHUNK, "and so does the warm-up");
}

#[test]
fn a_warm_up_that_somebody_begins_to_wait_for_goes_first() {
    let mut driver = Driver::new(config(32));
    let mut warm_up =
        driver.submit(with_priority(Priority::WarmUp, request(prompt(1, 2 * WARM_UP_CHUNK), 3))).1;
    driver.step();
    let mut action = driver.submit(with_priority(Priority::Action, request(prompt(2, 20), 5))).1;
    driver.step();
    assert_eq!(driver.plan.tokens, prompt(2, 20), "the action before the warm-up");
    warm_up.control().await_now();
    driver.step();
    assert_eq!(driver.plan.positions[0] as usize, WARM_UP_CHUNK, "the warm-up where it was");
    assert!(!driver.plan.background);
    driver.run_to_end();
    assert_eq!(collect(&mut warm_up).ids(), solo(&request(prompt(1, 2 * WARM_UP_CHUNK), 3), 256).0);
    assert_eq!(collect(&mut action).ids(), solo(&request(prompt(2, 20), 5), 256).0);
}

#[test]
fn a_step_is_in_the_background_when_nobody_waits_for_it() {
    let mut driver = Driver::new(config(64));
    let _warm_ups = [1, 2].map(|seed| {
        driver.submit(with_priority(Priority::WarmUp, request(prompt(seed, 2 * WARM_UP_CHUNK), 0)))
    });
    driver.step();
    assert!(driver.plan.background, "only warm-ups");
    let _action = driver.submit(with_priority(Priority::Action, request(prompt(3, 20), 1)));
    driver.step();
    assert!(!driver.plan.background, "an action, while the warm-ups wait");
    let _typing = driver.submit(request(prompt(4, 20), 1));
    driver.step();
    assert!(!driver.plan.background, "a keystroke");
    driver.step();
    assert!(driver.plan.background, "the warm-ups go on");
}

#[test]
fn a_second_prompt_is_served_from_the_first_ones_blocks() {
    let mut driver = Driver::new(config(16));
    let tokens = prompt(1, 5 * BLOCK_SIZE);
    let mut cold = driver.submit(request(tokens.clone(), 2)).1;
    driver.run_to_end();
    let mut warm = driver.submit(request(tokens.clone(), 2)).1;
    driver.step();
    assert_eq!(driver.plan.num_rows(), BLOCK_SIZE, "the last block again: one position at least is computed");
    driver.run_to_end();
    let (cold, warm) = (collect(&mut cold), collect(&mut warm));
    assert_eq!(cold.ids(), warm.ids());
    assert_eq!((cold.usage.cached_tokens, warm.usage.cached_tokens), (0, 4 * BLOCK_SIZE));

    let mut longer = driver.submit(request([tokens, vec![1, 2, 3]].concat(), 1)).1;
    driver.step();
    assert_eq!(driver.plan.num_rows(), 3, "all full blocks are hits when something follows them");
    assert_eq!(collect(&mut longer).usage.cached_tokens, 5 * BLOCK_SIZE);
}

#[test]
fn generated_blocks_are_cached_and_the_partial_tail_is_not() {
    let mut driver = Driver::new(config(16));
    let mut first = driver.submit(request(prompt(1, 10), 40)).1;
    driver.run_to_end();
    let output = [prompt(1, 10), collect(&mut first).ids()].concat();
    let mut second = driver.submit(request(output.clone(), 1)).1;
    driver.run_to_end();
    // Of the 50 tokens the last was never computed; 48 lie in full blocks.
    assert_eq!(collect(&mut second).usage.cached_tokens, 48);
}

#[test]
fn equal_prompts_at_once_are_computed_once() {
    let mut driver = Driver::new(SchedulerConfig { max_batch_tokens: 48, ..config(16) });
    let mut first = driver.submit(request(prompt(1, 100), 3)).1;
    let mut second = driver.submit(request(prompt(1, 100), 3)).1;
    driver.run_to_end();
    let (first, second) = (collect(&mut first), collect(&mut second));
    assert_eq!(first.ids(), second.ids());
    assert!(second.usage.cached_tokens >= 48, "{:?}", second.usage);
    assert_eq!(driver.scheduler.stats().blocks_cached, 6);
}

#[test]
fn a_warm_up_generates_nothing_and_makes_the_next_prompt_warm() {
    let mut driver = Driver::new(config(16));
    let mut warm_up = driver.submit(with_priority(Priority::WarmUp, request(prompt(1, 40), 0))).1;
    driver.run_to_end();
    let output = collect(&mut warm_up);
    assert_eq!((output.reason, output.tokens.len()), (FinishReason::MaxTokens, 0));
    assert_eq!(output.usage.first_token, std::time::Duration::ZERO);
    assert_eq!(driver.scheduler.stats().computed_tokens, 32, "its partial tail would be thrown away");
    let steps = driver.scheduler.stats().steps;
    let mut again = driver.submit(with_priority(Priority::WarmUp, request(prompt(1, 40), 0))).1;
    assert!(!driver.step(), "all of it is cached");
    assert_eq!(collect(&mut again).usage.cached_tokens, 32);
    assert_eq!(driver.scheduler.stats().steps, steps);
}

#[test]
fn a_prompt_smaller_than_a_block_needs_no_warm_up_step() {
    let mut driver = Driver::new(config(4));
    let mut generation = driver.submit(request(prompt(1, 5), 0)).1;
    assert!(!driver.step());
    assert_eq!(collect(&mut generation).reason, FinishReason::MaxTokens);
}

#[test]
fn when_blocks_run_out_the_youngest_of_the_lowest_class_gives_way() {
    let mut driver = Driver::new(SchedulerConfig { max_model_len: 128, ..config(8) });
    let requests = [
        with_priority(Priority::Action, request(prompt(1, 20), 60)),
        with_priority(Priority::Action, request(prompt(2, 20), 60)),
        request(prompt(3, 20), 90),
    ];
    let mut actions: Vec<Generation> = requests[..2].iter().map(|r| driver.submit(r.clone()).1).collect();
    for _ in 0..30 {
        driver.step();
    }
    assert_eq!(driver.scheduler.stats().preemptions, 0);
    let mut typing = driver.submit(requests[2].clone()).1;
    driver.run_to_end();
    assert!(driver.scheduler.stats().preemptions > 0);
    for (generation, request) in actions.iter_mut().chain([&mut typing]).zip(&requests) {
        assert_eq!(collect(generation).ids(), solo(request, 128).0);
    }
}

#[test]
fn a_newer_request_with_the_same_key_takes_the_place() {
    let mut driver = Driver::new(SchedulerConfig { max_waiting: 1, ..config(16) });
    let keyed = |seed| Request { supersede_key: Some(9), ..request(prompt(seed, 40), 5) };
    let mut waiting = driver.submit(keyed(1)).1;
    let mut running = driver.submit(keyed(2)).1;
    assert_eq!(
        collect(&mut waiting).reason,
        FinishReason::Superseded,
        "a full queue does not keep the newer out"
    );
    driver.begin_step();
    let mut newest = driver.submit(Request { prompt: prompt(2, 41), ..keyed(2) }).1;
    let refused = driver.try_submit(Request { prompt: Vec::new(), ..keyed(3) });
    assert_eq!(refused.expect_err("empty"), SubmitError::EmptyPrompt);
    driver.end_step();
    assert_eq!(collect(&mut running).reason, FinishReason::Superseded);
    driver.run_to_end();
    let newest = collect(&mut newest);
    assert_eq!(newest.reason, FinishReason::MaxTokens, "a refused request supersedes nothing");
    assert_eq!(newest.usage.cached_tokens, 32, "what the superseded one was computing is not lost");
}

#[test]
fn a_full_queue_refuses_and_says_so() {
    let mut driver = Driver::new(SchedulerConfig { max_waiting: 2, ..config(16) });
    let first = driver.submit(request(prompt(1, 4), 9)).1;
    let _second = driver.submit(request(prompt(2, 4), 9));
    let error = driver.try_submit(request(prompt(3, 4), 9)).expect_err("full");
    assert_eq!(error, SubmitError::QueueFull { limit: 2 });
    drop(first);
    driver.try_submit(request(prompt(3, 4), 9)).expect("a cancelled request holds no place");
    driver.step();
    driver.try_submit(request(prompt(4, 4), 9)).expect("started requests no longer wait");
}

#[test]
fn dropping_or_cancelling_a_generation_frees_its_blocks_at_the_next_step() {
    let mut driver = Driver::new(config(16));
    let dropped = driver.submit(request(prompt(1, 100), 50)).1;
    let mut cancelled = driver.submit(request(prompt(2, 10), 50)).1;
    for _ in 0..6 {
        driver.step();
    }
    drop(dropped);
    cancelled.cancel();
    assert!(!driver.step());
    assert_eq!(driver.scheduler.stats().blocks_used, 0);
    let output = collect(&mut cancelled);
    assert_eq!(output.reason, FinishReason::Cancelled);
    assert!(solo(&request(prompt(2, 10), 50), 256).0.starts_with(&output.ids()));
}

#[test]
fn bad_requests_are_refused_by_name() {
    let mut driver = Driver::new(config(4));
    let mut refused = |request: Request| driver.try_submit(request).expect_err("refused");
    assert_eq!(refused(request(Vec::new(), 1)), SubmitError::EmptyPrompt);
    assert_eq!(refused(request(prompt(1, 64), 1)), SubmitError::PromptTooLong { tokens: 64, limit: 63 });
    let unknown = SubmitError::UnknownToken { id: VOCAB_SIZE as u32, vocab_size: VOCAB_SIZE };
    assert_eq!(refused(request(vec![1, VOCAB_SIZE as u32], 1)), unknown);
    let with = |change: fn(&mut SamplingParams)| {
        let mut request = request(prompt(1, 4), 1);
        change(&mut request.params);
        request
    };
    for (bad, word) in [
        (with(|params| params.temperature = -1.0), "temperature"),
        (with(|params| params.temperature = f32::NAN), "temperature"),
        (with(|params| params.top_p = 0.0), "top_p"),
        (with(|params| params.top_p = f32::NAN), "top_p"),
        (with(|params| params.stop = vec![String::new()]), "stop text"),
    ] {
        assert!(matches!(refused(bad), SubmitError::BadParameter(message) if message.contains(word)));
    }
    assert_eq!(refused(with(|params| params.stop = vec!["x".into()])), SubmitError::NoTokenizer);
}

#[test]
fn each_way_to_end_is_told_apart() {
    let mut driver = Driver::new(config(4));
    let mut full = driver.submit(request(prompt(1, 60), 100)).1;
    driver.run_to_end();
    let full = collect(&mut full);
    assert_eq!((full.reason, full.tokens.len()), (FinishReason::ContextFull, 4));

    let ids = solo(&request(prompt(2, 8), 5), 64).0;
    let mut stopped = request(prompt(2, 8), 5);
    stopped.params.stop_token_ids = vec![ids[3]];
    let mut stopped = driver.submit(stopped).1;
    driver.run_to_end();
    let stopped = collect(&mut stopped);
    assert_eq!((stopped.ids(), stopped.reason), (ids[..3].to_vec(), FinishReason::StopToken(ids[3])));

    // A prompt whose continuation reaches the end-of-text token soon.
    let eos = (0..)
        .map(|seed| Request::new(prompt(seed, 8), 20))
        .find(|r| solo(r, 64).1 == FinishReason::StopToken(EOS));
    let eos = eos.expect("there is one");
    let mut ended = driver.submit(eos.clone()).1;
    driver.run_to_end();
    let ended = collect(&mut ended);
    assert_eq!((ended.ids(), ended.reason), solo(&eos, 64));
}

#[test]
fn an_invalid_logit_fails_its_sequence_only_and_caches_nothing() {
    let mut scheduler = Scheduler::new(config(8), None);
    let mut plan = StepPlan::default();
    let submit = |scheduler: &mut Scheduler, seed| {
        let (sender, generation) = Generation::channel();
        scheduler.submit(request(prompt(seed, BLOCK_SIZE), 1), sender, Instant::now()).expect("accepted");
        generation
    };
    let mut bad = submit(&mut scheduler, 1);
    let mut good = submit(&mut scheduler, 2);
    assert!(scheduler.schedule(&mut plan, Instant::now()));
    let mut output = StepOutput { logits: vec![0.0; 2 * VOCAB_SIZE], ..StepOutput::default() };
    output.logits[7] = f32::NAN;
    output.set_all_logits(&plan);
    scheduler.apply(&output, Instant::now());
    assert!(matches!(collect(&mut bad).reason, FinishReason::Failed(message) if message.contains("token 7")));
    assert_eq!(collect(&mut good).reason, FinishReason::MaxTokens);
    assert_eq!(scheduler.stats().blocks_cached, 1);
}

#[test]
fn log_probabilities_come_with_each_token() {
    let mut driver = Driver::new(config(4));
    let mut asked = request(prompt(1, 8), 3);
    asked.params.top_logprobs = 4;
    let mut generation = driver.submit(asked).1;
    driver.run_to_end();
    for token in collect(&mut generation).tokens {
        assert_eq!(token.top_logprobs.len(), 4);
        assert_eq!(token.top_logprobs[0].0, token.id, "greedy takes the best");
        assert!(token.top_logprobs.is_sorted_by(|a, b| a.1 >= b.1));
    }
}

/// A tokenizer whose token `id` is one byte, so that the toy's vocabulary has text: `a` for 33 on.
pub(crate) fn byte_tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bytes(&crate::tokenizer::byte_tokenizer_json()).expect("a tokenizer"))
}

fn run_with_text(request: Request) -> (crate::toy_backend::Output, String) {
    let tokenizer = byte_tokenizer();
    let (ids, _) = solo(&request, 256);
    let mut driver = Driver::over(Scheduler::new(config(16), Some(Arc::clone(&tokenizer))), 16);
    let mut generation = driver.submit(request).1;
    driver.run_to_end();
    (collect(&mut generation), tokenizer.decode(&ids))
}

#[test]
fn a_stop_text_may_straddle_tokens_and_is_never_given_out() {
    let plain = request(prompt(1, 8), 30);
    let (output, whole) = run_with_text(plain.clone());
    assert_eq!(output.text(), whole);
    let stop: String = whole.chars().skip(10).take(3).collect();
    let mut stopping = plain;
    stopping.params.stop = vec![stop.clone()];
    let (output, _) = run_with_text(stopping);
    let expected = &whole[..whole.find(&stop).expect("it is there")];
    assert_eq!((output.text().as_str(), output.reason.clone()), (expected, FinishReason::StopText(stop)));
    assert_eq!(output.tokens.len(), expected.chars().count() + 3, "one token a character");
}

#[test]
fn text_held_back_for_a_stop_text_comes_with_the_last_token() {
    let plain = request(prompt(1, 8), 30);
    let (_, whole) = run_with_text(plain.clone());
    let mut held = plain;
    held.params.stop = vec![format!("{}never", whole.chars().last().expect("text"))];
    let (output, _) = run_with_text(held);
    assert_eq!((output.text(), output.reason.clone()), (whole, FinishReason::MaxTokens));
}

#[test]
fn waiting_warm_ups_do_not_keep_a_keystroke_out() {
    let mut driver = Driver::new(SchedulerConfig { max_waiting: 1, ..config(16) });
    let _warm_up = driver.submit(with_priority(Priority::WarmUp, request(prompt(1, 20), 0)));
    let _typing = driver.submit(request(prompt(2, 20), 1));
    let refused = driver.try_submit(with_priority(Priority::WarmUp, request(prompt(3, 20), 0)));
    assert_eq!(refused.expect_err("full"), SubmitError::QueueFull { limit: 1 });
}
