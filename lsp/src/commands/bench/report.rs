//! What `redstart bench` prints.

use std::fmt::Write;

use serde::Serialize;

use super::measure::{Figures, Setting, TAIL};
use super::{MeasureArgs, rounded};

/// The figures, rounded; its JSON is for scripts. Times are in milliseconds, an MB is 2^20 bytes, a GB
/// 10^9; `null` is what the system does not tell.
#[derive(Serialize)]
pub(super) struct Report {
    model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<&'static str>,
    backend: String,
    threads: usize,
    prompt: usize,
    tokens: usize,
    depth: usize,
    batch: usize,
    repeat: usize,
    /// From an open checkpoint to a backend that can compute.
    load_ms: f64,
    /// From an open checkpoint to an engine that takes requests. Where `checkpoint_mb` is null no weights were read.
    ready_ms: f64,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    ttft_cold_ms: f64,
    ttft_warm_ms: f64,
    warm_cached_tokens: usize,
    batch_tok_s: f64,
    /// `null`: random weights were made up on a GPU.
    checkpoint_mb: Option<f64>,
    /// While loading, the open checkpoint included.
    load_peak_rss_mb: Option<f64>,
    peak_rss_mb: Option<f64>,
    bytes_per_token: u64,
    read_gb_s: f64,
    /// Of a copy within a GPU's memory, read and written bytes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_gb_s: Option<f64>,
    /// Of the copy bandwidth on a GPU, of the read bandwidth elsewhere, while decoding.
    bandwidth_share: f64,
    /// The best repeat of each, where the others are medians.
    best: Best,
}

#[derive(Serialize)]
struct Best {
    prefill_tok_s: f64,
    decode_tok_s: f64,
    ttft_cold_ms: f64,
    ttft_warm_ms: f64,
    batch_tok_s: f64,
}

impl Report {
    pub(super) fn new(
        args: &MeasureArgs,
        setting: &Setting,
        figures: &Figures,
        peak_rss_mb: Option<f64>,
    ) -> Self {
        let (cold, warm) = (&figures.first_token_cold, &figures.first_token_warm);
        let prefill = |seconds: f64| rounded(args.prompt as f64 / seconds);
        let milliseconds = |seconds: f64| rounded(seconds * 1e3);
        let decode = figures.decode.median();
        let bandwidth = setting.copy_bandwidth.unwrap_or(setting.read_bandwidth);
        Self {
            model: setting.model.clone(),
            weights: args.target.weights_note(),
            backend: setting.backend.clone(),
            threads: args.target.threads(),
            prompt: args.prompt,
            tokens: args.tokens,
            depth: args.depth,
            batch: args.batch,
            repeat: args.repeat,
            load_ms: milliseconds(setting.load_time.as_secs_f64()),
            ready_ms: milliseconds((setting.load_time + figures.start).as_secs_f64()),
            prefill_tok_s: prefill(cold.median()),
            decode_tok_s: rounded(decode),
            ttft_cold_ms: milliseconds(cold.median()),
            ttft_warm_ms: milliseconds(warm.median()),
            warm_cached_tokens: figures.warm_cached_tokens,
            batch_tok_s: rounded(figures.batch.median()),
            checkpoint_mb: setting.checkpoint_bytes.map(|bytes| rounded(bytes as f64 / f64::from(1 << 20))),
            load_peak_rss_mb: setting.load_peak_mb.map(rounded),
            peak_rss_mb: peak_rss_mb.map(rounded),
            bytes_per_token: setting.bytes_per_token as u64,
            read_gb_s: rounded(setting.read_bandwidth),
            copy_gb_s: setting.copy_bandwidth.map(rounded),
            bandwidth_share: rounded(setting.bytes_per_token * decode / (bandwidth * 1e9)),
            best: Best {
                prefill_tok_s: prefill(cold.least()),
                decode_tok_s: rounded(figures.decode.most()),
                ttft_cold_ms: milliseconds(cold.least()),
                ttft_warm_ms: milliseconds(warm.least()),
                batch_tok_s: rounded(figures.batch.most()),
            },
        }
    }

