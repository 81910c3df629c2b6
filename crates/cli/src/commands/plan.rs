//! `plan`: what models will do under a budget, from a rehearsal without their weights.

use crate::args::PlanArgs;
use crate::failure::Failure;
use crate::output::{self, bytes, table};
use crate::{engine, options, scenario};
use nexaquant_engine::SessionOptions;
use nexaquant_engine::m3::plan::{From, ModelPlan, Plan, PlannedPart, Rehearsal, Role, plan as rehearse};
use serde_json::{Value, json};

pub fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let options = options::engine(&args.engine);
    let gpu = engine::gpu(&options)?;
    let named = scenario::pinned(scenario::named(&args.models)?, &args.memory.pin)?;
    let mut roles = named
        .iter()
        .map(|named| {
            let (model, prompt) = (engine::load(&named.source, &options)?, args.prompt as usize);
            Ok(Role { name: named.name.clone(), model, pin: named.pin, prompt, layers: usize::MAX })
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
    let models = roles.iter().map(|role| (role.name.as_str(), &role.model));
    let budget = rehearsal.memory.budget;
    let layers = engine::layers(gpu.as_ref(), &options, models, rehearsal.session, budget)?;
    for (role, layers) in roles.iter_mut().zip(layers) {
        role.layers = layers;
    }
    let mut pool = engine::pool(&options)?;
    let plan = rehearse(&roles, &rehearsal, gpu.as_ref(), &mut pool).map_err(Failure::input)?;
    let device = gpu.as_ref().map(|gpu| gpu.found().name.as_str());
    if args.json {
        return output::print_json(&as_json(&plan, &rehearsal, prompt, device));
    }
    let on = match (device, pool.threads()) {
        (Some(device), _) => device.to_owned(),
        (None, 1) => "1 thread".to_owned(),
        (None, threads) => format!("{threads} threads"),
    };
    output::print(&as_text(&plan, &rehearsal, prompt, &on))
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

fn as_text(plan: &Plan, rehearsal: &Rehearsal, prompt: usize, on: &str) -> String {
    let budget = rehearsal.memory.budget;
    let mut text = format!(
        "Budget {} ({budget} bytes), prompts of {prompt} tokens, answers of {}, {on}\n\n",
        bytes(budget),
        rehearsal.answer,
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
        let (speed, of) = (format!("{:.2} GB/s", model.rate.bytes_per_s / 1e9), bytes(model.rate.sample));
        let from = match model.rate.from {
            From::Cache => format!("from the page cache, a sample of {of}"),
            From::Disk => format!("from the disk, a sample of {of}"),
            From::Host => format!("from pinned memory to the device, copies of {of}"),
        };
        vec![model.name.clone(), speed, from]
    };
    let mut rates: Vec<_> = plan.models.iter().map(rate).collect();
    if let Some(read) = plan.device_read {
        let speed = format!("{:.2} GB/s", read / 1e9);
        rates.push(vec![
            "the device".to_owned(),
            speed,
            "from its own memory, a kernel that only reads".to_owned(),
        ]);
    }
    text += &table(&rates, &[1], "  ");
    text += &format!("\nledger, high-water mark {} bytes", plan.high_water);
    if let Some(smallest) = plan.smallest_budget {
        text += &format!(" | smallest budget that would do {smallest} bytes");
    }
    text + "\n"
}

fn as_json(plan: &Plan, rehearsal: &Rehearsal, prompt: usize, device: Option<&str>) -> Value {
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
            "cached": model.rate.from == From::Cache,
            "parts": model.parts.iter().map(part).collect::<Vec<_>>(),
        })
    };
    json!({
        "device": device,
        "device_read_bytes_per_s": plan.device_read,
        "budget_bytes": rehearsal.memory.budget,
        "high_water_bytes": plan.high_water,
        "smallest_budget_bytes": plan.smallest_budget,
        "prompt_tokens": prompt,
        "answer_tokens": rehearsal.answer,
        "filled_tokens": rehearsal.filled,
        "models": plan.models.iter().map(model).collect::<Vec<_>>(),
    })
}
