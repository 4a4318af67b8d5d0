// Depth and rate over time, from this tab's own refreshes; and their sparklines.

import { count, duration, h } from "./dom.js";

const KEY = "pgqueue.history";
const POINTS = 360; // half an hour of refreshes
const WIDTH = 240;
const HEIGHT = 44;

let points = [];
try {
  points = JSON.parse(sessionStorage.getItem(KEY) ?? "[]"); // survives a reload of the tab
} catch {
  points = [];
}

/** Remember one overview; times are the server's. */
export function remember(at, depth, rate) {
  const time = Date.parse(at);
  const last = points.at(-1);
  if (last && time <= last.time) return;
  points = [...points, { time, depth, rate }].slice(-POINTS);
  try {
    sessionStorage.setItem(KEY, JSON.stringify(points));
  } catch {
    // a full storage costs the history of a reload, nothing else
  }
}

/** A line of `field` over the remembered refreshes; its words say the same to those who do not see it. */
export function sparkline(field, label) {
  const values = points.map((point) => point[field]);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const span = (points.at(-1)?.time ?? 0) - (points[0]?.time ?? 0);
  const words = points.length < 2
    ? `${label}: collecting`
    : `${label} over ${duration(span / 1000)}: ${count(low)} to ${count(high)}, now ${count(values.at(-1))}`;
  const svg = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", role: "img", "aria-label": words };
  if (points.length < 2) return [h("svg", svg), h("small", null, "collecting…")];
  // From zero, so that a ripple does not look like a flood.
  const x = (time) => (((time - points[0].time) / span) * WIDTH).toFixed(1);
  const y = (value) => (HEIGHT - 2 - (value / Math.max(high, 1)) * (HEIGHT - 4)).toFixed(1);
  const line = points.map((point, index) => `${index ? "L" : "M"}${x(point.time)} ${y(point[field])}`).join("");
  return [
    h("svg", svg, h("path", { class: "area", d: `${line}L${WIDTH} ${HEIGHT}L0 ${HEIGHT}Z` }), h("path", { class: "line", d: line })),
    h("small", null, `${duration(span / 1000)}, ${count(low)} to ${count(high)}`),
  ];
}
