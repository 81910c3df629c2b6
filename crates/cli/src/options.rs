//! What the command line means: `args.rs` converted once, defaults decided, nothing clap-shaped left.

use crate::args::{Activations, AnswerArgs, ChatArgs, EngineArgs, Kv, RunArgs, SamplingArgs};
use crate::failure::Failure;
use crate::layers::GpuLayers;
use crate::models::{self, Source};
use nexaquant_engine::kernels::{KvType, Mode};
use nexaquant_engine::opencl::GpuOptions;
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::{
    DEFAULT_CONTEXT, GenerateOptions, LoadOptions, MOST_GUESSES, PoolOptions, SessionOptions,
};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::IsTerminal;
use std::path::PathBuf;

/// How the model is loaded and computed.
#[derive(Clone, Debug)]
pub struct Engine {
    pub load: LoadOptions,
    pub pool: PoolOptions,
    /// As typed: `None` if not, 0 for all the model has.
    pub context: Option<usize>,
    pub kv: KvType,
    pub batch: usize,
    /// Bytes for everything; `None`: weights stay in the mapped file and the rest takes what it needs.
    pub budget: Option<u64>,
    /// What computes, as typed.
    pub device: String,
    pub gpu: GpuOptions,
    /// How much of the model that device has, as typed.
    pub gpu_layers: Option<GpuLayers>,
}

impl Engine {
    /// A session for a whole conversation, or for at least `tokens` where no context was asked for.
    pub fn session(&self, tokens: usize) -> SessionOptions {
        let context = self.context.unwrap_or(DEFAULT_CONTEXT.max(tokens));
        // A number of threads that was asked for is used.
        let all_threads = self.pool.threads.is_some();
        SessionOptions { context, kv: self.kv, batch: self.batch, all_threads, outputs: 1 }
    }

    /// The same for answers with so many guesses ahead, whose logits take room.
    pub fn answering_session(&self, guesses: usize) -> SessionOptions {
        let guesses = if self.device == "cpu" { guesses.min(MOST_GUESSES) } else { 0 };
        SessionOptions { outputs: 1 + guesses, ..self.session(0) }
    }

    /// The same where the logits of every token are wanted. A step of a few tokens is nearly as fast as a full one, and
    /// the logits of a large vocabulary take a megabyte a token.
    pub fn scoring_session(&self, tokens: usize) -> SessionOptions {
        SessionOptions { outputs: 16, ..self.session(tokens) }
    }
}

/// Where the text of a prompt comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    File(PathBuf),
    Stdin,
}

/// How a prompt becomes tokens.
#[derive(Clone, Debug)]
pub enum Style {
    /// A user's turn in the model's chat template.
    Chat(Conversation),
    /// As it is; control tokens by name or not at all.
    Raw { special: bool },
}

/// What comes before the first turn.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub system: Option<String>,
    /// A template in place of the model's own.
    pub template: Option<PathBuf>,
}

/// What `run` does.
#[derive(Debug)]
pub struct Run {
    pub model: Source,
    pub prompt: Prompt,
    pub style: Style,
    pub json: bool,
    pub quiet: bool,
    pub generate: GenerateOptions,
    pub engine: Engine,
}

/// What `chat` does.
#[derive(Debug)]
pub struct Chat {
    pub model: Source,
    pub conversation: Conversation,
    pub generate: GenerateOptions,
    pub engine: Engine,
}

pub fn run(args: RunArgs) -> Result<Run, Failure> {
    // `run -` has no model: its only word is the prompt's.
    let (model, stdin) = match (args.model, args.stdin) {
        (Some(word), None) if word == "-" => (None, true),
        (model, stdin) => (model, stdin.is_some()),
    };
    let prompt = match (args.prompt, args.file) {
        (Some(_), _) | (_, Some(_)) if stdin => {
            return Err(Failure::input("there are two prompts; give one of -p TEXT, -f FILE and -"));
        }
        (Some(text), _) => Prompt::Text(text),
        (None, Some(path)) if path.as_os_str() == "-" => Prompt::Stdin,
        (None, Some(path)) => Prompt::File(path),
        (None, None) if stdin || !std::io::stdin().is_terminal() => Prompt::Stdin,
        (None, None) => {
            let text =
                "there is no prompt; give -p TEXT, -f FILE or - for standard input, or use nexaquant chat";
            return Err(Failure::input(text));
        }
    };
    let style = if args.raw {
        Style::Raw { special: args.special }
    } else {
        Style::Chat(Conversation { system: args.system, template: args.chat_template })
    };
    Ok(Run {
        generate: generate(args.answer, args.sampling, args.raw)?,
        engine: engine(&args.engine),
        model: models::find(model.as_deref().unwrap_or(models::BUNDLED[0]))?,
        prompt,
        style,
        json: args.json,
        quiet: args.quiet,
    })
}

pub fn chat(args: ChatArgs) -> Result<Chat, Failure> {
    Ok(Chat {
        generate: generate(args.answer, args.sampling, false)?,
        engine: engine(&args.engine),
        model: models::find(&args.model)?,
        conversation: Conversation { system: args.system, template: args.chat_template },
    })
}

pub fn engine(args: &EngineArgs) -> Engine {
    let activations = mode(args.activations);
    let kv = args.kv.map_or(if activations == Mode::Float { KvType::F32 } else { KvType::F16 }, kv_type);
    Engine {
        load: LoadOptions { activations, isa: None },
        pool: PoolOptions { threads: args.threads.map(usize::from), pin: !args.no_pin },
        context: args.ctx,
        kv,
        batch: args.batch.into(),
        budget: args.budget,
        device: args.device.clone(),
        gpu: GpuOptions {
            groups: args.gpu_groups,
            persistent: args.gpu_launches.then_some(false),
            ..GpuOptions::default()
        },
        gpu_layers: args.gpu_layers,
    }
}

pub fn kv_type(kv: Kv) -> KvType {
    match kv {
        Kv::F16 => KvType::F16,
        Kv::F32 => KvType::F32,
        Kv::Q8_0 => KvType::Q8_0,
    }
}

pub fn mode(activations: Activations) -> Mode {
    match activations {
        Activations::Int8 => Mode::Int8,
        Activations::Float => Mode::Float,
    }
}

pub fn generate(answer: AnswerArgs, args: SamplingArgs, raw: bool) -> Result<GenerateOptions, Failure> {
    let sampling = SamplingParams {
        temperature: args.temp,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        typical_p: args.typical_p,
        // Greedy is the model's own first choice unless a penalty is asked for.
        repeat_penalty: args.repeat_penalty.unwrap_or(if args.temp == 0.0 { 1.0 } else { 1.1 }),
        penalty_last_n: args.repeat_last_n,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        logit_bias: args.logit_bias,
        seed: Some(args.seed.unwrap_or_else(fresh_seed)),
    };
    // Said before a model is loaded.
    sampling.validate().map_err(Failure::input)?;
    Ok(GenerateOptions {
        sampling,
        max_tokens: answer.max_tokens,
        stop: answer.stop,
        ignore_end: answer.ignore_eos,
        continues_prompt: raw,
        guesses: answer.draft,
        ..GenerateOptions::default()
    })
}

/// A seed nobody chose: 32 bits, short enough to type again.
fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 32
}
