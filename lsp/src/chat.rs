//! The model's chat template, rendered once into the frame that prompt plugins fill.
//!
//! A Hugging Face chat template is a Jinja program over a list of messages. Running it per request
//! would hand user text to a template engine and lose the line between text and control tokens. So it
//! runs once, at load, over two placeholder messages; what it writes around the placeholders is the
//! frame, and only there are control tokens recognized.

use minijinja::{Environment, context};
use redstart_plugins::prompt::{ChatFrame, Piece};
use serde::Deserialize;

/// Stand for the system and the user message; private-use characters no template writes.
const SYSTEM: &str = "\u{F0F0}\u{F0F1}";
const USER: &str = "\u{F0F2}\u{F0F3}";

/// `chat_template` in `tokenizer_config.json`: a template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The parts of `tokenizer_config.json` that templates use.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<TemplateField>,
    bos_token: Option<TokenField>,
    eos_token: Option<TokenField>,
}

/// A special token: its text, or an object that holds it.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenField {
    Text(String),
    Object { content: String },
}

impl TokenField {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

/// The chat frame of a model, or `None` when the model has no chat template.
///
/// `tokenizer_config` and `template_file` are the bytes of `tokenizer_config.json` and of
/// `chat_template.jinja`, which wins where both hold a template. `control_tokens` are the tokenizer's.
///
/// # Errors
/// When there is a template and it cannot be used; the message says why.
pub fn chat_frame(
    tokenizer_config: Option<&[u8]>,
    template_file: Option<&[u8]>,
    control_tokens: &[String],
) -> Result<Option<ChatFrame>, String> {
    let config: TokenizerConfig = match tokenizer_config {
        Some(bytes) => {
            serde_json::from_slice(bytes).map_err(|error| format!("tokenizer_config.json: {error}"))?
        }
        None => TokenizerConfig::default(),
    };
    let template = match template_file {
        Some(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        None => config.chat_template.as_ref().and_then(default_template),
    };
    let Some(template) = template else { return Ok(None) };

    let rendered = render(&template, &config, true).or_else(|_| render(&template, &config, false))?;
    split_frame(&rendered, control_tokens).map(Some)
}

fn default_template(field: &TemplateField) -> Option<String> {
    match field {
        TemplateField::One(template) => Some(template.clone()),
        TemplateField::Named(named) => {
            named.iter().find(|entry| entry.name == "default").map(|entry| entry.template.clone())
        }
    }
}

/// Runs the template over one exchange. Some templates refuse a system message; then its text goes to
/// the head of the user's.
fn render(template: &str, config: &TokenizerConfig, with_system: bool) -> Result<String, String> {
    let mut environment = Environment::new();
    // Some thousand steps suffice; a template that loops must not keep the model from loading.
    environment.set_fuel(Some(200_000));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_syntax(
        minijinja::syntax::SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| error.to_string())?,
    );
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
    });
    // A prompt that changed with the date would never be served from the cache.
    environment.add_function("strftime_now", |_format: String| String::new());

    let message = |role: &str, content: String| context! { role => role, content => content };
    let messages = if with_system {
        vec![message("system", SYSTEM.into()), message("user", USER.into())]
    } else {
        vec![message("user", format!("{SYSTEM}\n\n{USER}"))]
    };
    let token = |field: &Option<TokenField>| field.as_ref().map(|field| field.text().to_owned());
    environment
        .render_str(
            template,
            context! {
                messages => messages,
                add_generation_prompt => true,
                enable_thinking => false,
                bos_token => token(&config.bos_token),
                eos_token => token(&config.eos_token),
            },
        )
        .map_err(|error| format!("the chat template cannot be used: {error:#}"))
}

fn split_frame(rendered: &str, control_tokens: &[String]) -> Result<ChatFrame, String> {
    let lost = || "the chat template does not write the messages it is given".to_owned();
    let (system, rest) = rendered.split_once(SYSTEM).ok_or_else(lost)?;
    let (user, reply) = rest.split_once(USER).ok_or_else(lost)?;
    Ok(ChatFrame {
        system: pieces(system, control_tokens),
        user: pieces(user, control_tokens),
        reply: pieces(reply, control_tokens),
    })
}

/// Splits template output into text and control tokens, the longest token first where several match.
fn pieces(text: &str, control_tokens: &[String]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let next = control_tokens
            .iter()
            .filter_map(|token| rest.find(token.as_str()).map(|at| (at, token)))
            .min_by_key(|(at, token)| (*at, std::cmp::Reverse(token.len())));
        let Some((at, token)) = next else {
            pieces.push(Piece::Text(rest.to_owned()));
            break;
        };
        if at > 0 {
            pieces.push(Piece::Text(rest[..at].to_owned()));
        }
        pieces.push(Piece::Control(token.clone()));
        rest = &rest[at + token.len()..];
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATML: &str = "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}{%- for message in messages %}{%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first) %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";
    const REFUSES_SYSTEM: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}[INST] {{ message['content'].strip() }} [/INST]{% endfor %}";

    fn tokens() -> Vec<String> {
        ["<s>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec()
    }

    fn config(template: &str) -> Vec<u8> {
        serde_json::to_vec(&serde_json::json!({"chat_template": template, "bos_token": {"content": "<s>"}}))
            .unwrap()
    }

    fn control(token: &str) -> Piece {
        Piece::Control(token.into())
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    #[test]
    fn chatml_becomes_three_frames() {
        let frame = chat_frame(Some(&config(CHATML)), None, &tokens()).unwrap().unwrap();
        assert_eq!(frame.system, [control("<|im_start|>"), text("system\n")]);
        assert_eq!(frame.user, [control("<|im_end|>"), text("\n"), control("<|im_start|>"), text("user\n")]);
        assert_eq!(
            frame.reply,
            [control("<|im_end|>"), text("\n"), control("<|im_start|>"), text("assistant\n")]
        );
    }

    #[test]
    fn a_template_without_a_system_role_gets_its_text_before_the_users() {
        let frame = chat_frame(Some(&config(REFUSES_SYSTEM)), None, &tokens()).unwrap().unwrap();
        assert_eq!(frame.system, [control("<s>"), text("[INST] ")]);
        assert_eq!(frame.user, [text("\n\n")]);
        assert_eq!(frame.reply, [text(" [/INST]")]);
    }

    #[test]
    fn no_template_is_no_chat_and_a_broken_one_says_so() {
        assert!(chat_frame(Some(b"{}"), None, &tokens()).unwrap().is_none());
        assert!(chat_frame(None, None, &tokens()).unwrap().is_none());
        let broken = chat_frame(None, Some(b"{% if %}"), &tokens()).unwrap_err();
        assert!(broken.contains("chat template cannot be used"), "{broken}");
        let deaf = chat_frame(None, Some(b"hello"), &tokens()).unwrap_err();
        assert!(deaf.contains("does not write the messages"), "{deaf}");
    }

    #[test]
    fn a_template_file_and_named_templates_are_found() {
        let named = serde_json::to_vec(&serde_json::json!({"chat_template": [
            {"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]}))
        .unwrap();
        assert!(chat_frame(Some(&named), None, &tokens()).unwrap().is_some());
        let file = chat_frame(Some(b"{}"), Some(CHATML.as_bytes()), &tokens()).unwrap().unwrap();
        assert_eq!(file.system[0], control("<|im_start|>"));
    }
}
