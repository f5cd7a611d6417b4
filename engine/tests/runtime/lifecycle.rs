//! The engine thread: start, concurrent use, failure, end.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use redstart_engine::backend::{Backend, BackendError};
use redstart_engine::engine::{Engine, EngineError, EngineOptions, KvCacheSize};
use redstart_engine::generator::Generator;
use redstart_engine::request::{FinishReason, Priority, Request, SubmitError};
use redstart_engine::step_plan::StepPlan;

use crate::toy_backend::{EOS, ToyBackend, VOCAB_SIZE, collect, model_info, prompt, request, solo};

pub(crate) fn options(num_blocks: usize) -> EngineOptions {
    EngineOptions {
        kv_cache: KvCacheSize::Blocks(num_blocks),
        max_batch_tokens: 24,
        max_sequences: 3,
        ..EngineOptions::default()
    }
}

pub(crate) fn start(backend: impl Backend + 'static, options: EngineOptions) -> Result<Engine, EngineError> {
    Engine::start(Box::new(backend), model_info(), vec![EOS], options)
}

/// A toy whose every step asks `script` what to do, and which tells when it is dropped.
struct Scripted<F> {
    toy: ToyBackend,
    script: F,
    dropped: Option<mpsc::Sender<()>>,
}

impl<F: FnMut(&StepPlan) -> Result<(), BackendError> + Send> Backend for Scripted<F> {
    fn name(&self) -> String {
        "scripted".into()
    }
    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }
    fn max_positions(&self) -> usize {
        self.toy.max_positions()
    }
    fn kv_block_bytes(&self) -> usize {
        self.toy.kv_block_bytes()
    }
    fn weight_bytes(&self) -> usize {
        0
    }

    fn allocate_kv(&mut self, num_blocks: usize) -> Result<(), BackendError> {
        self.toy.allocate_kv(num_blocks)
    }
    fn forward(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        (self.script)(plan)?;
        self.toy.forward(plan, logits)
    }
}

impl<F> Drop for Scripted<F> {
    fn drop(&mut self) {
        if let Some(dropped) = &self.dropped {
            let _ = dropped.send(());
        }
    }
}

fn scripted<F: FnMut(&StepPlan) -> Result<(), BackendError> + Send>(script: F) -> Scripted<F> {
    Scripted { toy: ToyBackend::default(), script, dropped: None }
}

