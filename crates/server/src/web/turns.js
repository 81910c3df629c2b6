// How a conversation looks.

import { markdown } from "./markdown.js";

const IDEAS = ["Tell me a story about a little fox.", "What is your name?", "Where do birds sleep?"];

function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

// Shows a turn at the end of `talk`; what comes back shows it again after it has changed.
export function show(talk, turn) {
  talk.querySelector(".empty")?.remove();
  const box = element("article", `turn ${turn.role}`);
  const body = element("div", "body");
  const cost = element("p", "cost");
  box.append(element("p", "who", turn.role === "user" ? "You" : turn.model), body, cost);
  talk.append(box);
  const paint = (running = false) => {
    const low = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
    body.replaceChildren(turn.role === "user" ? turn.content : markdown(turn.content));
    if (turn.error) body.append(element("p", "error", turn.error));
    cost.textContent = turn.cost ?? "";
    box.classList.toggle("running", running);
    if (low) talk.scrollTop = talk.scrollHeight;
  };
  paint();
  talk.scrollTop = talk.scrollHeight;
  return paint;
}

// What is there before anything was said.
export function empty(talk, ask) {
  const box = element("div", "empty");
  box.append(element("p", "", "Ask any model. Whoever is asked comes into memory; the map shows how."));
  for (const idea of IDEAS) {
    const button = element("button", "", idea);
    button.type = "button";
    button.addEventListener("click", () => ask(idea));
    box.append(button);
  }
  talk.replaceChildren(box);
}

// What an answer took, in a line.
export function cost(usage, timings, cut, left) {
  if (!usage) return "";
  const parts = [`${usage.completion_tokens} tokens`];
  if (timings?.predicted_per_second) parts.push(`${timings.predicted_per_second.toFixed(0)} tokens/s`);
  if (timings) parts.push(`first token after ${timings.first_token_ms.toFixed(1)} ms`);
  if (timings?.switch_bytes) parts.push(`${(timings.switch_bytes / 1e6).toFixed(1)} MB brought in first, ${timings.switch_ms.toFixed(1)} ms`);
  if (cut) parts.push(`cut off: ${cut}`);
  if (left) parts.push(left === 1 ? "the first question was left out" : `the first ${left} questions were left out`);
  return parts.join(" · ");
}
