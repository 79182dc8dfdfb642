// Makes elements, and formats figures. Unknown values are null, and show as "?".

export const $ = (id) => document.getElementById(id);

// Messages may contain anything: characters that reorder a line or can't be seen are shown as escapes, as on the command line.
export function printable(text) {
  return text.replace(/(?!\n)[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

const shown = (value) => (typeof value === "string" ? printable(value) : value);

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : name === "value" ? value : shown(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map(shown));
  return made;
}

export function svg(tag, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Leaves the page alone where nothing has changed: a screen reader would read it again, and a selection would be lost.
export function say(element, text) {
  const clean = printable(String(text));
  if (element.textContent !== clean) element.textContent = clean;
}

// A list of names and values; an unknown value looks and reads as such.
export function showFigures(list, figures) {
  if (!list.children.length) for (const name of Object.keys(figures)) list.append(el("div", {}, el("dt", {}, name), el("dd")));
  Object.values(figures).forEach((text, at) => {
    const value = list.children[at].lastChild;
    value.classList.toggle("unknown", text === "?");
    if (text === "?") value.title = "unknown";
    else value.removeAttribute("title");
    say(value, text);
  });
}

export const count = (value) => (value === null || value === undefined ? "?" : value.toLocaleString("en"));

export function figure(value) {
  if (value === null || value === undefined) return "?";
  return value > 0 && value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "?";
  for (const [power, unit] of [[4, "TB"], [3, "GB"], [2, "MB"], [1, "kB"]]) if (bytes >= 1000 ** power) return `${figure(bytes / 1000 ** power)} ${unit}`;
  return `${bytes} B`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "?";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

export const clock = (moment) => new Date(moment).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

export const since = (moment) => duration(Math.max(0, (Date.now() - Date.parse(moment)) / 1000));

// Far from each other, and alike bright on light and on dark.
const HUES = [211, 28, 268, 152, 340, 48, 185, 0, 90, 300];
export function colour(number, share = 1) {
  const turn = Math.floor(number / HUES.length);
  return `hsl(${HUES[number % HUES.length] + turn * 17} 62% ${52 - (turn % 3) * 9}% / ${share})`;
}
