// The conversation: asked of any model, streamed, stopped, asked again, kept in this browser.

import { events, get, key } from "./http.js";
import { markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const STORE = "nexaquant.chat";
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"];

let turns = [];
let running = null;

function save() {
  const settings = Object.fromEntries(NUMBERS.map((id) => [id, $(id).value]));
  localStorage.setItem(STORE, JSON.stringify({ turns, settings, system: $("system").value, model: $("model").value }));
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE)) ?? {};
    turns = Array.isArray(kept.turns) ? kept.turns : [];
    $("system").value = kept.system ?? "";
    for (const id of NUMBERS) $(id).value = kept.settings?.[id] ?? "";
    return kept.model;
  } catch {
    return undefined;
  }
}

function show(turn) {
  const box = document.createElement("article");
  box.className = `turn ${turn.role}`;
  const who = document.createElement("p");
  who.className = "who";
  who.textContent = turn.role === "user" ? "You" : turn.model;
  const body = document.createElement("div");
  const cost = document.createElement("p");
  cost.className = "cost";
  box.append(who, body, cost);
  $("talk").append(box);
  const paint = () => {
    const low = $("talk").scrollHeight - $("talk").scrollTop - $("talk").clientHeight < 60;
    body.replaceChildren(turn.role === "user" ? turn.content : markdown(turn.content));
    cost.textContent = turn.cost ?? "";
    if (turn.error) {
      const error = document.createElement("p");
      error.className = "error";
      error.textContent = turn.error;
      body.append(error);
    }
    if (low) $("talk").scrollTop = $("talk").scrollHeight;
  };
  paint();
  return paint;
}

function showAll() {
  $("talk").replaceChildren();
  turns.forEach(show);
  $("again").disabled = running !== null || !turns.some((turn) => turn.role === "user");
}

function cost(usage, timings) {
  if (!usage) return "";
  const parts = [`${usage.completion_tokens} tokens`];
  if (timings?.predicted_per_second) parts.push(`${timings.predicted_per_second.toFixed(0)} tokens/s`);
  if (timings) parts.push(`first token ${timings.first_token_ms.toFixed(1)} ms`);
  if (timings?.switch_bytes) parts.push(`${(timings.switch_bytes / 1e6).toFixed(1)} MB brought in first, ${timings.switch_ms.toFixed(1)} ms`);
  return parts.join(" · ");
}

async function answer() {
  const model = $("model").value;
  const turn = { role: "assistant", model, content: "" };
  const messages = turns.map(({ role, content }) => ({ role, content }));
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const body = { model, messages, stream: true, stream_options: { include_usage: true } };
  for (const id of NUMBERS) if ($(id).value !== "") body[id] = Number($(id).value);
  turns.push(turn);
  const paint = show(turn);
  running = new AbortController();
  $("stop").disabled = false;
  $("send").disabled = $("again").disabled = true;
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; paint(); });
  };
  try {
    for await (const { data } of events("/v1/chat/completions", body, running.signal)) {
      if (data === "[DONE]") break;
      const value = JSON.parse(data);
      if (value.error) throw new Error(value.error.message);
      turn.content += value.choices[0]?.delta?.content ?? "";
      if (value.usage) turn.cost = cost(value.usage, value.timings);
      soon();
    }
  } catch (error) {
    if (error.name === "AbortError") turn.cost = "stopped";
    else turn.error = error.message;
  }
  running = null;
  $("stop").disabled = true;
  $("send").disabled = $("again").disabled = false;
  paint();
  save();
}

function ask(text) {
  turns.push({ role: "user", content: text });
  show(turns.at(-1));
  return answer();
}

export async function models() {
  const list = (await get("/v1/models")).data.map((model) => model.id);
  const chosen = $("model").value;
  $("model").replaceChildren(...list.map((id) => new Option(id, id)));
  if (list.includes(chosen)) $("model").value = chosen;
}

export async function start() {
  const model = restore();
  $("key").value = key.get();
  showAll();
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("question").value.trim();
    if (!text || running) return;
    $("question").value = "";
    ask(text);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("ask").requestSubmit();
    }
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  $("stop").addEventListener("click", () => running?.abort());
  $("again").addEventListener("click", () => {
    while (turns.length && turns.at(-1).role === "assistant") turns.pop();
    showAll();
    if (turns.length) answer();
  });
  $("new").addEventListener("click", () => {
    running?.abort();
    turns = [];
    showAll();
    save();
    $("question").focus();
  });
  $("settings").addEventListener("change", save);
  $("model").addEventListener("change", save);
  await models();
  if ([...$("model").options].some((option) => option.value === model)) $("model").value = model;
}
