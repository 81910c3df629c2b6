//! What was typed after `verify`.

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nexaquant verify                   every kernel of this machine, and alpha
  nexaquant verify beta delta        other models that have golden values beside them
  nexaquant verify --json            for programs

Each line shows the value that came closest to its bound. The first one beyond its bound ends the run with exit code 1
and says what was expected, what was computed, and where. Golden values of models/NAME.gguf are in
models/golden/NAME.json; a model without them is checked under budgets only.")]
pub struct VerifyArgs {
    /// Models whose golden values and budgets are checked: paths or bundled names. Without any: alpha.
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
