// The conversation: asked of any model, streamed, stopped, asked again, and gone back to later.

import { events, get, key } from "./http.js";
import * as store from "./store.js";
import { cost, empty, show } from "./turns.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed"];

let chat = store.fresh();
let running = null;

// Whoever used a button that goes away goes on with the one that comes in its place.
function swap(from, to) {
  const used = from.includes(document.activeElement);
  $("stop").hidden = running === null;
  $("send").hidden = running !== null;
  $("again").disabled = running !== null || !chat.turns.some((turn) => turn.role === "user");
  $("talk").setAttribute("aria-busy", String(running !== null));
  if (used) to.focus();
}

function history() {
  const all = store.list().includes(chat) ? store.list() : [chat, ...store.list()];
  $("history").replaceChildren(...all.map((one) => new Option(store.title(one), one.id, false, one === chat)));
  $("delete").disabled = !chat.turns.length;
}

function showAll() {
  $("talk").replaceChildren();
  if (chat.turns.length) chat.turns.forEach((turn) => show($("talk"), turn));
  else empty($("talk"), ask);
  history();
  swap([], $("question"));
}

function request(model) {
  const messages = chat.turns.filter((turn) => turn.content).map(({ role, content }) => ({ role, content }));
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, left: 0 };
  for (const id of NUMBERS) if ($(id).value !== "") body[id] = Number($(id).value);
  while (chat.left?.model === model && body.left < chat.left.questions && leaveOut(body));
  return body;
}

// A conversation outgrows the context of a small model. Then its beginning is left out, a question and its answer at a time, and
// stays out.
function leaveOut(body) {
  const { messages } = body;
  const first = messages.findIndex((message) => message.role === "user");
  const next = messages.findIndex((message, i) => i > first && message.role === "user");
  if (next < 0) return false;
  messages.splice(first, next - first);
  body.left += 1;
  return true;
}

async function* whatFits(body, signal) {
  for (;;) {
    try {
      return yield* events("/v1/chat/completions", { ...body, left: undefined }, signal);
    } catch (error) {
      if (error.code !== "context_length_exceeded" || !leaveOut(body)) throw error;
    }
  }
}

async function answer() {
  const turn = { role: "assistant", model: $("model").value, content: "" };
  const body = request(turn.model);
  const mine = chat;
  mine.turns.push(turn);
  const paint = show($("talk"), turn);
  const stop = new AbortController();
  running = stop;
  swap([$("send"), $("again")], $("stop"));
  let due = false;
  const soon = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => { due = false; paint(running === stop); });
  };
  soon();
  try {
    for await (const { data } of whatFits(body, stop.signal)) {
      if (data === "[DONE]") break;
      const value = JSON.parse(data);
      if (value.error) throw new Error(value.error.message);
      const choice = value.choices[0];
      turn.content += choice?.delta?.content ?? "";
      if (choice?.finish_reason === "length") turn.cut = true;
      if (value.usage) {
        const full = turn.cut && !(value.usage.completion_tokens >= body.max_tokens);
        turn.cost = cost(value.usage, value.timings, turn.cut && (full ? "no room for more" : "as long as was asked for"), body.left);
        // The next answer gets more room.
        mine.left = { model: body.model, questions: body.left + (full ? 1 : 0) };
      }
      soon();
    }
  } catch (error) {
    if (error.name === "AbortError") turn.cost = "stopped";
    else turn.error = error.message;
  }
  // Another conversation may have begun an answer of its own.
  if (running === stop) running = null;
  paint();
  if (store.find(mine.id) || mine === chat) store.put(mine);
  swap([$("stop")], $("send"));
  history();
}

function ask(text) {
  if (!text || running) return;
  $("question").value = "";
  chat.turns.push({ role: "user", content: text });
  show($("talk"), chat.turns.at(-1));
  answer();
}

function again() {
  while (chat.turns.at(-1)?.role === "assistant") chat.turns.pop();
  showAll();
  if (chat.turns.length) answer();
}

function open(other) {
  running?.abort();
  running = null;
  chat = other;
  store.save({ open: chat.id });
  showAll();
}

export async function models() {
  const names = (await get("/v1/models")).data.map((model) => model.id);
  const chosen = $("model").value;
  $("model").replaceChildren(...names.map((id) => new Option(id, id)));
  if (names.includes(chosen)) $("model").value = chosen;
}

function keep() {
  const settings = Object.fromEntries(NUMBERS.map((id) => [id, $(id).value]));
  store.save({ settings, system: $("system").value, model: $("model").value });
}

export async function start() {
  const kept = store.restore();
  chat = store.find(kept.open) ?? store.fresh();
  $("system").value = kept.system;
  for (const id of NUMBERS) $(id).value = kept.settings[id] ?? "";
  $("key").value = key.get();
  showAll();
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask($("question").value.trim());
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask($("question").value.trim());
    }
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  $("stop").addEventListener("click", () => running?.abort());
  $("again").addEventListener("click", again);
  $("new").addEventListener("click", () => {
    open(store.fresh());
    $("question").focus();
  });
  $("delete").addEventListener("click", () => {
    store.remove(chat);
    open(store.list()[0] ?? store.fresh());
    $("question").focus();
  });
  $("history").addEventListener("change", () => open(store.find($("history").value) ?? chat));
  $("settings").addEventListener("change", keep);
  $("model").addEventListener("change", keep);
  await models();
  if ([...$("model").options].some((option) => option.value === kept.model)) $("model").value = kept.model;
}
