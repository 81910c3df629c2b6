//! What was typed after `bench`.

use super::{Activations, Kv};
use clap::{Args, Subcommand, ValueEnum};
use nexaquant_engine::kernels::Isa;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(after_help = "\
Examples:
  nexaquant bench                                    alpha: a prompt of 512 tokens, an answer of 128
  nexaquant bench alpha model.gguf -t 1,2 -p 0 -n 64   answers only, with one thread and with two
  nexaquant bench bitnet-2b4t --format I2_S --json   a random model of a real shape, for programs
  nexaquant bench model.gguf --device gpu            the same rows on a GPU
  nexaquant bench kernels                            each format's kernel by itself
  nexaquant bench announced                          the figures of the announcement

Repeats go round all rows, so that a slow moment of the machine meets all of them. Beside an answer's speed stands
the speed of a loop that only reads as many bytes as the answer reads of weights a token; beside a prompt's speed that
of a loop that only multiplies: both measured in the same run, with the same threads. On a device an answer stands beside
a kernel of that device that only reads; a prompt has nothing to stand beside there.")]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: Option<BenchCommand>,
    /// Paths of GGUF files, bundled names, or shapes of random models: tinyllama-1.1b, bitnet-2b4t, llama3-8b, or sizes as
    /// `nexaquant synth` takes them. Without any: alpha.
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Lengths of prompts; 0: none.
    #[arg(
        short,
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        default_value = "512",
        help_heading = "Rows"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub prompt: Vec<u32>,
    /// Lengths of answers; 0: none.
    #[arg(
        short = 'n',
        long,
        value_name = "N,N,…",
        value_delimiter = ',',
        default_value = "128",
        help_heading = "Rows"
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub generate: Vec<u32>,
    /// Numbers of threads. Without it one for each physical core this process may use.
    #[arg(short, long, value_name = "N,N,…", value_delimiter = ',', help_heading = "Rows")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=512))]
    pub threads: Vec<u16>,
    /// How keys and values are kept.
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',', default_value = "f16", help_heading = "Rows")]
    pub kv: Vec<Kv>,
    /// Repeats of each row.
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Format of the layers of random models: any of `nexaquant info`, such as Q4_0 or Q4_K [default: TQ2_0].
    #[arg(long, value_name = "FORMAT", help_heading = "Computation")]
    pub format: Option<String>,
    /// int8: activations are rounded to 8 bits. float: they are not.
    #[arg(long, value_name = "MODE", default_value = "int8", help_heading = "Computation")]
    pub activations: Activations,
    /// Most prompt tokens computed at once.
    #[arg(short, long, value_name = "N", default_value_t = 128, help_heading = "Computation")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub batch: u16,
    /// Bytes of memory for weights, cache and activations together, such as 10MB or 2GiB.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse, help_heading = "Computation")]
    pub budget: Option<u64>,
    /// What computes: cpu; gpu, the GPU with most memory; auto, that GPU if there is one, else the CPU; the number of an
    /// OpenCL device as info lists it, or a part of its name. --budget is of its memory then.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help_heading = "Computation")]
    pub device: String,
    /// Let the system move threads from core to core.
    #[arg(long, help_heading = "Computation")]
    pub no_pin: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What is measured in place of models.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Each format's kernel by itself, on each instruction set.
    Kernels(KernelsArgs),
    /// The figures of the project's announcement, each measured now.
    Announced(AnnouncedArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexaquant bench kernels
  nexaquant bench kernels TQ2_0 I2_S --isa avx512 --md

One thread. One column is beside reading as many bytes, eight columns beside multiplying in registers.")]
pub struct KernelsArgs {
    /// Formats, as `nexaquant info` lists them. Without any: all.
    #[arg(value_name = "FORMAT")]
    pub formats: Vec<String>,
    /// Only this instruction set.
    #[arg(long, value_name = "ISA")]
    pub isa: Option<IsaArg>,
    /// Repeats of each row.
    #[arg(short, long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl KernelsArgs {
    /// Whether rows of `isa` are asked for.
    pub fn wants(&self, isa: Isa) -> bool {
        self.isa.is_none_or(|wanted| wanted.isa() == isa)
    }
}

/// An instruction set by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum IsaArg {
    /// Plain Rust.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 with VNNI.
    Avx512,
    /// The same, and AMX for ternary products of several columns.
    Amx,
}

impl IsaArg {
    fn isa(self) -> Isa {
        match self {
            IsaArg::Scalar => Isa::Scalar,
            IsaArg::Avx2 => Isa::Avx2,
            IsaArg::Avx512 => Isa::Avx512,
            IsaArg::Amx => Isa::Amx,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Alpha or the model named, the kernels, and the default scenario of `nexaquant m3` are measured; with
alpha it takes about half a minute.")]
pub struct AnnouncedArgs {
    /// The model that answers: a name or a GGUF file.
    #[arg(value_name = "MODEL", default_value = "alpha")]
    pub model: String,
    /// Runs of the model.
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Tokens of a run; fewer where the model's context is shorter.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(3..=400))]
    pub generate: u32,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How a table is printed.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
pub struct OutputArgs {
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Print comma-separated values.
    #[arg(long, help_heading = "Output")]
    pub csv: bool,
    /// Print a Markdown table.
    #[arg(long, help_heading = "Output")]
    pub md: bool,
}
