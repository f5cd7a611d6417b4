//! Whatever happens around it, a sequence gives the tokens it gives alone, wherever they are drawn.

use std::collections::BTreeSet;
use std::time::Instant;

use proptest::prelude::*;
use redstart_engine::SequenceId;
use redstart_engine::generator::Generation;
use redstart_engine::prefix_index::{BlockHasher, fnv1a_128};
use redstart_engine::request::{FinishReason, Priority, Request, SamplingParams, SubmitError};
use redstart_engine::scheduler::{Scheduler, SchedulerConfig};
use redstart_engine::step_plan::BLOCK_SIZE;

use crate::toy_backend::{Driver, Runs, collect, config, prompt, solo, solo_logprobs, solo_nll};

#[derive(Clone, Debug)]
enum Action {
    Submit(Request),
    /// Plan a step, or two where the tokens are drawn on the device, and apply the older one.
    Step {
        ahead: bool,
    },
    /// The same, and do something while they run.
    StepAround {
        ahead: bool,
        action: Box<Action>,
    },
    Cancel(usize),
    Drop(usize),
}

fn requests() -> impl Strategy<Value = Request> {
    let priority = prop_oneof![Just(Priority::WarmUp), Just(Priority::Action), Just(Priority::Typing)];
    let prompts =
        (0u32..3, 0usize..70, 0u32..3, 0usize..40).prop_map(|(shared, shared_len, own, own_len)| {
            let mut tokens = prompt(shared, shared_len);
            tokens.extend(prompt(100 + own, own_len.max(usize::from(shared_len == 0))));
            tokens
        });
    let params =
        (0usize..40, prop_oneof![Just(0.0f32), Just(0.7), Just(1.5)], any::<u64>(), any::<bool>(), 0u8..12)
            .prop_map(|(max_tokens, temperature, seed, ignore_eos, rare)| SamplingParams {
                max_tokens,
                temperature,
                seed: Some(seed),
                ignore_eos,
                prompt_nll: rare == 0,
                stop_token_ids: if rare == 1 { vec![5] } else { Vec::new() },
                top_logprobs: [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2][usize::from(rare)],
                ..SamplingParams::default()
            });
    (prompts, params, priority, prop::option::weighted(0.3, 0u64..3), prop::bool::weighted(0.9)).prop_map(
        |(prompt, params, priority, supersede_key, read_prefix_cache)| Request {
            prompt,
            params,
            priority,
            supersede_key,
            read_prefix_cache,
        },
    )
}

fn actions() -> impl Strategy<Value = Action> {
    let other = prop_oneof![
        3 => requests().prop_map(Action::Submit),
        1 => (0usize..20).prop_map(Action::Cancel),
        1 => (0usize..20).prop_map(Action::Drop),
    ];
    prop_oneof![
        4 => any::<bool>().prop_map(|ahead| Action::Step { ahead }),
        5 => other.clone(),
        2 => (any::<bool>(), other)
            .prop_map(|(ahead, action)| Action::StepAround { ahead, action: Box::new(action) }),
    ]
}

fn configs() -> impl Strategy<Value = SchedulerConfig> {
    (2usize..14, 0usize..20, 1usize..5, 1usize..60).prop_map(|(num_blocks, shorter, max_sequences, more)| {
        SchedulerConfig {
            max_model_len: num_blocks * BLOCK_SIZE - shorter,
            max_sequences,
            max_batch_tokens: max_sequences + more,
            max_waiting: 6,
            ..config(num_blocks)
        }
    })
}

fn constant_hash(_: u128, _: &[u32]) -> u128 {
    0
}

/// The run of one test case.
struct Run {
    driver: Driver,
    max_model_len: usize,
    max_waiting: usize,
    /// Submitted, with their receivers unless dropped.
    submitted: Vec<(SequenceId, Request, Option<Generation>)>,
    cancelled: BTreeSet<SequenceId>,
}

