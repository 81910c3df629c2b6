// Requests to the server this page came from: the key if there is one, errors as text, streams as events.

const KEY = "nexaquant.key";
export const key = { get: () => sessionStorage.getItem(KEY) ?? "", set: (value) => sessionStorage.setItem(KEY, value) };

async function send(path, options = {}) {
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}) };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  // Stopped in the middle of an error: that is what happened.
  options.signal?.throwIfAborted();
  const error = new Error(body?.error?.message ?? `the server says ${response.status}`);
  throw Object.assign(error, { code: body?.error?.code });
}

export const get = async (path) => (await send(path)).json();
export const post = async (path, body) =>
  (await send(path, { method: "POST", body: body === undefined ? undefined : JSON.stringify(body) })).json();

// Yields { event, data } for each event of a stream, until it ends or `signal` ends it.
export async function* events(path, body, signal) {
  const options = body === undefined ? { signal } : { method: "POST", body: JSON.stringify(body), signal };
  const reader = (await send(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      let event = "message", data = "";
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) event = line.slice(7);
        if (line.startsWith("data: ")) data += line.slice(6);
      }
      if (data) yield { event, data };
    }
  }
}
