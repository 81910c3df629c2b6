//! Runs templates from strangers with bounded time and memory.
//!
//! The template engine counts instructions ("fuel") and nested calls, but not bytes: doubling a string thirty times
//! takes a hundred instructions. So the compiled program is rewritten before it runs: an instruction that makes a value
//! is followed by one that measures it, and `+`, `*` and `~` become functions that know how long the result will be
//! before they make it. No value may be larger, or nested deeper, than a conversation of this size can need, and all
//! values together may take a multiple of that.
//!
//! Rewriting uses the engine's machinery for tools, which may change with any version: the dependency is pinned.

use super::{ChatError, library};
use minijinja::machinery::{
    CompiledTemplate, Instruction, Instructions, TemplateConfig, Token, eval, make_string_output, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Steps a template may take, and more for each message.
const STEPS: u64 = 50_000;
const STEPS_PER_MESSAGE: u64 = 3_000;
/// Bytes of the largest value beyond what the template and the conversation account for.
const VALUE_BYTES: usize = 64 << 10;
/// Bytes of all values made in one run, beyond a multiple of the largest one's.
const TOTAL_BYTES: usize = 16 << 20;
/// Elements of lists and maps that may be looked at for measuring.
const VISITS: usize = 2_000_000;
/// Tokens of the longest tag. A chain such as `a + a + a …` is as deep for the compiler as it is long.
const TAG_TOKENS: usize = 2048;
/// Most branches of one `if`, which the compiler nests as well; counted over the whole template.
const BRANCHES: usize = 512;
/// How deep lists and maps may be nested, and calls of macros.
const DEPTH: usize = 32;
const CALL_DEPTH: usize = 150;

/// Names of the inserted functions. No template can spell them.
const ADD: &str = "+";
const MULTIPLY: &str = "*";
const CONCAT: &str = "~";
const MEASURED: &str = "measured";
const STORABLE: &str = "storable";
/// A filter that changes nothing, but that the compiler does not look through.
const OPAQUE: &str = "__opaque";
/// Tells the engine not to remember the function in a slot of its own.
const NO_SLOT: u8 = u8::MAX;

/// What one run may still use, and why it was stopped.
pub(super) struct Limits {
    value_bytes: usize,
    left: Mutex<Left>,
}

struct Left {
    bytes: usize,
    visits: usize,
    /// The limit that was met.
    stopped: Option<String>,
    /// What the template said when it refused the conversation.
    refused: Option<String>,
}

impl Limits {
    fn new(content_bytes: usize) -> Arc<Self> {
        let value_bytes = VALUE_BYTES + 4 * content_bytes;
        let bytes = TOTAL_BYTES + 64 * value_bytes;
        Arc::new(Self {
            value_bytes,
            left: Mutex::new(Left { bytes, visits: VISITS, stopped: None, refused: None }),
        })
    }

    fn with<T>(&self, run: impl FnOnce(&mut Left) -> T) -> T {
        run(&mut self.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stop<T>(&self, reason: String) -> Result<T, Error> {
        let error = Error::new(ErrorKind::InvalidOperation, reason.clone());
        self.with(|left| {
            if left.stopped.is_none() {
                left.stopped = Some(reason);
            }
        });
        Err(error)
    }

    /// Notes that the template refuses the conversation.
    pub fn refuse(&self, message: String) -> Error {
        let error = Error::new(ErrorKind::InvalidOperation, message.clone());
        self.with(|left| left.refused = Some(message));
        error
    }

    /// Allows a value of `bytes` to be made, or not.
    pub fn reserve(&self, bytes: usize) -> Result<(), Error> {
        if bytes > self.value_bytes {
            return self.stop(format!("it makes a value of {bytes} bytes; {} are allowed", self.value_bytes));
        }
        let enough = self.with(|left| {
            let rest = left.bytes.checked_sub(bytes);
            left.bytes = rest.unwrap_or(0);
            rest.is_some()
        });
        if enough { Ok(()) } else { self.stop("it makes too many and too large values".to_owned()) }
    }

    /// Bytes of a value with everything in it, or an error if that is too much.
    pub fn size(&self, value: &Value) -> Result<usize, Error> {
        self.size_at(value, 0)
    }

    fn size_at(&self, value: &Value, depth: usize) -> Result<usize, Error> {
        let within = |bytes: usize| {
            if bytes <= self.value_bytes {
                Ok(bytes)
            } else {
                self.stop(format!("it makes a value of more than {} bytes", self.value_bytes))
            }
        };
        match value.kind() {
            ValueKind::String => within(value.as_str().map_or(0, str::len)),
            ValueKind::Bytes => within(value.as_bytes().map_or(0, <[u8]>::len)),
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
                if depth == DEPTH {
                    return self.stop(format!("it nests lists more than {DEPTH} deep"));
                }
                if depth > 0 && is_namespace(value) {
                    return self.stop("it puts a namespace into another value".to_owned());
                }
                let mut bytes = 16;
                for item in value.try_iter()? {
                    if !self.with(|left| left.visits.checked_sub(1).map(|rest| left.visits = rest).is_some())
                    {
                        return self.stop("it works on too many list elements".to_owned());
                    }
                    bytes += 16 + self.size_at(&item, depth + 1)?;
                    if value.kind() == ValueKind::Map {
                        bytes += self.size_at(&value.get_item(&item)?, depth + 1)?;
                    }
                    within(bytes)?;
                }
                Ok(bytes)
            }
            _ => Ok(16),
        }
    }

    /// A value that was just made, if it is allowed. What it shares with others is not counted twice.
    fn measured(&self, value: Value) -> Result<Value, Error> {
        let size = self.size(&value)?;
        let own = match value.kind() {
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
                64 + 32 * value.len().unwrap_or(size / 32)
            }
            _ => size,
        };
        self.reserve(own)?;
        Ok(value)
    }
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn config() -> TemplateConfig {
    // Without custom delimiters this cannot fail; the default differs in blanks only.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default();
    TemplateConfig { syntax_config: syntax, default_auto_escape: Arc::new(|_| AutoEscape::None) }
}

/// A template made fit for the compiler: it multiplies constants when it compiles, however large the result, and it
/// recurses along chains. So the left side of every `*` becomes something it cannot compute, and chains have a limit.
///
/// # Errors
/// Text that does not fall into tokens, and chains that are too long.
pub(super) fn prepare(source: &str) -> Result<String, ChatError> {
    let syntax = |reason: String| ChatError::Syntax { reason };
    let mut prepared = String::with_capacity(source.len());
    let (mut copied, mut tokens, mut branches) = (0, 0, 0);
    let mut after_operand = false;
    for token in tokenize(source, false, config().syntax_config) {
        let (token, span) = token.map_err(|error| syntax(describe(&error)))?;
        tokens = if matches!(token, Token::BlockStart | Token::VariableStart) { 0 } else { tokens + 1 };
        branches += usize::from(matches!(token, Token::Ident("elif")));
        if tokens > TAG_TOKENS {
            return Err(syntax(format!(
                "line {}: a tag of more than {TAG_TOKENS} words and signs",
                span.start_line
            )));
        }
        if branches > BRANCHES {
            return Err(syntax(format!("line {}: more than {BRANCHES} times elif", span.start_line)));
        }
        if matches!(token, Token::Mul) && after_operand {
            let at = span.start_offset as usize;
            prepared.push_str(source.get(copied..at).unwrap_or_default());
            prepared.extend(["|", OPAQUE, " "]);
            copied = at;
        }
        after_operand = matches!(
            token,
            Token::Ident(_)
                | Token::Str(_)
                | Token::String(_)
                | Token::Int(_)
                | Token::Int128(_)
                | Token::Float(_)
                | Token::BracketClose
                | Token::ParenClose
                | Token::BraceClose
        );
    }
    prepared.push_str(source.get(copied..).unwrap_or_default());
    Ok(prepared)
}

fn compile(source: &str) -> Result<Instructions<'_>, ChatError> {
    let compiled = CompiledTemplate::new("chat template", source, &config())
        .map_err(|error| ChatError::Syntax { reason: describe(&error) })?;
    rewrite(&compiled.instructions, source)
}

/// Whether a [prepared](prepare) template can be compiled.
pub(super) fn check(source: &str) -> Result<(), ChatError> {
    compile(source).map(drop)
}

/// Runs a [prepared](prepare) template. `variables`: what it may use. `now`: seconds since 1970, for templates that print a date.
pub(super) fn run(source: &str, variables: Value, now: u64) -> Result<String, ChatError> {
    let instructions = compile(source)?;
    let messages = variables.get_attr("messages").ok().and_then(|messages| messages.len()).unwrap_or(0);
    let content = Limits::new(usize::MAX / 1024).size(&variables).unwrap_or(usize::MAX / 1024);
    let limits = Limits::new(source.len() + content);

    let mut env = Environment::new();
    env.set_debug(false);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_recursion_limit(CALL_DEPTH);
    env.set_fuel(Some(STEPS + STEPS_PER_MESSAGE * messages as u64));
    library::install(&mut env, &limits, now);
    install(&mut env, &limits);

    let mut text = String::new();
    let blocks = BTreeMap::new();
    let mut output = make_string_output(&mut text);
    let result = eval(&env, &instructions, variables, &blocks, &mut output, AutoEscape::None).map(drop);
    drop(output);
    let (stopped, refused) = limits.with(|left| (left.stopped.take(), left.refused.take()));
    match result {
        Ok(()) => Ok(text),
        Err(_) if stopped.is_some() => Err(ChatError::Stopped { reason: stopped.unwrap_or_default() }),
        Err(error) if error.kind() == ErrorKind::OutOfFuel => {
            Err(ChatError::Stopped { reason: "it takes too many steps".to_owned() })
        }
        Err(_) if refused.is_some() => Err(ChatError::Refused { message: refused.unwrap_or_default() }),
        Err(error) if error.detail() == Some("recursion limit exceeded") => {
            Err(ChatError::Stopped { reason: "its calls are nested too deep".to_owned() })
        }
        Err(error) => Err(ChatError::Failed { reason: describe(&error) }),
    }
}

fn describe(error: &Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    error.line().map_or_else(|| what.clone(), |line| format!("line {line}: {what}"))
}

/// Adds the functions the rewritten program calls.
fn install(env: &mut Environment, limits: &Arc<Limits>) {
    env.add_filter(OPAQUE, |value: Value| value);
    let limited = limits.clone();
    env.add_filter(MEASURED, move |value: Value| limited.measured(value));
    let limited = limits.clone();
    env.add_filter(STORABLE, move |value: Value| {
        if is_namespace(&value) {
            return limited.stop("it puts a namespace into another value".to_owned());
        }
        limited.size(&value)?;
        Ok(value)
    });
    let limited = limits.clone();
    env.add_filter(CONCAT, move |a: Value, b: Value| {
        limited.reserve(limited.size(&a)?.saturating_add(limited.size(&b)?))?;
        Ok::<_, Error>(Value::from(library::to_text(&a) + &library::to_text(&b)))
    });
    let limited = limits.clone();
    env.add_filter(ADD, move |a: Value, b: Value| add(&limited, &a, &b));
    let limited = limits.clone();
    env.add_filter(MULTIPLY, move |a: Value, b: Value| multiply(&limited, &a, &b));
    let limited = limits.clone();
    env.set_formatter(move |out: &mut Output, _: &mut State, value: &Value| {
        if value.is_undefined() {
            return Ok(());
        }
        limited.reserve(limited.size(value)?)?;
        out.write_str(&library::to_text(value)).map_err(Error::from)
    });
}

/// Sums of numbers, and concatenations of strings and of lists.
fn add(limits: &Limits, a: &Value, b: &Value) -> Result<Value, Error> {
    let lists = |kind| matches!(kind, ValueKind::Seq | ValueKind::Iterable);
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        limits.reserve(left.len() + right.len())?;
        Ok(Value::from([left, right].concat()))
    } else if lists(a.kind()) && lists(b.kind()) {
        limits.reserve(limits.size(a)?.saturating_add(limits.size(b)?))?;
        Ok(a.try_iter()?.chain(b.try_iter()?).collect())
    } else {
        let numbers = (number(a, b)?, number(b, a)?);
        Ok(match numbers {
            (Number::Int(a), Number::Int(b)) => Value::from(a.checked_add(b).ok_or_else(overflow)?),
            (a, b) => Value::from(a.float() + b.float()),
        })
    }
}

