// Making and updating elements. Data becomes text nodes and attributes, never markup: there is no innerHTML here.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "circle"]);

/** An element with attributes (null and false are left out) and children (text, elements, nested lists). */
export function h(tag, attributes, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value != null && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child != null && child !== false) element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** A name somebody else chose: isolated, so that right-to-left marks in it cannot turn the rest of the line. */
export const name = (text) => h("bdi", null, text);

/**
 * Make `parent` hold what `wanted` describes, changing only what differs, so that a refresh loses neither the
 * keyboard's focus nor a selection nor a half-typed filter. Elements that carry data-key are matched by it.
 */
export function render(parent, ...wanted) {
  const fragment = h("div", null, wanted);
  syncChildren(parent, fragment);
}

function syncChildren(parent, source) {
  const keyed = new Map();
  for (const child of parent.children) if (child.dataset?.key) keyed.set(child.dataset.key, child);
  let current = parent.firstChild;
  for (const next of [...source.childNodes]) {
    const match = next.dataset?.key ? keyed.get(next.dataset.key) : current;
    if (match && isSame(match, next)) {
      if (match === current) current = current.nextSibling;
      else parent.insertBefore(match, current);
      sync(match, next);
    } else {
      parent.insertBefore(next, current);
    }
  }
  while (current) {
    const rest = current.nextSibling;
    current.remove();
    current = rest;
  }
}

const isSame = (a, b) => a.nodeName === b.nodeName && a.dataset?.key === b.dataset?.key;

function sync(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  syncChildren(old, next);
}

// -- words for numbers and moments -------------------------------------------------------------------------

let skew = 0; // milliseconds that the server's clock is ahead of this one

/** Ages are told by the server's clock: this machine's may be minutes off. */
export function setClock(date) {
  const server = Date.parse(date ?? "");
  // The header has whole seconds; a difference that small is no skew.
  if (!Number.isNaN(server)) skew = Math.abs(server - Date.now()) > 2000 ? server - Date.now() : 0;
}

/** Now, by the server's clock, in milliseconds. */
export const now = () => Date.now() + skew;

export const count = (number) => Number(number).toLocaleString("en");

/** "3 min" for 190 seconds: two significant steps, no more. */
export function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 0.001) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1).replace(/\.0$/, "")} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

const two = (number) => String(number).padStart(2, "0");

export function clock(date) {
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** A moment in the reader's time zone, with how long ago or how far ahead it is. */
export function moment(text, { short = false } = {}) {
  if (!text) return "–";
  const date = new Date(text);
  const ago = (now() - date.getTime()) / 1000;
  const relative = Math.abs(ago) < 2 ? "just now" : ago > 0 ? `${duration(ago)} ago` : `in ${duration(-ago)}`;
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const full = `${day} ${clock(date)}`;
  if (short) return h("time", { datetime: text, title: full }, relative);
  return [h("time", { datetime: text }, full), " ", h("span", { class: "faint" }, relative)];
}
