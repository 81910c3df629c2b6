//! What was typed: the command line as clap parses it, and the texts of `--help`.
//!
//! Nothing here decides anything; `options.rs` turns these structs into what they mean.

mod bench;
mod verify;

pub use bench::{AnnouncedArgs, BenchArgs, BenchCommand, KernelsArgs, OutputArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nexaquant_engine::MOST_GUESSES;
use std::ffi::OsString;
use std::path::PathBuf;
pub use verify::VerifyArgs;

/// The words of the command line. `-ngl`, as llama.cpp's users type it, is `--gpu-layers`: here a short flag has one letter.
pub fn typed() -> impl Iterator<Item = OsString> {
    std::env::args_os().map(|word| if word == "-ngl" { "--gpu-layers".into() } else { word })
}

/// Runs GGUF language models, ternary 1.58-bit ones and ordinary quantizations, on this machine.
#[derive(Debug, Parser)]
#[command(name = "nexaquant", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(arg_required_else_help = true, subcommand_required = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  nexaquant chat                              talk to alpha, the model inside this program
  nexaquant run beta -p \"Tell me a story.\"    one answer, then the measured speed
  nexaquant run model.gguf -f question.txt    any GGUF file
  nexaquant m3                                three models in turn in 10 MB of memory
  nexaquant info                              what this machine offers and what will be used

MODEL is the path of a GGUF file or one of the bundled names alpha, beta, gamma and delta.
Without it alpha is used, which is part of the program and needs no file.
Each command explains its options: nexaquant run --help";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk with a model.
    Chat(ChatArgs),
    /// Answer one prompt.
    Run(RunArgs),
    /// Several models under one memory budget, and what that costs.
    #[command(name = "m3")]
    M3(Box<M3Args>),
    /// What models will do under a memory budget, without loading them.
    Plan(PlanArgs),
    /// Models behind HTTP: OpenAI's API, a page, and a live map of who is in memory.
    Serve(Box<ServeArgs>),
    /// Check a server's configuration without serving.
    Config(ConfigArgs),
    /// Log-probability of each token of a text.
    Score(ScoreArgs),
    /// How well a model predicts a text file.
    Perplexity(PerplexityArgs),
    /// What is in a model file and what will run on what.
    Inspect(InspectArgs),
    /// What this machine offers and what will be used.
    Info(InfoArgs),
    /// Write a random model of a real shape.
    Synth(SynthArgs),
    /// How fast models are here, beside what this machine could do at best.
    Bench(Box<BenchArgs>),
    /// Whether this program computes right on this machine.
    Verify(VerifyArgs),
}

const MODEL_HELP: &str = "Path of a GGUF file, or alpha (built in), beta, gamma or delta";

#[derive(Debug, Args)]
#[command(after_help = "\
While talking:
  /help             the commands        /system TEXT   how the model should behave; starts over
  /reset            forget everything   /stats         what was measured so far
  /save FILE        keep the talk; .json for a machine, anything else for people
  /exit or Ctrl-D   leave               Ctrl-C         stop the answer

Without a terminal each line of standard input is one turn:
  printf 'Hello!\\nWhat is your name?\\n' | nexaquant chat")]
