//! How editors ask for suggestions and show them.

use std::time::Duration;

use clap::ValueEnum;

/// The habits of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Editor {
    /// Asks after every edit and takes nothing back: the most a server is asked
    #[default]
    Eager,
    /// Asks after every edit and cancels the request before; keeps showing what agrees with the typed text
    Vscode,
    /// Asks 200 ms after the last edit or move, never cancels, and hides the suggestion at every key
    Neovim,
}

impl Editor {
    /// How long nothing must happen before it asks.
    pub(super) fn debounce(self) -> Duration {
        match self {
            Self::Eager | Self::Vscode => Duration::ZERO,
            Self::Neovim => Duration::from_millis(200),
        }
    }

    /// Whether a newer request cancels the one before.
    pub(super) fn cancels(self) -> bool {
        self == Self::Vscode
    }

    /// Whether a suggestion stays on display while the typed text agrees with it.
    pub(super) fn types_through(self) -> bool {
        self != Self::Neovim
    }

    /// Whether it asks when only the caret moved.
    pub(super) fn asks_on_moves(self) -> bool {
        self == Self::Neovim
    }

    /// As on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Vscode => "vscode",
            Self::Neovim => "neovim",
        }
    }
}
