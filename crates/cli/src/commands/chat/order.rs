//! What a line of a conversation asks for: words for the model or a command.

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// An empty line.
    Nothing,
    /// Words for the model.
    Say(String),
    Help,
    Reset,
    /// A new system text; empty: none.
    System(String),
    Stats,
    Save(String),
    Exit,
    /// No command; what is wrong with it.
    Wrong(String),
}

/// The commands, for people.
pub const HELP: &str = "\
/help          this list
/reset         forget the conversation
/system TEXT   how the model should behave; without TEXT nothing is said about it. Starts anew
/stats         tokens in the context, memory, speed
/save FILE     write the conversation to FILE; JSON if it ends in .json
/exit          leave, as Ctrl-D does
Ctrl-C         stop the answer";

/// Reads a line. A command is a slash and a word of letters; any other line is for the model.
pub fn parse(line: &str) -> Order {
    let line = line.trim();
    let Some(command) = line.strip_prefix('/') else {
        return if line.is_empty() { Order::Nothing } else { Order::Say(line.to_owned()) };
    };
    let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    if word.is_empty() || !word.chars().all(|c| c.is_ascii_alphabetic()) {
        return Order::Say(line.to_owned());
    }
    match (word, rest) {
        ("system", text) => Order::System(text.to_owned()),
        ("save", "") => Order::Wrong("/save needs the name of a file".to_owned()),
        ("save", path) => Order::Save(path.to_owned()),
        ("help", "") => Order::Help,
        ("reset", "") => Order::Reset,
        ("stats", "") => Order::Stats,
        ("exit" | "quit", "") => Order::Exit,
        ("help" | "reset" | "stats" | "exit" | "quit", _) => Order::Wrong(format!("/{word} stands alone")),
        _ => Order::Wrong(format!("there is no command /{word}; /help lists them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_words_or_commands() {
        let say = |text: &str| Order::Say(text.to_owned());
        for (line, order) in [
            ("", Order::Nothing),
            ("  \t", Order::Nothing),
            (" hello ", say("hello")),
            ("/", say("/")),
            ("/usr/bin is a folder", say("/usr/bin is a folder")),
            ("// a comment", say("// a comment")),
            ("/help", Order::Help),
            ("/reset ", Order::Reset),
            ("/system Be brief. ", Order::System("Be brief.".into())),
            ("/system", Order::System(String::new())),
            ("/save a b.txt", Order::Save("a b.txt".into())),
            ("/stats", Order::Stats),
            ("/exit", Order::Exit),
            ("/quit", Order::Exit),
        ] {
            assert_eq!(parse(line), order, "{line:?}");
        }
        for wrong in ["/save", "/foo", "/reset now"] {
            assert!(matches!(parse(wrong), Order::Wrong(_)), "{wrong}");
        }
    }
}