pub struct ChatArgs {
    #[arg(help = MODEL_HELP, default_value = "alpha", hide_default_value = true)]
    pub model: String,
    /// What the model is told before the first turn.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Conversation")]
    pub system: Option<String>,
    /// Use the Jinja chat template in FILE in place of the model's own.
    #[arg(long, value_name = "FILE", help_heading = "Conversation")]
    pub chat_template: Option<PathBuf>,
    #[command(flatten)]
    pub answer: AnswerArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
#[command(after_help = "\
Examples:
  nexaquant run -p \"What is your name?\"
  nexaquant run gamma -p \"Tell me about the sea.\" --temp 0     always the likeliest token
  nexaquant run beta --raw -p \"Once upon a time\" -n 50         go on with a text
  echo \"Name three colours.\" | nexaquant run delta - --json    one JSON object, for scripts

The answer goes to standard output as it comes, the measured line to standard error.")]
pub struct RunArgs {
    #[arg(help = MODEL_HELP)]
    pub model: Option<String>,
    /// `-`: read the prompt from standard input.
    #[arg(value_name = "-", value_parser = ["-"], hide_possible_values = true)]
    pub stdin: Option<String>,
    /// The prompt, or with --raw the beginning of the text.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    #[arg(conflicts_with_all = ["file", "stdin"])]
    pub prompt: Option<String>,
    /// Read the prompt from FILE (`-`: standard input). One newline at its end is dropped.
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt", conflicts_with = "stdin")]
    pub file: Option<PathBuf>,
    /// What the model is told before the prompt.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    #[arg(conflicts_with = "raw")]
    pub system: Option<String>,
    /// Use the Jinja chat template in FILE in place of the model's own.
    #[arg(long, value_name = "FILE", help_heading = "Prompt", conflicts_with = "raw")]
    pub chat_template: Option<PathBuf>,
    /// Continue the prompt as it is: no chat template, only the beginning-of-sequence token if the model asks for one.
    #[arg(long, help_heading = "Prompt")]
    pub raw: bool,
    /// Let names of control tokens in a raw prompt, such as <|end|>, be those tokens. Otherwise they are plain text.
    #[arg(long, help_heading = "Prompt", requires = "raw")]
    pub special: bool,
    /// Print one JSON object (text, token ids, speeds) and nothing else.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Do not print the measured line.
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    #[command(flatten)]
    pub answer: AnswerArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
#[command(after_help = "\
Examples:
  nexaquant m3                                          alpha, beta, gamma, alpha in 10 MB
  nexaquant m3 --budget 6MB --policy lru                less room, and the policy that everybody knows
  nexaquant m3 --turn 8 --rounds 3                      all queries at once, 8 passes a turn
  nexaquant m3 big.gguf --budget 1GiB -q big=\"Hello.\"    a model that need not fit
  nexaquant m3 --config scenario.toml --json            a scenario from a file, the whole trace for programs

A scenario file has the same settings; flags come before it:
  budget = \"10MB\"
  policy = \"two-level\"
  tokens = 48
  [[models]]
  name = \"alpha\"
  pin = \"head:4\"
  [[models]]
  name = \"other\"
  path = \"other.gguf\"
  [[queries]]
  model = \"alpha\"
  prompt = \"What is your name?\"")]
