//! `redstart bench typing`: how soon suggestions are there while somebody types.
//!
//! A [`recording`] is what somebody did in a file, key by key. [`player`] does it again, with the habits
//! of one of the [`editors`], to a [`Suggester`](player::Suggester): our own [`server`] behind a pipe
//! ([`redstart`]) or a [`peer`]. [`tally`] counts, [`report`] shows. [`echo`] is what the machine itself
//! takes. [`record`] makes recordings and [`load`]
//! times edits while the server is busy.

mod buffer;
mod echo;
mod editors;
mod load;
mod peer;
mod player;
mod record;
mod recording;
mod redstart;
mod report;
mod server;
mod tally;

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;

use self::editors::Editor;
use self::peer::{Peer, PeerAddress};
use self::player::{Manner, Suggester};
use self::recording::Recording;
use self::redstart::Redstart;
use self::report::{Replay, Setting};
use self::server::{Launcher, Server, ServerArgs};
use self::tally::Figures;
use crate::commands::{print, report as say, runtime};

/// The measures that can be switched off, as `redstart lsp --without` knows them.
const MEASURES: [&str; 6] = ["typed-through", "join", "ahead", "kept-prefix", "context", "pace"];

/// Measure how soon suggestions are there while somebody types.
///
/// Replays recorded editing (keys with a person's rhythm, pauses, errors and their correction, jumps,
/// accepts) through this program's own server behind a real pipe, as an editor would, and prints: the time from
/// a key to a suggestion on the client's side; which share of the suggestions was the rest of the one
/// before (typed through), came of a generation already under way (joined) or made in advance (ahead); the share
/// of prompt tokens served from the cache; what was generated in vain; and the server's processor
/// time for a minute of typing. At the end of every recording the server's copy of the file must be the
/// recording's final text.
///
/// The recordings inside this program take ten minutes at the speed they were made at; --speed 4 is
/// quicker and harder on the server. The format of recordings is described in docs/RECORDINGS.md.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    redstart bench typing                                   all recordings, at a person's speed\n  \
    redstart bench typing --recording rust-grid --speed 4   one of them, four times as fast\n  \
    redstart bench typing --editor neovim --json            with Neovim's habits, for scripts\n  \
    redstart bench typing --compare --speed 4               with each measure for typing switched off in turn\n  \
    redstart bench typing --peer http://127.0.0.1:8012      beside a llama.cpp server with /infill\n  \
    redstart bench typing --load                            whether edits wait for generations\n  \
    redstart bench typing --record mine.json                be a server to your editor and write down what it does\n  \
    redstart bench typing --model DIR -- --kv-cache-mb 256  further options of redstart lsp")]
pub(super) struct TypingArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// Replay this recording, a file or the name of one inside this program; may be repeated. Default: all
    /// those inside
    #[arg(long, value_name = "FILE")]
    recording: Vec<PathBuf>,

    /// Whose habits to have
    #[arg(long, value_enum, default_value_t)]
    editor: Editor,

    /// How much faster than recorded; pauses shrink alike
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = speed)]
    speed: f64,

    /// Measures for typing to switch off, separated by commas: typed-through, join, ahead, kept-prefix,
    /// context, pace
    #[arg(long, value_name = "LIST", conflicts_with = "compare", value_parser = measures)]
    without: Option<String>,

    /// Replay once with everything, once with each measure switched off and once with none, and print the runs
    /// side by side
    #[arg(long, conflicts_with_all = ["peer", "load", "record"])]
    compare: bool,

    /// Replay to a llama.cpp-style server with POST /infill as well, and print both side by side. It must be
    /// on this machine. Of it, single lines are asked for, and a newer request ends the one before
    #[arg(long, value_name = "URL", conflicts_with_all = ["load", "record"], value_parser = PeerAddress::parse)]
    peer: Option<PeerAddress>,

    /// Send 2,000 edits, once to an idle server and once while other documents ask for suggestions all the
    /// time, and print how long each took to be applied
    #[arg(long, conflicts_with_all = ["recording", "record"])]
    load: bool,

    /// Be a server to an editor on standard input and output, and write what it does in the first file that it
    /// edits to this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["recording", "json"])]
    record: Option<PathBuf>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &TypingArgs) -> anyhow::Result<()> {
    let launcher = Launcher::new(&args.server)?;
    let runtime = runtime()?;
    let result = match &args.record {
        Some(file) => runtime.block_on(record::run(&launcher, args.without.as_deref(), file)),
        None => runtime.block_on(measure(args, &launcher)).and_then(|text| Ok(print(&text)?)),
    };
    // A read of stdin cannot be interrupted; waiting for it would hang the exit.
    runtime.shutdown_background();
    result
}

