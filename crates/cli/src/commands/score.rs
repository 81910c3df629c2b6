//! `score`: the log-probability of each token of a text and the likeliest token in its place.

use crate::args::ScoreArgs;
use crate::engine;
use crate::failure::Failure;
use crate::models;
use crate::options;
use crate::output;
use nexaquant_engine::sampler::log_probs;
use nexaquant_engine::tokenizer::Tokenizer;
use serde_json::json;

pub fn score(args: ScoreArgs) -> Result<(), Failure> {
    let options = options::engine(&args.engine);
    let (model, mut pool) = engine::open(&models::find(&args.model)?, &options)?;
    let tokens = match (args.tokens, args.text) {
        (Some(tokens), _) => tokens,
        (None, text) => engine::encode(&model, &text.unwrap_or_default(), false)?,
    };
    if tokens.is_empty() {
        return Err(Failure::input("there are no tokens to score"));
    }
    let mut session = engine::session(&model, &mut pool, &options, options.scoring_session(tokens.len()))?;

    let (mut logprobs, mut top1) = (Vec::with_capacity(tokens.len()), Vec::with_capacity(tokens.len()));
    let mut wrong = None;
    session
        .eval_each(&mut pool, &tokens, |i, logits| {
            // After the last token only the likeliest next one is of interest.
            let next = tokens.get(i + 1).copied();
            match log_probs(logits, next.unwrap_or(0), 1) {
                Ok(found) => {
                    logprobs.extend(next.map(|_| found.token));
                    top1.extend(found.top.first().map(|&(id, _)| id));
                }
                Err(error) => wrong = wrong.take().or(Some(error)),
            }
        })
        .map_err(Failure::input)?;
    if let Some(error) = wrong {
        return Err(Failure::Input(format!("{}: {error}", model.file().path().display())));
    }
    if args.json {
        return output::print_json(&json!({ "tokens": tokens, "logprobs": logprobs, "top1": top1 }));
    }
    output::print(&report(model.tokenizer(), &tokens, &logprobs, &top1))
}

fn report(tokenizer: &Tokenizer, tokens: &[u32], logprobs: &[f64], top1: &[u32]) -> String {
    let name = |id: u32| format!("{id} {:?}", tokenizer.token_text(id).unwrap_or_default());
    let mut rows = vec![vec!["position".into(), "logprob".into(), "token".into(), "likeliest".into()]];
    rows.push(vec!["0".into(), String::new(), name(tokens[0])]);
    for (i, (&token, logprob)) in tokens[1..].iter().zip(logprobs).enumerate() {
        let likeliest = if top1[i] == token { "the same".to_owned() } else { name(top1[i]) };
        rows.push(vec![(i + 1).to_string(), format!("{logprob:.4}"), name(token), likeliest]);
    }
    let end = top1.last().map(|&id| name(id)).unwrap_or_default();
    rows.push(vec!["next".into(), String::new(), String::new(), end]);
    let mut text = output::table(&rows, &[0, 1], "");
    if !logprobs.is_empty() {
        let mean = logprobs.iter().sum::<f64>() / logprobs.len() as f64;
        text += &format!("mean log-probability {mean:.4}, perplexity {:.3}\n", (-mean).exp());
    }
    text
}
