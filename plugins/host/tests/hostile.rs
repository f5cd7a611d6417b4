//! Plugins that misbehave: each gets a clear error, and the next call is served.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redstart_plugins::prompt::{Context, Prompt};
use redstart_plugins::{Limits, Plugin, PluginError, PluginHost, shipped};
use support::{completion, guest, review};

fn host() -> Arc<PluginHost> {
    PluginHost::new(Limits::default()).unwrap()
}

/// Never suspended, so that one plugin can go through many failures.
fn patient_host() -> Arc<PluginHost> {
    PluginHost::new(Limits { failures: u32::MAX, ..Limits::default() }).unwrap()
}

fn mode(name: &str) -> Context {
    Context { path: name.into(), ..completion("line-last") }
}

async fn build(plugin: &Plugin, name: &str) -> Result<Prompt, PluginError> {
    plugin.build(mode(name)).await
}

fn load_error(bytes: &[u8]) -> PluginError {
    host().load("test", bytes).err().expect("it must not load")
}

fn component(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).unwrap()
}

#[tokio::test]
async fn each_misdeed_has_its_error_and_the_next_call_is_served() {
    let plugin = patient_host().load("hostile", &guest("hostile")).unwrap();
    for name in
        ["spin", "grow", "recurse", "trap", "flood", "big", "many", "control", "tokens", "empty", "refuse"]
    {
        let error = build(&plugin, name).await.unwrap_err();
        let expected = match name {
            "spin" => matches!(error, PluginError::Timeout { .. }),
            "grow" => matches!(error, PluginError::OutOfMemory { .. }),
            "recurse" => matches!(error, PluginError::StackOverflow),
            "trap" => {
                matches!(&error, PluginError::Trap { backtrace, .. } if !backtrace.is_empty())
            }
            "flood" | "big" => matches!(error, PluginError::OutputTooLarge { .. }),
            "many" | "tokens" | "empty" => matches!(error, PluginError::BadPrompt(_)),
            "control" => {
                matches!(&error, PluginError::BadPrompt(why) if why.contains("<|no_such_token|>"))
            }
            _ => error == PluginError::Returned("no prompt today".into()),
        };
        assert!(expected, "{name}: {error:?}");
        assert!(build(&plugin, "good").await.is_ok(), "after {name}");
    }
    let lines = plugin.finish(mode("lines").into(), String::new()).await.unwrap_err();
    assert!(matches!(lines, PluginError::BadAnswer(_)), "{lines:?}");
    let spin = plugin.finish(mode("spin").into(), String::new()).await.unwrap_err();
    assert!(matches!(spin, PluginError::Timeout { .. }), "{spin:?}");
    assert_eq!(plugin.finish(mode("good").into(), "raw".into()).await.unwrap().insertions, ["raw"]);
}

/// The clock sleeps between calls; a deadline must hold after it slept, and with others running.
#[tokio::test]
async fn the_clock_runs_whenever_a_call_does() {
    let plugin = patient_host().load("hostile", &guest("hostile")).unwrap();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(20));
        let (first, second) = tokio::join!(build(&plugin, "spin"), build(&plugin, "spin"));
        assert!(matches!(
            (first, second),
            (Err(PluginError::Timeout { .. }), Err(PluginError::Timeout { .. }))
        ));
    }
}

#[tokio::test]
async fn repeated_failures_suspend() {
    let plugin = host().load("hostile", &guest("hostile")).unwrap();
    for name in ["trap", "trap", "good", "refuse", "trap", "trap"] {
        assert!(plugin.suspended().is_none());
        let _ = build(&plugin, name).await;
    }
    assert!(plugin.suspended().is_none(), "only two in a row");
    let _ = build(&plugin, "trap").await;
    let error = build(&plugin, "good").await.unwrap_err();
    assert!(
        matches!(&error, PluginError::Suspended { failures: 3, last } if last.contains("crashed")),
        "{error:?}"
    );
    plugin.resume();
    assert!(build(&plugin, "good").await.is_ok());
}

#[tokio::test]
async fn a_call_given_up_neither_blocks_nor_harms() {
    let plugin = patient_host().load("hostile", &guest("hostile")).unwrap();
    for _ in 0..8 {
        let call = build(&plugin, "spin");
        drop(call);
        let mut call = Box::pin(build(&plugin, "spin"));
        let _ =
            std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context).is_pending()))
                .await;
    }
    assert!(build(&plugin, "good").await.is_ok());
}

