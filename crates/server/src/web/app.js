// Where the page starts: theme, key, chat and map.

import * as chat from "./chat.js";
import * as map from "./map.js";
import { key } from "./http.js";

const $ = (id) => document.getElementById(id);
const THEME = "nexaquant.theme";

function theme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  $("theme").textContent = dark ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
}

const wish = localStorage.getItem(THEME);
theme(wish ? wish === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
$("theme").addEventListener("click", () => {
  const dark = !document.documentElement.classList.contains("dark");
  localStorage.setItem(THEME, dark ? "dark" : "light");
  theme(dark);
});
$("key").addEventListener("change", () => {
  key.set($("key").value.trim());
  chat.models().catch(() => {});
});

const say = (text) => {
  if ($("state").textContent === text) return;
  $("state").textContent = text;
  $("state").classList.toggle("live", text === "live");
};
chat.start().catch((error) => say(error.message));
map.start(say, () => chat.models().catch(() => {}));
