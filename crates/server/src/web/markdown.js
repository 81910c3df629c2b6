// A small Markdown: paragraphs, headings, lists, tables, quotes, code, emphasis, links. It makes elements and text nodes and never
// parses HTML, so what a model says can look like anything and do nothing.

const INLINE = /(`+)([^`]+)\1|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

function inline(parent, text) {
  for (;;) {
    const found = INLINE.exec(text);
    if (!found) break;
    if (found.index > 0) parent.append(text.slice(0, found.index));
    const [all, , code, strong, emphasis, label, href] = found;
    if (code !== undefined) parent.append(element("code", code));
    else if (strong !== undefined) parent.append(element("strong", strong));
    else if (emphasis !== undefined) parent.append(element("em", emphasis));
    else {
      const link = element("a", label);
      Object.assign(link, { href, rel: "noopener noreferrer", target: "_blank" });
      parent.append(link);
    }
    text = text.slice(found.index + all.length);
  }
  if (text) parent.append(text);
}

function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function block(name, text) {
  const made = element(name);
  inline(made, text);
  return made;
}

const ROW = /^\s*\|.*\|\s*$/;
const RULE = /^\s*\|(\s*:?-+:?\s*\|)+\s*$/;

function row(line, name) {
  const made = element("tr");
  for (const cell of line.trim().slice(1, -1).split("|")) made.append(block(name, cell.trim()));
  return made;
}

// A piece of a document with the text's elements.
export function markdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    if (/^```/.test(line)) {
      const code = [];
      for (i += 1; i < lines.length && !/^```/.test(lines[i]); i += 1) code.push(lines[i]);
      i += 1;
      const pre = element("pre");
      pre.append(element("code", code.join("\n")));
      out.append(pre);
      continue;
    }
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (heading) {
      out.append(block(`h${Math.min(6, heading[1].length + 3)}`, heading[2]));
      i += 1;
      continue;
    }
    const marker = /^\s*([-*+]|\d+[.)])\s+/;
    if (marker.test(line)) {
      const list = element(/^\s*\d/.test(line) ? "ol" : "ul");
      for (; i < lines.length && marker.test(lines[i]); i += 1) list.append(block("li", lines[i].replace(marker, "")));
      out.append(list);
      continue;
    }
    if (ROW.test(line) && RULE.test(lines[i + 1] ?? "")) {
      const table = element("table");
      table.append(row(line, "th"));
      for (i += 2; i < lines.length && ROW.test(lines[i]); i += 1) table.append(row(lines[i], "td"));
      out.append(table);
      continue;
    }
    if (/^>\s?/.test(line)) {
      const said = [];
      for (; i < lines.length && /^>\s?/.test(lines[i]); i += 1) said.push(lines[i].replace(/^>\s?/, ""));
      out.append(block("blockquote", said.join(" ")));
      continue;
    }
    if (!line.trim()) {
      i += 1;
      continue;
    }
    const paragraph = [line];
    for (i += 1; i < lines.length && lines[i].trim() && !/^(```|#{1,6}\s|>)/.test(lines[i]) && !marker.test(lines[i]); i += 1) paragraph.push(lines[i]);
    out.append(block("p", paragraph.join("\n")));
  }
  return out;
}