async fn measure(args: &TypingArgs, launcher: &Launcher) -> anyhow::Result<String> {
    if args.load {
        return measure_load(args, launcher).await;
    }
    let recordings = match args.recording.as_slice() {
        [] => Recording::built_in()?,
        files => files.iter().map(|file| Recording::open(file)).collect::<anyhow::Result<_>>()?,
    };
    let manner = Manner { editor: args.editor, speed: args.speed };
    let setting = |model: String| Setting {
        model,
        editor: args.editor.name(),
        speed: args.speed,
        without: args.without.clone(),
    };
    if args.compare {
        let (runs, model) = compare(launcher, &recordings, manner).await?;
        let setting = setting(model);
        return match args.json {
            true => report::comparison_json(&setting, &runs),
            false => Ok(report::comparison(&setting, &runs)),
        };
    }
    // Asked before ten minutes of replay.
    let peer = match &args.peer {
        Some(address) => Some(Peer::connect(address.clone()).await?),
        None => None,
    };
    let (ours, model) =
        replay_ours(launcher, args.without.as_deref(), &recordings, manner, "redstart").await?;
    let theirs = match peer {
        Some(mut peer) => Some(replay_peer(&mut peer, &recordings, manner).await?),
        None => None,
    };
    let setting = setting(model);
    match args.json {
        true => report::json(&setting, &ours, theirs.as_ref()),
        false => Ok(report::table(&setting, &ours, theirs.as_ref())),
    }
}

/// A run with everything, one without each measure, and one without all of them. Returns the figures of each under
/// what was switched off, and the model's name.
async fn compare(
    launcher: &Launcher,
    recordings: &[Recording],
    manner: Manner,
) -> anyhow::Result<(Vec<(String, Figures)>, String)> {
    let all = MEASURES.join(",");
    let one_off = MEASURES.map(|measure| (measure, Some(measure)));
    let variants =
        [("nothing", None)].into_iter().chain(one_off).chain([("all of them", Some(all.as_str()))]);
    let mut runs = Vec::new();
    let mut model = String::new();
    for (name, without) in variants {
        let (replay, of) =
            replay_ours(launcher, without, recordings, manner, &format!("without {name}")).await?;
        model = of;
        runs.push((name.to_owned(), replay.figures()));
    }
    Ok((runs, model))
}

/// Replays to a server of its own. Returns what was counted and the model's name.
async fn replay_ours(
    launcher: &Launcher,
    without: Option<&str>,
    recordings: &[Recording],
    manner: Manner,
    name: &str,
) -> anyhow::Result<(Replay, String)> {
    let server = Server::start(launcher, without).await?;
    let progress = steps_of(recordings);
    let mut replay = Replay(Vec::new());
    for recording in recordings {
        progress.set_message(format!("{name}: {}", recording.name));
        let before = (server.totals().await?, server.cpu_seconds());
        let mut target = Redstart::new(&server);
        let mut tally = player::play(recording, &mut target, manner, || progress.inc(1)).await?;
        tally.server = Some(server.totals().await?.since(before.0));
        tally.cpu_seconds = server.cpu_seconds().zip(before.1).map(|(now, then)| now - then);
        replay.0.push((recording.name.clone(), tally));
    }
    progress.finish_and_clear();
    let model = server.model.clone();
    server.stop().await?;
    mention_errors(&replay, "the server");
    Ok((replay, model))
}

async fn replay_peer(
    peer: &mut impl Suggester,
    recordings: &[Recording],
    manner: Manner,
) -> anyhow::Result<Replay> {
    let progress = steps_of(recordings);
    let mut replay = Replay(Vec::new());
    for recording in recordings {
        progress.set_message(format!("peer: {}", recording.name));
        let tally = player::play(recording, peer, manner, || progress.inc(1)).await?;
        replay.0.push((recording.name.clone(), tally));
    }
    progress.finish_and_clear();
    mention_errors(&replay, "the peer");
    Ok(replay)
}

fn mention_errors(replay: &Replay, whose: &str) {
    if let Some(error) = replay.first_error() {
        let count = replay.figures().errors;
        say(&format!("redstart: {count} answers of {whose} were errors; the first: {error}"));
    }
}

async fn measure_load(args: &TypingArgs, launcher: &Launcher) -> anyhow::Result<String> {
    let server = Server::start(launcher, args.without.as_deref()).await?;
    let progress = super::progress(2 * load::EDITS);
    progress.set_message("edits: idle, then under load");
    let report = load::run(&server, || progress.inc(1)).await?;
    progress.finish_and_clear();
    server.stop().await?;
    if args.json { report.json() } else { Ok(report.table()) }
}

fn steps_of(recordings: &[Recording]) -> ProgressBar {
    super::progress(recordings.iter().map(|recording| recording.steps.len()).sum())
}

/// A factor that a clock can follow.
fn speed(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(speed @ 0.1..=1000.0) => Ok(speed),
        _ => Err("a number from 0.1 to 1000 is wanted".to_owned()),
    }
}

/// A list of measures, as it is passed on.
fn measures(text: &str) -> Result<String, String> {
    match text.split(',').find(|name| !MEASURES.contains(name)) {
        Some(unknown) => Err(format!("there is no measure '{unknown}'; there are {}", MEASURES.join(", "))),
        None => Ok(text.to_owned()),
    }
}
