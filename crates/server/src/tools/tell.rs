//! How a model is told what it may call and what it called.
//!
//! A template that has words for tools is given them. For others they are introduced in the system message, in the form
//! most open models were trained on: one JSON object a line, calls between `<tool_call>` tags.

use super::found::{CLOSE, OPEN};
use super::{Offer, Tool};
use nexaquant_engine::chat::{ChatTemplate, Message, RenderOptions, Role};
use nexaquant_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// Tells the model: messages and options for its template.
pub fn tell(
    (template, tokenizer): (&ChatTemplate, &Tokenizer),
    mut messages: Vec<Message>,
    options: RenderOptions,
    offer: &Offer,
) -> (Vec<Message>, RenderOptions) {
    if !template.mentions("tool_calls") {
        messages.iter_mut().for_each(spell_out);
    }
    if offer.is_empty() {
        return (messages, options);
    }
    if template.mentions("tools") {
        let tools = offer.tools.iter().map(|tool| json!(tool)).collect();
        let told = RenderOptions { tools, ..options.clone() };
        let text = |options| template.render_text(tokenizer, &messages, options).unwrap_or_default();
        let (with, without) = (text(&told), text(&options));
        // One that wants them in a form of its own shows nothing of them.
        let shown = |name: &str| with.matches(name).count() > without.matches(name).count();
        if offer.tools.iter().all(|tool| shown(&tool.function.name)) {
            return (messages, told);
        }
    }
    introduce(&mut messages, offer);
    (messages, options)
}

fn introduce(messages: &mut Vec<Message>, offer: &Offer) {
    let list: Vec<String> = offer.tools.iter().map(|tool: &Tool| json!(tool).to_string()).collect();
    let list = list.join("\n");
    let how = if offer.must {
        "Answer with one call, a JSON object with name and arguments."
    } else {
        "To call one, write a JSON object with name and arguments between <tool_call> and </tool_call>."
    };
    let text = format!("You may call these functions:\n<tools>\n{list}\n</tools>\n{how}");
    match messages.first_mut().filter(|message| message.role == Role::System) {
        Some(system) => system.content = format!("{}\n\n{text}", system.content),
        None => messages.insert(0, Message::new(Role::System, text)),
    }
}

/// Puts calls, and whose result it is, into the text of a message.
fn spell_out(message: &mut Message) {
    for call in std::mem::take(&mut message.calls) {
        // In the words in which a model is told to call.
        let arguments = match call.arguments {
            Value::String(text) => text,
            other => other.to_string(),
        };
        if !message.content.is_empty() {
            message.content.push('\n');
        }
        let name = json!(call.name);
        message
            .content
            .push_str(&format!("{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CLOSE}"));
    }
    if let (Role::Tool, Some(name)) = (message.role, message.name.take()) {
        message.content = format!("{name}: {}", message.content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexaquant_engine::chat::ToolCall;
    use nexaquant_engine::{LoadOptions, Model};
    use std::path::Path;

    fn offer() -> Offer {
        let tool = Tool::function("weather".into(), None, None);
        Offer::new(Some(vec![tool]), None).unwrap()
    }

    fn talk() -> Vec<Message> {
        let arguments = json!({ "city": "Rome" });
        let call = ToolCall { id: "c1".into(), name: "weather".into(), arguments };
        let called = Message { calls: vec![call], ..Message::new(Role::Assistant, "I look.") };
        let result = Message { name: Some("weather".into()), ..Message::new(Role::Tool, "20") };
        vec![Message::new(Role::User, "weather?"), called, result]
    }

    /// What a template makes of the conversation with a tool.
    fn told(source: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/alpha.gguf");
        let model = Model::load(&path, LoadOptions::default()).unwrap();
        let template = ChatTemplate::new(source, "", "").unwrap();
        let tokenizer = model.tokenizer();
        let (messages, options) = tell((&template, tokenizer), talk(), RenderOptions::default(), &offer());
        template.render_text(tokenizer, &messages, &options).unwrap()
    }

    const SAID: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";

    #[test]
    fn templates_are_given_tools_if_they_have_words_for_them() {
        let own =
            told(&format!("{{{{ tools[0].function.name }}}}|{{% if false %}}tool_calls{{% endif %}}{SAID}"));
        assert_eq!(own, "weather|user:weather?;assistant:I look.;tool:20;");
        let calls = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments.city }})\
                     {% endfor %}{{ m.name }}{% endfor %}{{ tools | tojson }}";
        let own = told(calls);
        assert!(own.starts_with("weather(Rome)weather[{\"type\": \"function\", \"function\": {"), "{own}");
    }

    #[test]
    fn others_hear_of_them_in_the_system_message() {
        let spelled = "assistant:I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\"Rome\"}}\n</tool_call>;\
                       tool:weather: 20;";
        // One that mentions tools and then says nothing of them is as deaf as one that does not.
        for source in [SAID.to_owned(), format!("{{{{ tools | map(attribute='title') | join }}}}{SAID}")] {
            let text = told(&source);
            assert!(
                text.starts_with("system:You may call these functions:\n<tools>\n{\"type\":\"function\""),
                "{text}"
            );
            assert!(text.contains(spelled), "{text}");
        }
    }
}