impl Run {
    fn new(config: SchedulerConfig, hasher: BlockHasher, device: Option<Runs>) -> Self {
        let (num_blocks, max_model_len, max_waiting) =
            (config.num_blocks, config.max_model_len, config.max_waiting);
        let driver = Driver::over(Scheduler::with_block_hasher(config, None, hasher), num_blocks);
        let driver = match device {
            Some(runs) => driver.on_device(runs),
            None => driver,
        };
        Self { driver, max_model_len, max_waiting, submitted: Vec::new(), cancelled: BTreeSet::new() }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Step { ahead } => self.step(ahead, |_| {}),
            Action::StepAround { ahead, action } => self.step(ahead, |run| run.act(*action)),
            Action::Submit(request) => match self.driver.try_submit(request.clone()) {
                Ok((id, generation)) => self.submitted.push((id, request, Some(generation))),
                Err(SubmitError::PromptTooLong { tokens, limit }) => {
                    assert_eq!((tokens, limit), (request.prompt.len(), self.max_model_len - 1));
                    assert!(tokens > limit);
                }
                Err(SubmitError::QueueFull { limit }) => {
                    assert_eq!(limit, self.max_waiting);
                    assert!(self.driver.scheduler.stats().waiting >= limit);
                }
                Err(error) => panic!("{error}"),
            },
            Action::Cancel(index) => {
                if let Some(&(id, ..)) = self.submitted.get(index) {
                    self.driver.scheduler.cancel(id, Instant::now());
                    self.cancelled.insert(id);
                }
            }
            Action::Drop(index) => {
                if let Some((_, _, generation)) = self.submitted.get_mut(index) {
                    *generation = None;
                }
            }
        }
    }

    fn step(&mut self, ahead: bool, meanwhile: impl FnOnce(&mut Self)) {
        let under_way = self.driver.begin_step();
        if ahead && self.driver.started == 1 {
            self.driver.begin_ahead();
        }
        meanwhile(self);
        if under_way {
            self.driver.end_step();
        }
    }

    fn check(mut self) {
        self.driver.run_to_end();
        let stats = self.driver.scheduler.stats();
        assert_eq!((stats.blocks_used, stats.running, stats.waiting), (0, 0, 0), "nothing is left behind");
        for (id, request, generation) in self.submitted {
            let Some(mut generation) = generation else {
                continue;
            };
            let output = collect(&mut generation);
            let (expected, reason) = solo(&request, self.max_model_len);
            match output.reason {
                FinishReason::Cancelled => assert!(self.cancelled.contains(&id)),
                FinishReason::Superseded => assert!(request.supersede_key.is_some()),
                ref other => {
                    assert_eq!(*other, reason);
                    assert_eq!(output.ids(), expected);
                    let logprobs: Vec<_> = output.tokens.iter().map(|t| t.top_logprobs.clone()).collect();
                    assert_eq!(logprobs, solo_logprobs(&request, &expected));
                    check_account(&request, &output.usage);
                    continue;
                }
            }
            assert!(expected.starts_with(&output.ids()), "what came before the end is as alone, too");
        }
    }
}

fn check_account(request: &Request, usage: &redstart_engine::request::Usage) {
    assert_eq!(usage.prompt_tokens, request.prompt.len());
    assert!(usage.cached_tokens <= request.prompt.len());
    if request.params.prompt_nll || !request.read_prefix_cache {
        assert_eq!(usage.cached_tokens, 0);
    }
    let expected = if request.params.prompt_nll { solo_nll(&request.prompt) } else { None };
    match (usage.prompt_nll, expected) {
        (Some(seen), Some(expected)) => {
            assert!((seen - expected).abs() < 1e-9, "{seen} for {expected}")
        }
        (seen, expected) => assert_eq!(seen, expected),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_sequence_is_as_if_alone(
        config in configs(),
        collide in prop::bool::weighted(0.3),
        device in prop::option::weighted(0.7, prop_oneof![Just(Runs::AtStart), Just(Runs::AtFinish)]),
        actions in prop::collection::vec(actions(), 1..60),
    ) {
        let mut run = Run::new(config, if collide { constant_hash } else { fnv1a_128 }, device);
        for action in actions {
            run.act(action);
        }
        run.check();
    }
}