#[tokio::test]
async fn a_job_that_panics_does_so_where_it_is_waited_for_and_the_next_is_run() {
    let plugin = patient_host().load("hostile", &guest("hostile")).unwrap();
    for _ in 0..4 {
        let job = plugin.run(|_| -> u32 { panic!("a defect") });
        let panic = tokio::spawn(job).await.unwrap_err().into_panic();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"a defect"));
    }
    let of_job = plugin.clone();
    let twice = plugin.run(move |thread| {
        [of_job.build_on(thread, &mode("trap")), of_job.build_on(thread, &mode("good"))]
            .map(|built| built.is_ok())
    });
    assert_eq!(twice.await, [false, true]);
}

#[tokio::test]
async fn an_urgent_job_runs_on_the_calling_thread_after_a_quick_call_and_only_then() {
    let plugin = patient_host().load("hostile", &guest("hostile")).unwrap();
    let (caller, of_jobs) = (std::thread::current().id(), plugin.clone());
    let urgent = |name: &'static str| {
        let plugin = of_jobs.clone();
        of_jobs.run_urgent(move |thread| {
            let built = plugin.build_on(thread, &mode(name));
            (built.is_ok(), std::thread::current().id() == caller)
        })
    };
    assert_eq!(urgent("good").await, (true, false), "nothing is known of it yet");
    // On a machine that stands still for a moment no call is quick.
    while urgent("good").await != (true, true) {}
    assert!(build(&plugin, "good").await.is_ok());

    while !plugin.run_urgent(move |_| std::thread::current().id() == caller).await {
        build(&plugin, "good").await.unwrap();
    }
    let job = plugin.run_urgent(|_| -> u32 { panic!("a defect") });
    let panic = tokio::spawn(job).await.unwrap_err().into_panic();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a defect"));

    assert!(build(&plugin, "spin").await.is_err());
    assert_eq!(urgent("good").await, (true, false), "the last call was slow");
}

#[tokio::test]
async fn a_job_begins_at_once_and_one_that_nobody_waits_for_does_not_begin() {
    let plugin = PluginHost::new(Limits { threads: 1, ..Limits::default() })
        .unwrap()
        .load("hostile", &guest("hostile"))
        .unwrap();
    let (begun, wait) = std::sync::mpsc::channel();
    let (let_go, blocked) = std::sync::mpsc::channel::<()>();
    let first = plugin.run(move |_| {
        begun.send(()).unwrap();
        blocked.recv().unwrap();
    });
    wait.recv().expect("it runs before it is polled");
    let (dropped, is_dropped) = std::sync::mpsc::channel::<()>();
    drop(plugin.run(move |_| dropped.send(()).unwrap()));
    let_go.send(()).unwrap();
    first.await;
    plugin.run(|_| ()).await;
    assert!(is_dropped.try_recv().is_err(), "nobody waited for it");
}

#[tokio::test]
async fn an_oversized_context_is_refused_before_it_is_copied() {
    let plugin = host().load("hostile", &guest("hostile")).unwrap();
    let mut context = mode("good");
    context.prefix = "x".repeat(3 << 20);
    let error = plugin.build(context).await.unwrap_err();
    assert!(matches!(error, PluginError::ContextTooLarge { .. }), "{error:?}");
    // A large one that is allowed comes back whole.
    let mut context = mode("good");
    context.prefix = "x".repeat(1 << 20);
    assert!(plugin.build(context).await.is_ok());
}

