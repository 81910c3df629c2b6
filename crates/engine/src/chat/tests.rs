use super::*;
use nexaquant_gguf::{Gguf, Value as Meta};
use serde_json::Value as Json;
use std::time::{Duration, Instant};

fn metadata(model: &str) -> Metadata {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(model);
    Gguf::parse(&std::fs::read(path).unwrap()).unwrap().metadata
}

fn load(model: &str) -> (Tokenizer, ChatTemplate) {
    let metadata = metadata(model);
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    let template = ChatTemplate::from_metadata(&metadata, &tokenizer).unwrap();
    (tokenizer, template)
}

fn user(content: &str) -> Message {
    Message::new(Role::User, content)
}

fn system(content: &str) -> Message {
    Message::new(Role::System, content)
}

fn assistant(content: &str) -> Message {
    Message::new(Role::Assistant, content)
}

fn options() -> RenderOptions {
    RenderOptions { now: Some(UNIX_EPOCH + Duration::from_secs(1_721_995_200)), ..RenderOptions::default() }
}

/// Renders with a template and Gamma's tokenizer.
fn render_text(source: &str, messages: &[Message]) -> Result<String, ChatError> {
    let (tokenizer, _) = load("gamma.gguf");
    ChatTemplate::new(source, "<bos>", "</s>")?.render_text(&tokenizer, messages, &options())
}

fn ids_of(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Special::Parse).unwrap()
}

fn role(name: &str) -> Role {
    [Role::System, Role::User, Role::Assistant, Role::Tool]
        .into_iter()
        .find(|role| role.as_str() == name)
        .unwrap()
}

/// Templates of the kinds in use, and one with every feature: as Jinja itself renders them.
#[test]
fn same_text_as_jinja() {
    let (tokenizer, _) = load("gamma.gguf");
    let recorded: Json =
        serde_json::from_str(include_str!("../../tests/fixtures/tokenizer/chat.json")).unwrap();
    let folder =
        std::path::Path::new(file!()).parent().unwrap().join("../../tests/fixtures/tokenizer/templates");
    let folder = if folder.exists() {
        folder
    } else {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer/templates")
    };
    let mut wrong = Vec::new();
    let (mut equal, mut refused) = (0, 0);
    for case in recorded.as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let template =
            ChatTemplate::new(&std::fs::read_to_string(folder.join(name)).unwrap(), "<bos>", "</s>").unwrap();
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| Message::new(role(m[0].as_str().unwrap()), m[1].as_str().unwrap()))
            .collect();
        let options = RenderOptions {
            add_generation_prompt: case["options"]["add_generation_prompt"].as_bool().unwrap(),
            enable_thinking: case["options"]["enable_thinking"].as_bool(),
            ..options()
        };
        let found = template.render_text(&tokenizer, &messages, &options);
        let system = messages.iter().find(|m| m.role == Role::System).map(|m| m.content.trim());
        match (case["text"].as_str(), system) {
            // Where Jinja refuses or drops a system message, we put it into the first user message.
            (wanted, Some(system)) if wanted.is_none_or(|text| !text.contains(system)) => {
                let found = found.unwrap_or_else(|e| panic!("{name} {messages:?} {e}"));
                assert!(found.contains(system), "{name} {messages:?} {found}");
                refused += 1;
            }
            (Some(wanted), _) if found.as_ref().is_ok_and(|found| found == wanted) => equal += 1,
            (Some(wanted), _) => {
                wrong.push(format!("{name} {messages:?}\n found {found:?}\nwanted {wanted:?}"))
            }
            (None, _) => {
                let error = found.unwrap_err().to_string();
                let wanted = case["error"].as_str().unwrap();
                assert!(
                    wanted.starts_with("list object") || error.contains(wanted),
                    "{name} {error} {wanted}"
                );
                refused += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n\n"));
    assert!(equal > 100 && refused > 10, "{equal} {refused}");
}
