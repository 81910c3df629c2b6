//! `plan`: what models will do under a budget, from a rehearsal without their weights.

use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::output::{self, bytes, table};
use crate::{engine, options, scenario};
use nexaquant_engine::SessionOptions;
use nexaquant_engine::m3::plan::{ModelPlan, Plan, PlannedPart, Rehearsal, Role, plan as rehearse};
use serde_json::{Value, json};

pub fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let options = options::engine(&args.engine);
    engine::only_cpu(&options, "plan")?;
    let named = scenario::pinned(scenario::named(&args.models)?, &args.memory.pin)?;
    let roles = named
        .iter()
        .map(|named| {
            let (model, prompt) = (engine::load(&named.source, &options)?, args.prompt as usize);
            Ok(Role { name: named.name.clone(), model, pin: named.pin, prompt })
        })
        .collect::<Result<Vec<Role>, Failure>>()?;
    let (prompt, answer) = (args.prompt as usize, args.tokens as usize);
    let needed = args.filled as usize + prompt + answer;
    for Role { name, model, .. } in &roles {
        let most = model.architecture().hparams.context_length;
        if needed > most {
            let text = format!("{needed} tokens do not fit {name}, which was made for {most}");
            return Err(Failure::Input(format!("{text}; lower --filled, --prompt or --tokens")));
        }
    }
    let rehearsal = Rehearsal {
        memory: scenario::memory(&args.memory, scenario::budget(&options), None),
        session: SessionOptions {
            context: options.context.unwrap_or(needed).max(needed),
            ..options.session(0)
        },
        filled: args.filled as usize,
        answer,
    };
    let mut pool = engine::pool(&options)?;
    let plan = rehearse(&roles, &rehearsal, &mut pool).map_err(Failure::input)?;
    if args.json {
        return output::print_json(&as_json(&plan, &rehearsal, prompt));
    }
    output::print(&as_text(&plan, &rehearsal, prompt, pool.threads()))
}

/// Parts in memory as a picture: all of it, a part of it, none.
fn map(parts: &[PlannedPart]) -> String {
    parts
        .iter()
        .map(|part| match part.kept {
            0 => '.',
            kept if kept == part.bytes => '#',
            _ => '+',
        })
        .collect()
}

fn as_text(plan: &Plan, rehearsal: &Rehearsal, prompt: usize, threads: usize) -> String {
    let budget = rehearsal.memory.budget;
    let mut text = format!(
        "Budget {} ({budget} bytes), prompts of {prompt} tokens, answers of {}, {threads} thread{}\n\n",
        bytes(budget),
        rehearsal.answer,
        if threads == 1 { "" } else { "s" },
    );
    let head = [
        "model",
        "weights",
        "resident",
        "streamed/token",
        "cache, buffers",
        "switch",
        "of it page-in",
        "tokens/s",
        "limited by",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for model in &plan.models {
        rows.push(vec![
            model.name.clone(),
            bytes(model.weight_bytes),
            bytes(model.resident_bytes()),
            bytes(model.streamed_per_token()),
            bytes(model.session_bytes),
            format!("{:.2} ms", model.switch_time().as_secs_f64() * 1e3),
            format!("{:.2} ms", model.page_in_time().as_secs_f64() * 1e3),
            format!("{:.1}", model.tokens_per_s()),
            model.limited_by().to_owned(),
        ]);
    }
    text += &table(&rows, &[1, 2, 3, 4, 5, 6, 7], "");
    text += "\nIn memory when each turn ends (# a whole part, + a part of it, . nothing; in the order of a pass)\n";
    let maps: Vec<Vec<String>> =
        plan.models.iter().map(|model| vec![model.name.clone(), map(&model.parts)]).collect();
    text += &table(&maps, &[], "  ");
    text += "\nReading\n";
    let rate = |model: &ModelPlan| {
        let from = if model.rate.cached { "the page cache" } else { "the disk" };
        let speed = format!("{:.2} GB/s", model.rate.bytes_per_s / 1e9);
        vec![model.name.clone(), speed, format!("from {from}, a sample of {}", bytes(model.rate.sample))]
    };
    text += &table(&plan.models.iter().map(rate).collect::<Vec<_>>(), &[1], "  ");
    text + &format!(
        "\nledger, high-water mark {} bytes | smallest budget that would do {} bytes\n",
        plan.high_water, plan.smallest_budget
    )
}

fn as_json(plan: &Plan, rehearsal: &Rehearsal, prompt: usize) -> Value {
    let part =
        |part: &PlannedPart| json!({ "name": part.name, "bytes": part.bytes, "kept_bytes": part.kept });
    let model = |model: &ModelPlan| {
        json!({
            "name": model.name,
            "weight_bytes": model.weight_bytes,
            "block_bytes": model.block_bytes,
            "session_bytes": model.session_bytes,
            "resident_bytes": model.resident_bytes(),
            "streamed_bytes_per_token": model.streamed_per_token(),
            "switch_ms": model.switch_time().as_secs_f64() * 1e3,
            "switch_page_in_ms": model.page_in_time().as_secs_f64() * 1e3,
            "switch_page_in_bytes": model.prompt.bytes,
            "tokens_per_s": model.tokens_per_s(),
            "limited_by": model.limited_by(),
            "read_bytes_per_s": model.rate.bytes_per_s,
            "cached": model.rate.cached,
            "parts": model.parts.iter().map(part).collect::<Vec<_>>(),
        })
    };
    json!({
        "budget_bytes": rehearsal.memory.budget,
        "high_water_bytes": plan.high_water,
        "smallest_budget_bytes": plan.smallest_budget,
        "prompt_tokens": prompt,
        "answer_tokens": rehearsal.answer,
        "filled_tokens": rehearsal.filled,
        "models": plan.models.iter().map(model).collect::<Vec<_>>(),
    })
}
