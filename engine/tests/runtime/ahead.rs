//! Steps planned before the tokens of the step under way are known.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

use redstart_engine::backend::BackendError;
use redstart_engine::engine::Engine;
use redstart_engine::generator::{Generation, Generator};
use redstart_engine::request::{Event, FinishReason, Priority, Request, SubmitError};
use redstart_engine::sampling::SamplingError;
use redstart_engine::scheduler::{Scheduler, SchedulerConfig};
use redstart_engine::step_output::{Drawn, RowOutput, StepOutput};
use redstart_engine::step_plan::{BLOCK_SIZE, Carried, StepPlan, Wanted};

use crate::lifecycle::{options, start};
use crate::scheduling::byte_tokenizer;
use crate::toy_backend::{Call, Driver, Runs, ToyDevice, collect, config, prompt, request, solo};

fn driver(num_blocks: usize) -> Driver {
    Driver::new(config(num_blocks)).on_device(Runs::AtFinish)
}

/// Steps to the end, planning ahead wherever it can be done. Returns how often it was.
fn run_ahead_to_end(driver: &mut Driver) -> usize {
    let mut ahead = 0;
    for _ in 0..1000 {
        if !driver.begin_step() {
            return ahead;
        }
        if driver.started == 1 {
            ahead += usize::from(driver.begin_ahead());
        }
        driver.end_step();
    }
    panic!("no end in sight");
}

#[test]
fn a_decode_is_planned_while_its_token_is_unknown() {
    let mut driver = driver(4);
    let mut generation = driver.submit(request(prompt(1, 8), 6)).1;
    assert!(driver.begin_step() && driver.begin_ahead());
    assert_eq!(driver.plan.carried, [Carried { row: 0, drawn_at: 0 }]);
    assert_eq!((&driver.plan.tokens[..], &driver.plan.positions[..]), (&[0][..], &[8][..]));
    assert!(!driver.begin_ahead(), "two at most");
    driver.end_step();
    assert_eq!(
        run_ahead_to_end(&mut driver),
        4,
        "every token but the first; the last is sure to be the last"
    );
    assert_eq!(collect(&mut generation).ids(), solo(&request(prompt(1, 8), 6), 64).0);
    let stats = driver.scheduler.stats();
    assert_eq!((stats.steps, stats.computed_tokens), (6, 13), "no row too many");
}

#[test]
fn an_end_is_told_at_once_and_nothing_of_the_row_ahead_is_kept() {
    let mut driver = driver(4);
    let mut stopping = request(prompt(1, BLOCK_SIZE - 1), 6);
    let first = solo(&stopping, 64).0[0];
    stopping.params.stop_token_ids = vec![first];
    let mut generation = driver.submit(stopping).1;
    assert!(driver.begin_step() && driver.begin_ahead());
    driver.end_step();
    assert_eq!(collect(&mut generation).reason, FinishReason::StopToken(first));
    let stats = driver.scheduler.stats();
    assert_eq!(
        (stats.running, stats.blocks_used, stats.blocks_cached),
        (0, 1, 0),
        "the row ahead writes to it"
    );
    assert!(driver.scheduler.has_work(), "a step is under way");
    assert!(!driver.begin_ahead());
    driver.end_step();
    let stats = driver.scheduler.stats();
    assert_eq!(
        (stats.blocks_used, stats.blocks_cached),
        (0, 0),
        "the block that the row filled is not cached"
    );
    assert!(!driver.scheduler.has_work());
}

#[test]
fn those_that_go_on_are_ahead_of_one_that_is_sure_to_end() {
    let mut driver = driver(8);
    let mut requests = [request(prompt(1, 5), 1), request(prompt(2, 9), 4), request(prompt(3, 60), 8)];
    requests[2].params.max_tokens = 3;
    let mut generations = requests.clone().map(|request| driver.submit(request).1);
    driver.step();
    // The third is not through with its prompt.
    assert!(driver.begin_step() && !driver.begin_ahead());
    driver.end_step();
    assert_eq!(run_ahead_to_end(&mut driver), 2);
    for (request, generation) in requests.iter().zip(&mut generations) {
        assert_eq!(collect(generation).ids(), solo(request, 128).0);
    }
}