pub struct M3Args {
    /// Models: bundled names, paths of GGUF files, or NAME=PATH. Without any: alpha, beta and gamma.
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// A question to a model, in this order. Can be given several times. Without any each model is asked, then the first
    /// one again.
    #[arg(short, long, value_name = "MODEL=TEXT", allow_hyphen_values = true, help_heading = "Scenario")]
    pub query: Vec<String>,
    /// Ask all queries N times over.
    #[arg(long, value_name = "N", help_heading = "Scenario", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: Option<u32>,
    /// Most tokens of an answer. [default: 48]
    #[arg(short = 'n', long, value_name = "N", help_heading = "Scenario", value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: Option<u32>,
    /// Ask all queries at once and let each model make N forward passes before the next one's turn. Without it one
    /// query follows the other.
    #[arg(long, value_name = "N", help_heading = "Scenario", value_parser = clap::value_parser!(u32).range(1..))]
    pub turn: Option<u32>,
    /// Read the scenario from a TOML file.
    #[arg(long, value_name = "FILE", help_heading = "Scenario")]
    pub config: Option<PathBuf>,
    /// Which lines about parts coming and going are printed: those up to each first token, all, or none.
    #[arg(long, value_name = "WHICH", default_value = "switch", help_heading = "Output")]
    pub events: Events,
    /// Print one JSON object, with every event.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexaquant plan                                   alpha, beta and gamma in 10 MB
  nexaquant plan model.gguf --budget 2GiB --ctx 8192
  nexaquant plan model.gguf --budget 2GiB --filled 8000    late in a long conversation

The models get places in a real memory of that budget and answer there, on weights that are zeros; only reading is
left out, and measured on a sample of each file. So what is resident, moved or refused is exact, and speed is what
this machine does now.")]
pub struct PlanArgs {
    /// Models: bundled names, paths of GGUF files, or NAME=PATH. Without any: alpha, beta and gamma.
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 24, help_heading = "Scenario", value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: u32,
    /// Tokens of an answer, after which the next model has its turn.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 48, help_heading = "Scenario", value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Tokens that are in the cache before the prompt.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Scenario")]
    pub filled: u32,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexaquant serve alpha beta gamma --budget 10MB        three models by turns in 10 MB, at http://127.0.0.1:8080
  nexaquant serve big=model.gguf --host 0.0.0.0 --api-key SECRET
  nexaquant serve --config server.toml

A configuration file has every option by its long name: models = [\"alpha\", \"big=model.gguf\"], budget = \"2GiB\",
api_key = [\"SECRET\"]. Options that are typed come before it. NEXAQUANT_LOG sets what is logged: info, debug, off.

SIGTERM or Ctrl-C lets requests end; a second one ends them at once.")]
pub struct ServeArgs {
    /// Models: bundled names, paths of GGUF files, or NAME=PATH. Without any: alpha, beta and gamma.
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// The address to listen at; 0.0.0.0 for every network.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub host: std::net::IpAddr,
    /// The port; 0 for any that is free.
    #[arg(long, value_name = "PORT", default_value_t = nexaquant_server::PORT, help_heading = "Server")]
    pub port: u16,
    /// Ask for this key. Can be given several times: each is good.
    #[arg(
        long,
        value_name = "KEY",
        env = "NEXAQUANT_API_KEY",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub api_key: Vec<String>,
    /// Read keys from FILE, one a line.
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub api_key_file: Option<PathBuf>,
    /// Let web pages of ORIGIN (https://host:port, or *) use the server. Can be given several times.
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    pub cors: Vec<String>,
    /// Certificate chain in PEM; with --tls-key it is HTTPS that is spoken.
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub tls_cert: Option<PathBuf>,
    /// Private key in PEM.
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub tls_key: Option<PathBuf>,
    /// Models of this folder may be registered while the server runs.
    #[arg(long, value_name = "FOLDER", help_heading = "Server")]
    pub models_dir: Option<PathBuf>,
    /// Read options from a TOML file.
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub config: Option<PathBuf>,
    /// How the log looks.
    #[arg(long, value_name = "FORMAT", default_value = "json", help_heading = "Server")]
    pub log: LogFormat,
    /// Requests that compute at a time, those of one model in shared passes; the others wait.
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Limits", value_parser = clap::value_parser!(u16).range(1..))]
    pub parallel: u16,
    /// Requests that may wait; more are refused with status 429.
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Limits")]
    pub queue: u16,
    /// Seconds a request may take, waiting included.
    #[arg(long, value_name = "S", default_value_t = 600, help_heading = "Limits", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeout: u32,
    /// Seconds that requests get to end when the server is to stop.
    #[arg(long, value_name = "S", default_value_t = 30, help_heading = "Limits")]
    pub drain: u32,
    /// Most bytes of a request.
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = crate::size::parse, help_heading = "Limits")]
    pub body_limit: u64,
    /// Most connections.
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Limits", value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// Most tokens of an answer, whatever the request says.
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub max_tokens: Option<usize>,
    /// Passes of a model's turn while others wait. [default: 32]
    #[arg(long, value_name = "N", help_heading = "Limits", value_parser = clap::value_parser!(u32).range(1..))]
    pub turn: Option<u32>,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// How a log looks.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read the configuration and open the models, as serve would.
    Check(Box<ServeArgs>),
}

/// Who is in memory.
#[derive(Debug, Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Who is evicted first. [default: two-level]
    #[arg(long, value_name = "POLICY")]
    pub policy: Option<PolicyArg>,
    /// Do not bring the next part in while one computes.
    #[arg(long)]
    pub no_prefetch: bool,
    /// Keep the first K parts of a model in memory once they are there, or all. Can be given several times.
    #[arg(long, value_name = "MODEL=all|head:K")]
    pub pin: Vec<String>,
    /// How files are read that are not in the page cache: past it (direct), through it (cached), or past it where it
    /// could not hold them (auto).
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub io: IoArg,
}

/// Who is evicted first.
#[derive(Clone, Copy, Debug, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyArg {
    /// Least recently used model first, its last layers first; in the running model what is needed latest.
    TwoLevel,
    /// Least recently used part first.
    Lru,
}

/// How files are read.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum IoArg {
    /// Past the page cache where it could not hold the file.
    Auto,
    /// Past the page cache.
    Direct,
    /// Through the page cache.
    Cached,
}

/// Lines about parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Events {
    /// Up to each first token.
    Switch,
    /// All.
    All,
    /// None.
    None,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexaquant score alpha --text \"The cat sat on the mat.\"
  nexaquant score beta --tokens 1,319,4937 --activations float --json