#[test]
fn many_threads_get_their_own_tokens() {
    let engine = Arc::new(start(ToyBackend::default(), options(12)).expect("starts"));
    assert_eq!(engine.model().max_model_len, 192, "the KV cache bounds the context");
    let threads: Vec<_> = (0..8u32)
        .map(|id| {
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                for round in 0..20 {
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
    let stats = engine.stats();
    assert_eq!((stats.blocks_used, stats.running, stats.waiting, stats.blocks_total), (0, 0, 0, 12));
    assert_eq!(stats.generated_tokens, 8 * 20 * 12);
    assert!(stats.hit_tokens > 0 && stats.blocks_cached > 0);
}

#[test]
fn a_dropped_generation_ends_its_work_within_a_step() {
    // The backend takes a step only when it is let; the test lets it take three.
    let (let_step, may_step) = mpsc::channel::<()>();
    let (begun, steps) = mpsc::channel::<usize>();
    let backend = scripted(move |plan| {
        begun.send(plan.num_rows()).expect("the test listens");
        may_step.recv().map_err(|_| BackendError::Device("the test is over".into()))
    });
    let engine = start(backend, options(12)).expect("starts");
    let dropped = engine.submit(request(prompt(1, 100), 10)).expect("accepted");
    for _ in 0..2 {
        assert_eq!(steps.recv(), Ok(24), "a chunk of the prompt");
        let_step.send(()).expect("the engine listens");
    }
    assert_eq!(steps.recv(), Ok(24));
    drop(dropped);
    let mut next = engine.submit(request(prompt(2, 7), 1)).expect("accepted");
    let_step.send(()).expect("the engine listens");
    assert_eq!(steps.recv(), Ok(7), "the step after the drop is the next request's");
    let_step.send(()).expect("the engine listens");
    assert_eq!(collect(&mut next).reason, FinishReason::MaxTokens);
}

#[test]
fn a_failing_step_fails_what_runs_and_the_engine_goes_on() {
    let mut failures = 1;
    let backend = scripted(move |_| {
        if failures == 0 {
            return Ok(());
        }
        failures -= 1;
        Err(BackendError::Device("the device fell off the bus".into()))
    });
    let engine = start(backend, options(8)).expect("starts");
    let mut first = engine.submit(request(prompt(1, 8), 3)).expect("accepted");
    let failed = FinishReason::Failed("the device fell off the bus".into());
    assert_eq!(collect(&mut first).reason, failed);
    let mut second = engine.submit(request(prompt(1, 8), 3)).expect("accepted");
    assert_eq!(collect(&mut second).ids(), solo(&request(prompt(1, 8), 3), 128).0);
}

#[test]
fn a_panic_of_the_backend_is_told_to_all_and_ends_the_engine_only() {
    let (release, released) = mpsc::channel::<()>();
    let backend = scripted(move |_| {
        let _ = released.recv();
        panic!("kernel launch went wrong")
    });
    let engine = start(backend, options(8)).expect("starts");
    let failure = engine.failure();
    assert_eq!(*failure.borrow(), None);
    let mut running = engine.submit(request(prompt(1, 8), 3)).expect("accepted");
    let mut waiting = engine.submit(request(prompt(2, 8), 3)).expect("accepted");
    release.send(()).expect("the engine listens");
    for generation in [&mut running, &mut waiting] {
        let reason = collect(generation).reason;
        assert!(
            matches!(&reason, FinishReason::Failed(m) if m.contains("kernel launch went wrong")),
            "{reason:?}"
        );
    }
    let refused = engine.submit(request(prompt(3, 8), 3)).expect_err("stopped");
    assert!(
        matches!(&refused, SubmitError::Stopped(m) if m.contains("kernel launch went wrong")),
        "{refused:?}"
    );
    // Told last, when all is said and done: its end is waited for.
    drop(engine);
    assert!(failure.borrow().as_deref().is_some_and(|reason| reason.contains("kernel launch went wrong")));
}

#[test]
fn an_engine_that_is_dropped_has_not_failed() {
    let engine = start(scripted(|_| Ok(())), options(8)).expect("starts");
    let failure = engine.failure();
    drop(engine);
    assert_eq!(*failure.borrow(), None);
    assert!(failure.has_changed().is_err(), "closed");
}

#[test]
fn dropping_the_engine_ends_its_thread_and_tells_who_waits() {
    let (dropped, backend_dropped) = mpsc::channel();
    let mut backend = scripted(|_| Ok(()));
    backend.dropped = Some(dropped);
    let engine = start(backend, options(8)).expect("starts");
    let mut endless = engine.submit(request(prompt(1, 8), 100)).expect("accepted");
    drop(engine);
    backend_dropped.try_recv().expect("the thread, which owns the backend, has ended");
    let reason = collect(&mut endless).reason;
    // On a fast machine it may have come to its end before the engine did.
    assert!(matches!(reason, FinishReason::Failed(_) | FinishReason::MaxTokens), "{reason:?}");
}

#[test]
fn an_idle_engine_is_dropped_at_once() {
    drop(start(ToyBackend::default(), options(8)).expect("starts"));
}

#[test]
fn options_that_cannot_work_are_refused() {
    let refused =
        |options: EngineOptions| start(ToyBackend::default(), options).expect_err("refused").to_string();
    let small = refused(EngineOptions { kv_cache: KvCacheSize::Bytes(1500), ..options(8) });
    assert!(small.contains("1500 bytes hold 1 blocks"), "{small}");
    let long = refused(EngineOptions { max_model_len: Some(2000), ..options(100) });
    assert!(long.contains("2000") && long.contains("the model allows 1024"), "{long}");
    let long = refused(EngineOptions { max_model_len: Some(200), ..options(8) });
    assert!(long.contains("the KV cache allows 128"), "{long}");
    assert!(refused(EngineOptions { max_batch_tokens: 3, ..options(8) }).contains("max_batch_tokens"));
    assert!(refused(EngineOptions { max_sequences: 0, ..options(8) }).contains("max_sequences"));
    let fits =
        start(ToyBackend::default(), EngineOptions { kv_cache: KvCacheSize::Bytes(8500), ..options(0) });
    assert_eq!(fits.expect("starts").stats().blocks_total, 8);
}