#[test]
fn whoever_waits_goes_first() {
    let mut driver = driver(16);
    let _decoding = driver.submit(request(prompt(1, 8), 50));
    assert!(driver.begin_step() && driver.begin_ahead());
    let warm_up = Request { priority: Priority::WarmUp, ..request(prompt(2, 40), 0) };
    let _warm_up = driver.submit(warm_up);
    driver.end_step();
    assert!(driver.begin_ahead(), "a warm-up would not be in the next step");
    let mut typing = driver.submit(request(prompt(3, 8), 1)).1;
    driver.end_step();
    assert!(!driver.begin_ahead());
    driver.end_step();
    assert!(driver.begin_step());
    assert_eq!(driver.plan.num_rows(), 9);
    driver.end_step();
    assert_eq!(collect(&mut typing).reason, FinishReason::MaxTokens);
}

#[test]
fn no_blocks_are_taken_for_a_step_ahead() {
    let mut driver = driver(2);
    let _warm_up = driver.submit(Request { priority: Priority::WarmUp, ..request(prompt(1, 10), 5) });
    driver.step();
    let _typing = driver.submit(request(prompt(2, BLOCK_SIZE - 1), 5));
    assert!(driver.begin_step() && driver.begin_ahead(), "position 15 is in the block it has");
    driver.end_step();
    assert!(!driver.begin_ahead(), "position 16 needs the warm-up's block");
    driver.end_step();
    assert_eq!(driver.scheduler.stats().preemptions, 0);
    assert!(driver.begin_step());
    assert_eq!(driver.scheduler.stats().preemptions, 1);
    driver.end_step();
}

#[test]
fn a_cancelled_sequence_ends_with_the_older_step_which_is_cached() {
    let mut driver = driver(8);
    let (id, mut generation) = driver.submit(request(prompt(1, 2 * BLOCK_SIZE), 20));
    assert!(driver.begin_step() && driver.begin_ahead());
    driver.scheduler.cancel(id, Instant::now());
    driver.end_step();
    let output = collect(&mut generation);
    assert_eq!((output.reason, output.tokens.len()), (FinishReason::Cancelled, 0));
    assert_eq!(driver.scheduler.stats().blocks_cached, 2);
    driver.end_step();
    assert_eq!(driver.scheduler.stats().blocks_used, 0);
}

#[test]
fn what_the_text_must_begin_with_holds_the_next_step_back() {
    let tokenizer = byte_tokenizer();
    let text = |device: Option<Runs>| {
        let scheduler = Scheduler::new(config(16), Some(Arc::clone(&tokenizer)));
        let mut driver = Driver::over(scheduler, 16);
        if let Some(runs) = device {
            driver = driver.on_device(runs);
        }
        let mut held = request(prompt(1, 8), 12);
        held.params.begins_with = "ABA".into();
        let mut generation = driver.submit(held).1;
        let is_held =
            |plan: &StepPlan| matches!(&plan.wanted[..], [Wanted::Token(draw)] if draw.allowed.is_some());
        let mut held = 0;
        while driver.begin_step() && is_held(&driver.plan) {
            assert!(!driver.begin_ahead(), "the next tokens allowed depend on this one");
            driver.end_step();
            held += 1;
        }
        assert!(held > 0);
        let ahead = run_ahead_to_end(&mut driver);
        assert_eq!(ahead, if device.is_some() { 12 - held - 1 } else { 0 });
        collect(&mut generation).text()
    };
    let expected = text(None);
    assert!(expected.starts_with("ABA"), "{expected}");
    assert_eq!(text(Some(Runs::AtStart)), expected);
    assert_eq!(text(Some(Runs::AtFinish)), expected);
}