--json prints {\"tokens\":[n ids],\"logprobs\":[n-1 numbers],\"top1\":[n ids]}: logprobs[i] is the natural
logarithm of the probability of tokens[i+1] after tokens[..=i], top1[i] the likeliest token there.")]
pub struct ScoreArgs {
    #[arg(help = MODEL_HELP, default_value = "alpha", hide_default_value = true)]
    pub model: String,
    /// Token ids, taken as they are.
    #[arg(long, value_name = "ID,ID,…", value_delimiter = ',', value_parser = token_id, help_heading = "Text")]
    #[arg(required_unless_present = "text", conflicts_with = "text")]
    pub tokens: Option<Vec<u32>>,
    /// A text; the model's beginning-of-sequence token is put before it if the model asks for one.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Text")]
    pub text: Option<String>,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nexaquant perplexity gamma -f story.txt --ctx 512

The text is cut into chunks of --ctx tokens (512 unless given), each starting with the model's
beginning-of-sequence token if it asks for one. The second half of each chunk is scored, so that every
scored token has at least half a chunk before it. Lower is better; 1 would be perfect foresight.")]
pub struct PerplexityArgs {
    #[arg(help = MODEL_HELP, default_value = "alpha", hide_default_value = true)]
    pub model: String,
    /// The text (`-`: standard input).
    #[arg(short, long, value_name = "FILE", help_heading = "Text")]
    pub file: PathBuf,
    /// Score at most N chunks.
    #[arg(long, value_name = "N", help_heading = "Text", value_parser = clap::value_parser!(u64).range(1..))]
    pub chunks: Option<u64>,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexaquant inspect beta
  nexaquant inspect model.gguf --json

A file whose model cannot run here is shown all the same, with the reason.")]
pub struct InspectArgs {
    #[arg(help = MODEL_HELP, default_value = "alpha", hide_default_value = true)]
    pub model: String,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Print the operations of each layer in place of metadata and tensors.
    #[arg(long, help_heading = "Output", conflicts_with = "json")]
    pub ops: bool,
    /// How activations would reach the kernels.
    #[arg(long, value_name = "MODE", default_value = "int8", help_heading = "Computation")]
    pub activations: Activations,
}

#[derive(Debug, Args)]
#[command(after_help = "\
NEXAQUANT_ISA=scalar|avx2|avx512|amx overrides the choice of instruction set, for tests and comparisons.")]
pub struct InfoArgs {
    /// Measure how fast memory is copied and read, too: about a second, and 256 MB of memory.
    #[arg(long)]
    pub measure: bool,
    /// With --measure: a device as other commands take it, whose reading, launches, meetings and copies are measured, too.
    #[arg(long, value_name = "DEVICE", requires = "measure")]
    pub device: Option<String>,
    /// Threads to measure with. Without it one for each physical core this process may use.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), requires = "measure")]
    pub threads: Option<u16>,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What bounds an answer.
#[derive(Debug, Args)]
#[command(next_help_heading = "Length")]
pub struct AnswerArgs {
    /// Most tokens of an answer. Without it the model ends when it is done or the context is full.
    #[arg(short = 'n', long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// End the answer before TEXT. Can be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Go on after the model has ended its turn, until --max-tokens or the context is full.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Guess up to N tokens ahead where the text repeats itself, and check them in one pass where that is faster; 0: never. The
    /// answer is the same. Not on a device.
    #[arg(long, value_name = "N", default_value_t = MOST_GUESSES)]
    pub draft: usize,
}

/// How tokens are chosen.
#[derive(Debug, Args)]
#[command(next_help_heading = "Choice of tokens")]
pub struct SamplingArgs {
    /// Temperature: 0 always takes the likeliest token, higher values are bolder.
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    pub temp: f32,
    /// Choose among the K likeliest tokens only; 0: among all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Choose among the likeliest tokens whose probabilities add up to P; 1: among all.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Drop tokens less than P times as likely as the likeliest; 0: none.
    #[arg(long, value_name = "P", default_value_t = 0.05, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Choose among the tokens that are as surprising as this model usually is, up to a probability of P; 1: among all.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub typical_p: f32,
    /// Make tokens that were said before less likely by this factor; 1: no.
    /// [default: 1.1, and 1 with --temp 0, so that greedy is the model's own first choice]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// How many of the latest tokens the three penalties look at; 0: none, -1: all.
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true)]
    pub repeat_last_n: i32,
    /// Subtract X from the logit of a token that was said before.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtract X from the logit of a token each time it was said before.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Add VALUE to the logit of token ID (`-inf` forbids it). Can be given several times.
    #[arg(long, value_name = "ID=VALUE", value_parser = logit_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers. The same seed, prompt and options give the same answer; without it every run differs.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// How the model is computed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Computation")]
pub struct EngineArgs {
    /// Most tokens of prompt and answers together; 0: as many as the model was made for. Without it 4096, or fewer if
    /// the model was made for fewer.
    #[arg(short, long, value_name = "N")]
    pub ctx: Option<usize>,
    /// How keys and values of earlier tokens are kept. Without it f16, or f32 with --activations float.
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<Kv>,
    /// int8: activations are rounded to 8 bits, the fast way. float: they are not, and ternary weights only add and
    /// subtract.
    #[arg(long, value_name = "MODE", default_value = "int8")]
    pub activations: Activations,
    /// Threads to compute with. Without it one for each physical core this process may use.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Bytes of memory for weights, cache and activations together, such as 10MB or 2GiB. What does not fit is brought in
    /// as it is needed. Without it the weights are used where they lie, in the mapped file. With --device: bytes of the device's
    /// memory, and without it as many as the whole model takes.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse, allow_hyphen_values = true)]
    pub budget: Option<u64>,
    /// What computes: cpu; gpu, the GPU with most memory; auto, that GPU if there is one, else the CPU; the number of an
    /// OpenCL device as info lists it, or a part of its name.
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// Layers on the device, the last ones; the others are computed on the CPU. The head counts as the last layer, so one more
    /// than the model has layers is all of it. auto: as many as fit, or none where the CPU is measured to read faster. Without
    /// it all, or auto where that is too much for the device. With --budget those layers stream as far as they do not fit it; auto:
    /// as many as make a token cheapest by measured rates, those that stream included. Also -ngl N.
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N|auto|all", value_parser = crate::layers::parse)]
    #[arg(allow_hyphen_values = true)]
    pub gpu_layers: Option<crate::layers::GpuLayers>,
    /// On a GPU: launch each phase of a step by itself, where a step would be one launch.
    #[arg(long)]
    pub gpu_launches: bool,
    /// On a GPU: work-groups. Without it one for each compute unit, which is also the most that a step in one launch may have.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub gpu_groups: usize,
    /// Let the system move threads from core to core.
    #[arg(long)]
    pub no_pin: bool,
    /// Most prompt tokens computed at once: more is faster for long prompts and takes memory. The answer is the same.
    #[arg(short, long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub batch: u16,
}

/// Element type of the key-value cache.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Kv {
    /// 2 bytes a value.
    F16,
    /// 4 bytes a value, exact.
    F32,
    /// About 1 byte a value.
    #[value(name = "q8_0")]
    Q8_0,
}

/// How activations reach the kernels.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Activations {
    /// Rounded to 8 bits.
    Int8,
    /// As they are.
    Float,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexaquant synth tinyllama-1.1b -o tinyllama.gguf
  nexaquant synth bitnet-2b4t --format I2_S -o bitnet.gguf
  nexaquant synth tinyllama-1.1b --format Q4_K -o ordinary.gguf
  nexaquant synth layers=8,embd=1024,heads=16,kv=4,ff=2816,vocab=32000,ctx=4096,head=own -o mine.gguf

The text of such a model is noise. Its tensors, sizes and arithmetic are those of a real one: layers in the
format asked for, embedding and head in Q6_K.")]
pub struct SynthArgs {
    /// tinyllama-1.1b, bitnet-2b4t, llama3-8b, or sizes: arch, layers, embd, heads, kv, ff, vocab, ctx, head.
    pub shape: String,
    /// The file to write.
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: PathBuf,
    /// Replace FILE if it exists.
    #[arg(long, help_heading = "Output")]
    pub force: bool,
    /// Of the layers; any of `nexaquant info`: TQ2_0, I2_S, Q4_0, Q4_K, Q8_0 and so on.
    #[arg(long, value_name = "FORMAT", default_value = "TQ2_0", help_heading = "Model")]
    pub format: String,
    /// The same seed gives the same file.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub seed: u64,
}

fn token_id(text: &str) -> Result<u32, String> {
    text.trim()
        .parse()
        .map_err(|_| "wanted token ids with commas between them, such as 1,319,4937".to_owned())
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let wanted = "wanted ID=VALUE, such as 15=-2.5";
    let (id, value) = text.split_once('=').ok_or(wanted)?;
    let id = id.trim().parse().map_err(|_| format!("{id:?} is no token id; {wanted}"))?;
    let value: f32 = value.trim().parse().map_err(|_| format!("{value:?} is no number; {wanted}"))?;
    Ok((id, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_is_explained() {
        for command in Cli::command().get_subcommands() {
            for arg in command.get_arguments().filter(|a| a.get_id() != "help") {
                let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.len() > 10, "{} {}: {help:?}", command.get_name(), arg.get_id());
            }
        }
    }

    #[test]
    fn a_logit_bias_is_an_id_and_a_number() {
        assert_eq!(logit_bias("15=-2.5"), Ok((15, -2.5)));
        assert_eq!(logit_bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        for bad in ["15", "=1", "a=1", "1=b", "-1=2"] {
            assert!(logit_bias(bad).unwrap_err().contains("ID=VALUE"), "{bad}");
        }
    }
}
