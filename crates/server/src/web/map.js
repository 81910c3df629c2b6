// The residency map: one row a model, one cell a unit, as the server tells it ten times a second.

import { events, post } from "./http.js";
import { draw, push } from "./charts.js";

const $ = (id) => document.getElementById(id);
const LETTERS = { cold: "c", partial: "h", loading: "l", resident: "r", pinned: "p", in_use: "u", evicting: "e" };
const WORDS = Object.fromEntries(Object.entries(LETTERS).map(([word, letter]) => [letter, word.replace("_", " ")]));
// Beyond this many units, cells wrap and all have one size.
const WIDE = 48;

const rows = new Map();
const rate = [], hits = [];
let before = null;
let heard = 0;

const mb = (bytes) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(2)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);

function note(text) {
  $("memory-note").textContent = text;
}

async function act(path, body) {
  note("");
  try {
    await post(path, body);
  } catch (error) {
    note(error.message);
  }
}

function paint(cell, letter, name) {
  if (cell.dataset.state === letter) return;
  cell.dataset.state = letter;
  cell.className = `u ${letter === "u" ? "u-use" : letter}`;
  cell.title = `${name}, ${WORDS[letter] ?? letter}`;
}

function button(text, label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

function row(model) {
  const box = document.createElement("div");
  box.className = "model";
  box.dataset.model = model.name;
  const head = document.createElement("div");
  head.className = "name";
  const name = document.createElement("b");
  name.textContent = model.names?.join(", ") ?? model.name;
  const text = document.createElement("span");
  const at = `/v1/m3/models/${encodeURIComponent(model.name)}`;
  const made = { text, units: model.units, bytes: model.bytes, pin: model.pin };
  made.pinButton = button("Pin", `Pin ${model.name}`, () => act(`${at}/${made.pin === "none" ? "pin" : "unpin"}`));
  const acts = document.createElement("div");
  acts.className = "acts";
  acts.append(button("Load", `Load ${model.name}`, () => act(`${at}/load`)), made.pinButton,
    button("Unload", `Unload ${model.name}`, () => act(`${at}/unload`)));
  head.append(name, text, acts);
  const cells = document.createElement("div");
  cells.className = model.units.length > WIDE ? "cells many" : "cells";
  cells.setAttribute("role", "img");
  made.holder = cells;
  made.cells = model.units.map((unit) => {
    const cell = document.createElement("i");
    // As wide as it is large.
    cell.style.flexGrow = unit.bytes / model.bytes;
    paint(cell, LETTERS[unit.state], `${unit.name}, ${mb(unit.bytes)}`);
    cells.append(cell);
    return cell;
  });
  box.append(head, cells);
  $("models").append(box);
  rows.set(model.name, made);
  tell(made, model);
}

function tell(made, model) {
  made.pin = model.pin;
  made.pinButton.textContent = model.pin === "none" ? "Pin" : "Unpin";
  made.pinButton.setAttribute("aria-label", `${made.pinButton.textContent} ${model.name}`);
  made.text.textContent = `${mb(model.resident)} of ${mb(made.bytes)}${model.sessions ? `, ${model.sessions} requests` : ""}`;
  made.holder.setAttribute("aria-label", `${model.name}: ${mb(model.resident)} of ${mb(made.bytes)} in memory`);
}

const PARTS = [["weights", "weights"], ["kv", "keys and values"], ["scratch", "buffers"]];

function ledger(now) {
  const bytes = { weights: now.weights, kv: now.kv, scratch: now.scratch + now.staging };
  for (const [name] of PARTS) $("meter").querySelector(`.${name}`).style.width = `${(100 * bytes[name] / Math.max(1, now.budget)).toFixed(2)}%`;
  const used = document.createElement("b");
  used.textContent = mb(now.used);
  $("meter-text").replaceChildren(used, ` of ${mb(now.budget)}, at most ${mb(now.high_water)} so far; ${now.running} running, ${now.waiting} waiting`);
  $("ledger").replaceChildren(...PARTS.map(([name, words]) => {
    const item = document.createElement("li");
    const colour = document.createElement("i");
    colour.className = name;
    item.append(colour, `${words} ${mb(bytes[name])}`);
    return item;
  }));
  if (document.activeElement !== $("budget")) $("budget").value = now.budget / 1e6;
  sample(now);
  heard = performance.now();
}

// Twice a second is often enough for the charts.
function sample(now) {
  if (before && now.at_ms - before.at_ms < 480) return;
  if (before) {
    const seconds = (now.at_ms - before.at_ms) / 1000;
    push(rate, now.at_ms, (now.bytes_in - before.bytes_in) / seconds);
    const of = (x) => x.hits + x.prefetched + x.late + x.misses;
    const uses = of(now) - of(before);
    push(hits, now.at_ms, uses ? (now.hits - before.hits) / uses : hits.at(-1)?.y ?? 1);
    const most = Math.max(1, ...rate.map((point) => point.y));
    $("rate-now").textContent = `${mb(rate.at(-1).y)}/s`;
    $("rate-most").textContent = most > 1 ? `top: ${mb(most)}/s` : "";
    $("hits-now").textContent = uses ? `${(100 * hits.at(-1).y).toFixed(0)} %` : "idle";
    draw($("rate"), rate, most);
    draw($("hits"), hits, 1);
  }
  before = now;
}

const switches = new Map();
function history(list) {
  for (const one of list) switches.set(one.number, one);
  const latest = [...switches.values()].sort((a, b) => b.number - a.number).slice(0, 40);
  for (const number of switches.keys()) if (number < (latest.at(-1)?.number ?? 0)) switches.delete(number);
  $("no-switches").hidden = latest.length > 0;
  $("switches").replaceChildren(...latest.map((one) => {
    const line = document.createElement("tr");
    const from = one.from ? `${one.from} → ${one.to}` : one.to;
    for (const text of [`${(one.at_ms / 1000).toFixed(2)} s`, from, mb(one.bytes_in), mb(one.bytes_out), `${one.load_ms.toFixed(2)} ms`]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      line.append(cell);
    }
    return line;
  }));
}

function hear(event, value, changed) {
  if (event === "residency") {
    // All of it: at the beginning, after the server came back, or with other models.
    rows.clear();
    switches.clear();
    before = null;
    $("models").replaceChildren();
    if (!value.ledger) {
      note("There is no budget: models are used where they lie in their files. Start with --budget to see who is in memory.");
      $("budget-form").hidden = true;
      return;
    }
    note("");
    value.models.forEach(row);
    changed();
  } else {
    for (const model of value.models) {
      const made = rows.get(model.name);
      if (!made) continue;
      [...model.states].forEach((letter, i) => paint(made.cells[i], letter, `${made.units[i].name}, ${mb(made.units[i].bytes)}`));
      tell(made, model);
    }
  }
  ledger(value.ledger);
  history(value.switches);
}

// Watches for good; a connection that breaks is made again. `say` is told how it goes, `changed` that there are other models.
export async function start(say, changed) {
  $("budget-form").addEventListener("submit", (event) => {
    event.preventDefault();
    act("/v1/m3/budget", { budget: Math.round(Number($("budget").value) * 1e6) });
  });
  // Nothing is said while nothing happens, but time goes on.
  setInterval(() => {
    const idle = performance.now() - heard;
    if (!before || idle < 900) return;
    heard += idle;
    sample({ ...before, at_ms: before.at_ms + idle });
  }, 1000);
  for (;;) {
    try {
      for await (const { event, data } of events("/v1/m3/events")) {
        say("live");
        hear(event, JSON.parse(data), changed);
      }
      say("the server has gone; waiting for it");
    } catch (error) {
      say(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}