#[test]
fn more_log_probabilities_than_a_draw_reports_are_the_hosts() {
    for (count, ahead) in [(1, 3), (2, 0)] {
        let mut driver = driver(4);
        let mut asked = request(prompt(1, 8), 4);
        asked.params.top_logprobs = count;
        let mut generation = driver.submit(asked.clone()).1;
        assert!(driver.begin_step());
        assert_eq!(matches!(driver.plan.wanted[0], Wanted::Token(_)), count == 1);
        assert_eq!(run_ahead_to_end(&mut driver), ahead);
        let output = collect(&mut generation);
        let seen: Vec<_> = output.tokens.iter().map(|token| token.top_logprobs.clone()).collect();
        assert_eq!(seen, crate::toy_backend::solo_logprobs(&asked, &output.ids()));
    }
}

#[test]
fn an_invalid_logit_fails_its_sequence_at_once_and_the_other_goes_on() {
    let mut scheduler = Scheduler::new(config(8), None);
    let mut plan = StepPlan::default();
    let mut submit = |seed| {
        let (sender, generation) = Generation::channel();
        scheduler.submit(request(prompt(seed, BLOCK_SIZE), 9), sender, Instant::now()).expect("accepted");
        generation
    };
    let (mut bad, mut good) = (submit(1), submit(2));
    let now = Instant::now();
    assert!(scheduler.schedule(&mut plan, now) && scheduler.schedule_ahead(&mut plan, now));
    let invalid = Err(SamplingError::InvalidLogit { id: 7, value: "NaN".into() });
    let token = |token| RowOutput::Drawn(Ok(Drawn { token, best: token, best_logprob: -1.0 }));
    let mut output = StepOutput { rows: vec![RowOutput::Drawn(invalid), token(3)], ..StepOutput::default() };
    scheduler.apply(&output, now);
    assert!(matches!(collect(&mut bad).reason, FinishReason::Failed(message) if message.contains("token 7")));
    assert_eq!(scheduler.stats().blocks_cached, 1, "only what gave a valid token");
    output.rows = vec![token(0), token(4)];
    scheduler.apply(&output, now);
    assert_eq!(scheduler.stats().blocks_used, 2, "the other's alone");
    assert!(matches!(good.blocking_next(), Some(Event::Started(_))));
    for expected in [3, 4] {
        assert!(matches!(good.blocking_next(), Some(Event::Token(token)) if token.id == expected));
    }
}

#[test]
fn giving_up_two_steps_gives_all_blocks_back() {
    let mut driver = Driver::new(SchedulerConfig { max_batch_tokens: 64, ..config(8) });
    driver = driver.on_device(Runs::AtFinish);
    let ended = request(prompt(1, 20), 9);
    let stop = solo(&ended, 64).0[0];
    let mut stopping = ended;
    stopping.params.stop_token_ids = vec![stop];
    let mut stopped = driver.submit(stopping).1;
    let mut failed = driver.submit(request(prompt(2, 20), 9)).1;
    assert!(driver.begin_step() && driver.begin_ahead());
    driver.end_step();
    assert!(driver.scheduler.stats().blocks_used >= 4);
    driver.scheduler.fail_running("the device failed", Instant::now());
    assert_eq!(driver.scheduler.stats().blocks_used, 0);
    assert_eq!(collect(&mut stopped).reason, FinishReason::StopToken(stop));
    assert_eq!(collect(&mut failed).reason, FinishReason::Failed("the device failed".into()));
}

// ---- The engine thread ------------------------------------------------------------------------------------

