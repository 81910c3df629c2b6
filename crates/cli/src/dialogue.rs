//! A conversation so far, and the tokens that the model's chat template makes of it.

use crate::failure::Failure;
use crate::input;
use crate::options::Conversation;
use nexaquant_engine::Model;
use nexaquant_engine::chat::{ChatTemplate, Message, RenderOptions, Role};
use serde_json::json;

/// System text and turns, and the template.
#[derive(Clone)]
pub struct Dialogue {
    model: Model,
    template: ChatTemplate,
    system: Option<String>,
    /// User and assistant by turns, the user first.
    turns: Vec<Message>,
}

impl Dialogue {
    /// No turns yet. The template is the model's own unless another was asked for.
    pub fn new(model: &Model, conversation: &Conversation) -> Result<Self, Failure> {
        let tokenizer = model.tokenizer();
        let template = if let Some(path) = &conversation.template {
            let name = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
            ChatTemplate::new(&input::file(path)?, &name(tokenizer.bos()), &name(tokenizer.eos()))
                .map_err(|e| Failure::Input(format!("{}: {e}", path.display())))?
        } else {
            let path = model.file().path().display();
            model.chat().map_err(|e| Failure::Input(format!("{path}: {e}")))?.clone()
        };
        Ok(Self { model: model.clone(), template, system: conversation.system.clone(), turns: Vec::new() })
    }

    /// The user's next words.
    pub fn say(&mut self, text: String) {
        self.turns.push(Message::new(Role::User, text));
    }

    /// Takes the user's last words back.
    pub fn unsay(&mut self) {
        self.turns.pop();
    }

    /// The model's answer to them.
    pub fn answered(&mut self, text: String) {
        self.turns.push(Message::new(Role::Assistant, text));
    }

    /// Replaces what comes before all turns.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    /// Forgets all turns.
    pub fn clear(&mut self) {
        self.turns.clear();
    }

    /// Forgets the oldest words of the user and the answer to them; false if only the last words are left.
    pub fn drop_oldest(&mut self) -> bool {
        if self.turns.len() < 3 {
            return false;
        }
        self.turns.drain(..2);
        true
    }

    /// The prompt for the next answer.
    pub fn tokens(&self) -> Result<Vec<u32>, Failure> {
        let options = RenderOptions::default();
        self.template.render(self.model.tokenizer(), &self.messages(), &options).map_err(Failure::input)
    }

    /// Texts that end an answer because no token does.
    pub fn stops(&self) -> impl Iterator<Item = String> {
        self.template.stops().iter().map(|&stop| stop.to_owned())
    }

    /// The conversation for programs.
    pub fn as_json(&self) -> String {
        let messages: Vec<_> = self
            .messages()
            .iter()
            .map(|m| json!({ "role": m.role.as_str(), "content": m.content }))
            .collect();
        format!("{:#}\n", json!({ "model": self.model.name(), "messages": messages }))
    }

    /// The conversation for people.
    pub fn as_text(&self) -> String {
        self.messages().iter().map(|m| format!("{}: {}\n\n", m.role.as_str(), m.content.trim())).collect()
    }

    fn messages(&self) -> Vec<Message> {
        let system = self.system.clone().map(|text| Message::new(Role::System, text));
        system.into_iter().chain(self.turns.iter().cloned()).collect()
    }
}