/// Products of numbers, and repetitions of strings and of lists.
fn multiply(limits: &Limits, a: &Value, b: &Value) -> Result<Value, Error> {
    let (a, b) = if a.is_number() { (b, a) } else { (a, b) };
    let times = || usize::try_from(b.clone());
    match a.kind() {
        ValueKind::String => {
            let (text, times) = (a.as_str().unwrap_or_default(), times()?);
            limits.reserve(text.len().saturating_mul(times))?;
            Ok(Value::from(text.repeat(times)))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let times = times()?;
            limits.reserve(limits.size(a)?.saturating_mul(times))?;
            let items: Vec<Value> = a.try_iter()?.collect();
            Ok(std::iter::repeat_n(items, times).flatten().collect())
        }
        _ => Ok(match (number(a, b)?, number(b, a)?) {
            (Number::Int(a), Number::Int(b)) => Value::from(a.checked_mul(b).ok_or_else(overflow)?),
            (a, b) => Value::from(a.float() * b.float()),
        }),
    }
}

enum Number {
    Int(i64),
    Float(f64),
}

impl Number {
    fn float(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

fn number(value: &Value, other: &Value) -> Result<Number, Error> {
    let int =
        i64::try_from(value.clone()).ok().filter(|_| value.is_integer() || value.kind() == ValueKind::Bool);
    int.map(Number::Int).or_else(|| f64::try_from(value.clone()).ok().map(Number::Float)).ok_or_else(|| {
        let kinds = format!("{} and {} do not go together here", value.kind(), other.kind());
        Error::new(ErrorKind::InvalidOperation, kinds)
    })
}

fn overflow() -> Error {
    Error::new(ErrorKind::InvalidOperation, "number too large")
}

/// The same program with checks. Jumps are moved to where their targets are now.
fn rewrite<'s>(old: &Instructions<'s>, source: &'s str) -> Result<Instructions<'s>, ChatError> {
    let program: Vec<&Instruction> = (0..).map_while(|at| old.get(at)).collect();
    let mut places = Vec::with_capacity(program.len() + 1);
    let mut place = 0_u32;
    for instruction in &program {
        places.push(place);
        place += replacement(instruction)?.len() as u32;
    }
    places.push(place);
    let moved = |target: u32| {
        let reason = || ChatError::Syntax { reason: "a jump leads outside the program".to_owned() };
        places.get(target as usize).copied().ok_or_else(reason)
    };
    let mut new = Instructions::new("chat template", source);
    for (at, instruction) in program.into_iter().enumerate() {
        let line = old.get_line(at as u32).unwrap_or(0) as u16;
        for mut instruction in replacement(instruction)? {
            match &mut instruction {
                Instruction::Iterate(target)
                | Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::BuildMacro(_, target, _) => *target = moved(*target)?,
                _ => {}
            }
            new.add_with_line(instruction, line);
        }
    }
    Ok(new)
}

fn replacement<'s>(instruction: &Instruction<'s>) -> Result<Vec<Instruction<'s>>, ChatError> {
    use Instruction as I;
    let call = |name, arguments| I::ApplyFilter(name, Some(arguments), NO_SLOT);
    Ok(match instruction {
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::Add => vec![call(ADD, 2)],
        I::Mul => vec![call(MULTIPLY, 2)],
        I::StringConcat => vec![call(CONCAT, 2)],
        I::BuildList(_)
        | I::BuildTuple(_)
        | I::BuildMap(_)
        | I::Slice
        | I::EndCapture
        | I::ApplyFilter(..)
        | I::CallFunction(..)
        | I::CallMethod(..)
        | I::CallObject(_) => vec![instruction.clone(), call(MEASURED, 1)],
        // The value lies under the namespace it goes to.
        I::SetAttr(_) => vec![I::Swap, call(STORABLE, 1), I::Swap, instruction.clone()],
        I::Include(_) | I::LoadBlocks | I::CallBlock(_) | I::FastSuper | I::ExportLocals => {
            let reason = "it uses blocks or other templates (include, import, extends)".to_owned();
            return Err(ChatError::Syntax { reason });
        }
        _ => vec![instruction.clone()],
    })
}