#[test]
fn files_that_are_no_component() {
    let good = guest("hostile");
    for (what, bytes, says) in [
        ("empty", Vec::new(), "does not start"),
        ("text", b"fn main() {}".to_vec(), "does not start"),
        (
            "random",
            (0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
            "does not start",
        ),
        ("core module", component("(module (func (export \"build\")))"), "core module"),
        ("header alone", good[..8].to_vec(), ""),
        ("truncated", good[..good.len() / 2].to_vec(), ""),
        ("other version", [b"\0asm".as_slice(), &[9, 9, 9, 9]].concat(), "version"),
    ] {
        let error = load_error(&bytes);
        match what {
            "header alone" => assert!(matches!(error, PluginError::Incompatible { .. }), "{what}: {error:?}"),
            _ => assert!(
                matches!(&error, PluginError::NotAComponent(why) if why.contains(says)),
                "{what}: {error:?}"
            ),
        }
    }
    let host = PluginHost::new(Limits { component_bytes: 100, ..Limits::default() }).unwrap();
    assert!(matches!(host.load("test", &good).err(), Some(PluginError::TooLarge { limit: 100, .. })));
}

/// Flips bytes all over a good file: whatever loads must not end the process.
#[test]
fn damaged_files() {
    let good = guest("hostile");
    let host = host();
    for step in 1..24 {
        let mut bytes = good.clone();
        for position in (step * 97..bytes.len()).step_by(bytes.len() / 3) {
            bytes[position] ^= 0x55;
        }
        let _ = host.load("test", &bytes);
    }
    assert!(host.load("test", &good).is_ok());
}

#[test]
fn imports_are_refused_by_name() {
    let error = load_error(&component(
        "(component (import \"wasi:cli/environment@0.2.6\" (instance)) (import \"wasi:io/poll@0.2.6\" (instance)))",
    ));
    let expected = ["wasi:cli/environment@0.2.6".to_owned(), "wasi:io/poll@0.2.6".to_owned()];
    assert_eq!(error, PluginError::MissingImport(expected.to_vec()));
    assert!(error.to_string().contains("wasi:io/poll"), "{error}");
}

/// The good guest with another version written into it.
fn of_version(version: &str) -> Vec<u8> {
    let (from, to) = (b"redstart:prompt/plugin@0.1.0", format!("redstart:prompt/plugin@{version}"));
    let mut bytes = guest("hostile");
    while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

#[tokio::test]
async fn versions() {
    for version in ["0.2.0", "1.1.0"] {
        let error = load_error(&of_version(version));
        let says = format!(
            "the plugin speaks redstart:prompt/plugin@{version}, this server speaks redstart:prompt/plugin@0.1"
        );
        assert_eq!(error.to_string(), says);
    }
    let plugin = host().load("newer patch", &of_version("0.1.9")).unwrap();
    assert!(build(&plugin, "good").await.is_ok());
    let other = load_error(&component(
        "(component (component $c) (instance $i (instantiate $c)) (export \"demo:other/thing@1.0.0\" (instance $i)))",
    ));
    assert!(other.to_string().contains("demo:other/thing@1.0.0"), "{other}");
    let hollow = load_error(&component(
        "(component (component $c) (instance $i (instantiate $c)) (export \"redstart:prompt/plugin@0.1.0\" (instance $i)))",
    ));
    assert!(matches!(hollow, PluginError::Incompatible { .. }), "{hollow:?}");
}

#[test]
fn the_host_can_go_while_calls_run() {
    let plugin = patient_host().load("hostile", &guest("hostile")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut call = Box::pin(build(&plugin, "spin"));
        std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context).is_pending()))
            .await;
    });
    drop(plugin);
}

/// Prints what a call costs; asserts nothing about it.
#[tokio::test]
#[expect(clippy::print_stderr, reason = "the figures are what this test is for")]
async fn cost_of_a_call() {
    let host = host();
    let started = Instant::now();
    let complete = host.load("complete", shipped::COMPLETE).unwrap();
    let load_complete = started.elapsed();
    let review_plugin = host.load("review", shipped::REVIEW).unwrap();
    eprintln!("load: complete {load_complete:?}, review {:?}", started.elapsed() - load_complete);
    let mut context = completion("line-last");
    context.prefix = "    value = compute(value)\n".repeat(400);
    for (plugin, context, raw) in
        [(complete, context, "x = 1"), (review_plugin, review(), "{\"line\": 1, \"message\": \"m\"}")]
    {
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..1000 {
            let context = context.clone();
            let started = Instant::now();
            plugin.build(context.clone()).await.unwrap();
            plugin.finish(context.into(), raw.into()).await.unwrap();
            times.push(started.elapsed());
        }
        times.sort();
        eprintln!("{}: build + finish p50 {:?}, p99 {:?}", plugin.name(), times[500], times[990]);
    }
}
