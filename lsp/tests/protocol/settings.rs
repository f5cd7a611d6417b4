//! Settings from the client.

use std::sync::{Arc, Mutex};

use redstart::settings::Settings;
use serde_json::{Value, json};

use crate::session::Editor;
use crate::{helix, vscode};

#[tokio::test]
async fn unknown_and_ill_typed_settings_are_named_in_one_warning() {
    let mut editor = Editor::new(vscode());
    editor.configuration = json!({ "modle": "x", "threads": "many" });
    let mut session = editor.start().await;
    let shown = session.event("window/showMessage", |of| of["type"] == 2).await;
    let message = shown["message"].as_str().expect("text");
    assert!(message.contains("`modle`") && message.contains("`threads`"), "{message}");
    session.notify("workspace/didChangeConfiguration", json!({ "settings": null })).await;
    session.event("workspace/configuration", |_| true).await;
    session.event("workspace/configuration", |_| true).await;
    assert_eq!(session.events("window/showMessage").await, Vec::<Value>::new(), "only once");
    session.finish().await;
}

#[tokio::test]
async fn a_language_can_be_switched_off() {
    let mut session = Editor::new(json!({})).start().await;
    session.generator.say("1");
    session.open("x = ").await;
    session.suggestion(0, 4).await;
    let off = json!({ "redstart": { "languages": { "python": { "enabled": false } } } });
    session.notify("workspace/didChangeConfiguration", json!({ "settings": off })).await;
    assert_eq!(session.inline(0, 4).await, Value::Null);
    session.finish().await;
}

#[tokio::test]
async fn the_menu_can_be_had_and_refused() {
    for (capabilities, menu, offered) in [(vscode(), "on", true), (helix(), "off", false)] {
        let mut editor = Editor::new(capabilities);
        editor.initialization_options = json!({ "completion": { "menu": menu } });
        let session = editor.start().await;
        let provider = session.initialized["capabilities"].get("completionProvider");
        assert_eq!(provider.is_some(), offered, "{menu}");
        session.finish().await;
    }
}

#[tokio::test]
async fn the_host_is_told_of_settings_with_the_configuration_on_top() {
    let told: Arc<Mutex<Vec<Settings>>> = Arc::default();
    let tell = Arc::clone(&told);
    let mut editor = Editor::new(vscode());
    editor.initialization_options = json!({ "model": "/a", "threads": 2 });
    editor.configuration = json!({ "model": "/b" });
    editor.options.on_settings = Some(Box::new(move |settings| {
        tell.lock().expect("no panic").push(settings.clone());
    }));
    let session = editor.start().await;
    session.event("client/registerCapability", |_| true).await;
    let settings = told.lock().expect("no panic").clone();
    assert_eq!(settings.len(), 1);
    assert_eq!(settings[0].model.as_deref(), Some(std::path::Path::new("/b")));
    assert_eq!(settings[0].threads, Some(2));
    session.finish().await;
}