    /// One line of JSON.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{} on {}\n", self.model, self.backend);
        if self.weights.is_some() {
            text.push_str("random weights, speed only: the text it writes means nothing\n");
        }
        let mut row = |name: &str, value: String, note: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", format!("  {name:<26} {value:>14}   {note}").trim_end());
        };
        let best = |value: f64| if self.repeat > 1 { format!("best {value}") } else { String::new() };
        let mb = |value: Option<f64>| value.map_or("unknown here".into(), |mb| format!("{mb} MB"));
        row(
            &format!("prefill, {} tokens", self.prompt),
            format!("{} tok/s", self.prefill_tok_s),
            best(self.best.prefill_tok_s),
        );
        row("first token, cold", format!("{} ms", self.ttft_cold_ms), best(self.best.ttft_cold_ms));
        row(
            "first token, warm",
            format!("{} ms", self.ttft_warm_ms),
            format!("{TAIL} new tokens after {} cached", self.warm_cached_tokens),
        );
        row(
            &format!("decode at depth {}", self.depth),
            format!("{} tok/s", self.decode_tok_s),
            best(self.best.decode_tok_s),
        );
        row(
            &format!("decode, {} together", self.batch),
            format!("{} tok/s", self.batch_tok_s),
            best(self.best.batch_tok_s),
        );
        row(
            "read by a decoded token",
            format!("{:.1} MB", self.bytes_per_token as f64 / f64::from(1 << 20)),
            match (self.copy_gb_s, self.bandwidth_share) {
                // Decoding writes next to nothing, and reading alone may be faster than copying.
                (Some(_), share) if share > 1.0 => {
                    format!("{:.0} % of what a copy reaches, which also writes", 100.0 * share)
                }
                (Some(_), share) => format!("{:.0} % of what a copy reaches", 100.0 * share),
                (None, share) if share > 1.0 => "more than memory gives: it stays in the cache".into(),
                (None, share) => format!("{:.0} % of what memory gives", 100.0 * share),
            },
        );
        row(
            "memory gives",
            format!("{} GB/s", self.read_gb_s),
            match self.copy_gb_s {
                Some(copy) => format!("the GPU reading; copying {copy} GB/s, read and written together"),
                None => format!("{} threads reading", self.threads),
            },
        );
        row(
            "load",
            format!("{} ms", self.load_ms),
            match self.checkpoint_mb {
                Some(mb) => format!("checkpoint of {mb} MB"),
                None => "no checkpoint: random weights, made on the GPU".into(),
            },
        );
        row(
            "start to ready",
            format!("{} ms", self.ready_ms),
            match self.checkpoint_mb {
                Some(_) => "loaded, and the engine started".into(),
                None => "reading weights is not in it; write them with --write, then measure --model".into(),
            },
        );
        row("peak memory", mb(self.peak_rss_mb), format!("while loading {}", mb(self.load_peak_rss_mb)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of random weights that were made on a GPU.
    fn on_gpu() -> Report {
        Report {
            model: "synthetic 7b".into(),
            weights: Some("random, speed only"),
            backend: "cuda".into(),
            threads: 2,
            prompt: 512,
            tokens: 128,
            depth: 0,
            batch: 4,
            repeat: 1,
            load_ms: 800.0,
            ready_ms: 1_000.0,
            prefill_tok_s: 20_000.0,
            decode_tok_s: 750.0,
            ttft_cold_ms: 25.0,
            ttft_warm_ms: 2.5,
            warm_cached_tokens: 512,
            batch_tok_s: 2_800.0,
            checkpoint_mb: None,
            load_peak_rss_mb: None,
            peak_rss_mb: None,
            bytes_per_token: 5 << 30,
            read_gb_s: 4_300.0,
            copy_gb_s: Some(4_000.0),
            bandwidth_share: 1.01,
            best: Best {
                prefill_tok_s: 20_000.0,
                decode_tok_s: 750.0,
                ttft_cold_ms: 25.0,
                ttft_warm_ms: 2.5,
                batch_tok_s: 2_800.0,
            },
        }
    }

    #[test]
    fn what_a_gpu_made_up_was_not_read() {
        let made_up = on_gpu().table();
        assert!(
            made_up.contains("no checkpoint") && made_up.contains("reading weights is not in it"),
            "{made_up}"
        );
        let loaded = Report { checkpoint_mb: Some(5_600.0), ..on_gpu() }.table();
        assert!(loaded.contains("checkpoint of 5600 MB") && !loaded.contains("not in it"), "{loaded}");
    }

    #[test]
    fn a_gpu_s_share_is_of_its_copies() {
        let table = on_gpu().table();
        assert!(table.contains("101 % of what a copy reaches, which also writes"), "{table}");
        assert!(table.contains("4300 GB/s") && table.contains("copying 4000 GB/s"), "{table}");
        let processor = Report { copy_gb_s: None, bandwidth_share: 0.9, ..on_gpu() }.table();
        assert!(
            processor.contains("90 % of what memory gives") && processor.contains("2 threads"),
            "{processor}"
        );
    }
}