#[test]
fn the_engine_runs_ahead_and_gives_everyone_their_own_tokens() {
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let device = ToyDevice::scripted(move |call, under_way| {
        if call == Call::Finish {
            seen.fetch_max(under_way, Ordering::Relaxed);
        }
        Ok(())
    });
    let engine = Arc::new(start(device, options(12)).expect("starts"));
    let threads: Vec<_> = (0..6u32)
        .map(|id| {
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                for round in 0..10 {
                    let priority = [Priority::WarmUp, Priority::Action, Priority::Typing][(id % 3) as usize];
                    let prompt = [prompt(round % 4, 40), prompt(id, 10)].concat();
                    let request = Request { priority, ..request(prompt, 12) };
                    let mut generation = engine.submit(request.clone()).expect("accepted");
                    assert_eq!(collect(&mut generation).ids(), solo(&request, 192).0);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread fails");
    }
    let alone = request(prompt(9, 10), 150);
    assert_eq!(collect(&mut engine.submit(alone.clone()).expect("accepted")).ids(), solo(&alone, 192).0);
    assert_eq!(most.load(Ordering::Relaxed), 2, "two steps were under way");
    // The end is told before the step ahead is over, never after.
    while engine.stats().blocks_used > 0 {
        thread::yield_now();
    }
    assert_eq!((engine.stats().running, engine.stats().waiting), (0, 0));
}

/// An engine whose device fails once, at a call of this kind with so many steps under way.
fn failing(at: Call, with: usize, error: fn() -> BackendError) -> Engine {
    let mut failed = false;
    let device = ToyDevice::scripted(move |call, under_way| {
        if !failed && call == at && under_way == with {
            failed = true;
            return Err(error());
        }
        Ok(())
    });
    start(device, options(12)).expect("starts")
}

#[test]
fn a_failing_step_fails_what_runs_and_the_engine_goes_on() {
    for (call, under_way) in [(Call::Start, 0), (Call::Start, 1), (Call::Finish, 1), (Call::Finish, 2)] {
        let engine = failing(call, under_way, || BackendError::Device("out of order".into()));
        let mut first = engine.submit(request(prompt(1, 8), 100)).expect("accepted");
        let failed = FinishReason::Failed("out of order".into());
        assert_eq!(collect(&mut first).reason, failed, "{call:?} {under_way}");
        assert_eq!(engine.stats().blocks_used, 0);
        let mut second = engine.submit(request(prompt(1, 8), 20)).expect("accepted");
        assert_eq!(collect(&mut second).ids(), solo(&request(prompt(1, 8), 20), 192).0);
    }
}

#[test]
fn a_lost_device_stops_the_engine_with_its_reason() {
    for (call, under_way) in [(Call::Start, 1), (Call::Finish, 2)] {
        let engine = failing(call, under_way, || BackendError::Lost("the GPU was lost".into()));
        let mut running = engine.submit(request(prompt(1, 8), 100)).expect("accepted");
        let reason = collect(&mut running).reason;
        assert_eq!(reason, FinishReason::Failed("the engine stopped: the GPU was lost".into()));
        let refused = engine.submit(request(prompt(1, 8), 1)).expect_err("stopped");
        assert_eq!(refused, SubmitError::Stopped("the GPU was lost".into()));
        assert_eq!(engine.failure().borrow().as_deref(), Some("the GPU was lost"));
        assert_eq!(engine.stats().blocks_used, 0);
    }
}

#[test]
fn dropping_the_engine_does_not_wait_for_an_endless_run() {
    let (begun, is_begun) = mpsc::channel();
    let device = ToyDevice::scripted(move |_, under_way| {
        if under_way == 2 {
            let _ = begun.send(());
        }
        thread::sleep(std::time::Duration::from_micros(100));
        Ok(())
    });
    let engine = start(device, options(64)).expect("starts");
    let mut endless = engine.submit(request(prompt(1, 8), 1000)).expect("accepted");
    is_begun.recv().expect("two steps are under way");
    drop(engine);
    assert!(matches!(collect(&mut endless).reason, FinishReason::Failed(_)));
}
