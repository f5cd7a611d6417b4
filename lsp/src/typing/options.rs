//! The measures that make typing fast, each of which can be switched off to see what it brings.

use std::str::FromStr;

/// Which measures are in effect. All are, unless somebody measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypingOptions {
    /// Text that agrees with the last suggestion is answered from it.
    pub typed_through: bool,
    /// Requests wait for a generation under way that agrees with what was typed since.
    pub join: bool,
    /// Prompts are prefilled and suggestions continued before they are asked for.
    pub ahead: bool,
    /// Prompts keep their beginning for as long as possible.
    pub kept_prefix: bool,
    /// Text from elsewhere in the workspace is part of the prompt.
    pub context: bool,
    /// A slow engine is asked less often.
    pub pace: bool,
}

impl Default for TypingOptions {
    fn default() -> Self {
        Self { typed_through: true, join: true, ahead: true, kept_prefix: true, context: true, pace: true }
    }
}

impl TypingOptions {
    /// All but these measures.
    pub fn without(measures: &[Measure]) -> Self {
        let mut options = Self::default();
        for measure in measures {
            *match measure {
                Measure::TypedThrough => &mut options.typed_through,
                Measure::Join => &mut options.join,
                Measure::Ahead => &mut options.ahead,
                Measure::KeptPrefix => &mut options.kept_prefix,
                Measure::Context => &mut options.context,
                Measure::Pace => &mut options.pace,
            } = false;
        }
        options
    }
}

/// One of them, as it is named on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// See [`TypingOptions::typed_through`].
    TypedThrough,
    /// See [`TypingOptions::join`].
    Join,
    /// See [`TypingOptions::ahead`].
    Ahead,
    /// See [`TypingOptions::kept_prefix`].
    KeptPrefix,
    /// See [`TypingOptions::context`].
    Context,
    /// See [`TypingOptions::pace`].
    Pace,
}

/// When work is done before it is asked for: the setting `completion.ahead`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ahead {
    /// Always.
    #[default]
    On,
    /// Unless the machine runs on its battery.
    PluggedIn,
    /// Never.
    Off,
}

impl FromStr for Ahead {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "on" => Ok(Self::On),
            "plugged-in" => Ok(Self::PluggedIn),
            "off" => Ok(Self::Off),
            _ => Err(()),
        }
    }
}
