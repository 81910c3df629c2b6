// Conversations, kept in this browser and nowhere else: the latest first, as many as there is room for.

const STORE = "nexaquant.chats";
const MOST = 50;

let kept = { chats: [], open: null, settings: {}, system: "", model: "" };

export function restore() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    if (Array.isArray(found?.chats)) kept = { ...kept, ...found };
  } catch {
    // What cannot be read is begun anew.
  }
  return kept;
}

export function save(changes = {}) {
  Object.assign(kept, changes);
  kept.chats = kept.chats.filter((chat) => chat.turns.length).slice(0, MOST);
  for (;;) {
    try {
      return localStorage.setItem(STORE, JSON.stringify(kept));
    } catch {
      // No room: the oldest goes. With none left, nothing is kept.
      if (!kept.chats.pop()) return undefined;
    }
  }
}

export const list = () => kept.chats;
export const find = (id) => kept.chats.find((chat) => chat.id === id);

// A conversation that was just used is the latest.
export function put(chat) {
  kept.chats = [chat, ...kept.chats.filter((other) => other !== chat)];
  save({ open: chat.id });
}

export function remove(chat) {
  kept.chats = kept.chats.filter((other) => other !== chat);
  save({ open: kept.chats[0]?.id ?? null });
}

export const fresh = () => ({ id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, turns: [] });

export function title(chat) {
  const first = chat.turns.find((turn) => turn.role === "user")?.content.replace(/\s+/g, " ").trim();
  if (!first) return "New chat";
  return first.length > 48 ? `${first.slice(0, 47)}…` : first;
}
