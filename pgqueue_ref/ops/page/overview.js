// The first view: is it moving, and if not, what stands still; counts and flow by queue and kind.

import { count, duration, h, name } from "./dom.js";
import { remember, sparkline } from "./history.js";

const STATUSES = ["pending", "blocked", "running", "succeeded", "failed", "cancelled"];
const SLOW = 30; // seconds a due job may wait while nothing runs, before the page says that no worker seems to be up
const LONG = 300; // seconds that an attempt may run, before the page points it out, as the doctor does

const sum = (rows, field) => rows.reduce((total, row) => total + row[field], 0);

/** What the view shows, from one answer of stats/overview. */
export function overview(data) {
  const { rows, flows, paused } = data;
  const of = (...statuses) => sum(rows.filter((row) => statuses.includes(row.status)), "jobs");
  const sure = (...statuses) => (rows.some((row) => row.estimated && statuses.includes(row.status)) ? "≈ " : "");
  const depth = of("pending", "blocked", "running");
  const rate = sum(flows, "finished_last_hour");
  remember(data.at, depth, rate);
  const queues = [...new Set([...rows.map((row) => row.queue), ...flows.map((flow) => flow.queue), ...paused])].sort();
  const about = data.estimated ? "≈ " : "";
  return [
    h("h1", { tabindex: "-1" }, "Overview"),
    verdict(data, queues),
    h("div", { class: "tiles" },
      tile("due now", count(sum(flows, "due")), oldest(flows)),
      tile("running", count(of("running"))),
      tile("failed", link("#/failed", sure("failed") + count(of("failed"))), null, of("failed") ? "bad" : ""),
      tile("depth", sure("pending", "blocked", "running") + count(depth), sparkline("depth", "Depth, jobs not finished"), "wide"),
      tile("finished per hour", about + count(rate), sparkline("rate", "Jobs finished per hour"), "wide c2"),
    ),
    queues.length ? queues.map((queue) => section(data, queue)) : empty(),
    data.estimated && h("p", { class: "note" }, "≈ The table is large: these figures and the last hour are estimated from a sample."),
    queues.length > 0 && h("p", { class: "note" }, "Finished per hour counts jobs whose rows are still there; a kind that deletes its finished jobs at once leaves none."),
  ];
}

function tile(label, value, below, kind = "") {
  return h("div", { class: kind }, h("span", null, label), h("b", null, value), below && h("div", { class: "below" }, below));
}

function oldest(flows) {
  const ages = flows.map((flow) => flow.oldest_due_seconds).filter((age) => age != null);
  return ages.length ? h("small", null, `oldest waits ${duration(Math.max(...ages))}`) : null;
}

const link = (href, ...content) => h("a", { href }, content);

/** One box that says what somebody who was woken wants to know first. */
function verdict({ rows, flows, paused }, queues) {
  const worries = [];
  for (const queue of queues) {
    const own = flows.filter((flow) => flow.queue === queue);
    const due = sum(own, "due");
    const waits = Math.max(0, ...own.map((flow) => flow.oldest_due_seconds ?? 0));
    const running = sum(rows.filter((row) => row.queue === queue && row.status === "running"), "jobs");
    if (paused.includes(queue)) {
      worries.push([name(queue), " is paused", due ? `: ${plural(due, "job")} due` : "", "."]);
    } else if (due && !running && waits > SLOW) {
      worries.push(["Nothing runs in ", name(queue), ` and ${plural(due, "job")} ${due === 1 ? "is" : "are"} due, the oldest for ${duration(waits)}. Is a worker up?`]);
    }
  }
  for (const { queue, kind, oldest_running_seconds: runs } of flows) {
    if (runs > LONG) worries.push([link(href(queue, kind, "running"), "An attempt of ", name(kind), ` runs for ${duration(runs)}`), ". Does it hang?"]);
  }
  const failed = sum(rows.filter((row) => row.status === "failed"), "jobs");
  if (failed) worries.push([link("#/failed", `${plural(failed, "job")} failed`), " and will not run again unless retried."]);
  if (worries.length) {
    return h("div", { class: "verdict fail" }, h("b", null, "Needs a look"), h("ul", null, worries.map((worry) => h("li", null, worry))));
  }
  const active = sum(rows.filter((row) => row.status === "running"), "jobs");
  const waiting = sum(flows, "due");
  const words = active ? `${plural(active, "job")} running` : waiting ? `${plural(waiting, "job")} about to start` : "nothing waits";
  return h("div", { class: "verdict pass" }, h("b", null, "All well"), words, ".");
}

const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** One queue: its name, whether it is paused, and a table of its kinds (cards on a phone). */
function section({ rows, flows, paused }, queue) {
  const isPaused = paused.includes(queue);
  const own = rows.filter((row) => row.queue === queue);
  const flow = (kind) => flows.find((one) => one.queue === queue && one.kind === kind) ?? {};
  const kinds = [...new Set([...own.map((row) => row.kind), ...flows.filter((one) => one.queue === queue).map((one) => one.kind)])].sort();
  const found = (kind, status) => own.find((row) => row.kind === kind && row.status === status) ?? { jobs: 0, estimated: false };
  const cells = (kind) => {
    const { due, oldest_due_seconds: waits, oldest_running_seconds: runs, average_seconds: average, p95_seconds: p95 } = flow(kind);
    return [
      ...STATUSES.map((status) => {
        const { jobs, estimated } = found(kind, status);
        return cell(status, jobs, { href: href(queue, kind, status), loud: status === "failed", about: estimated });
      }),
      cell("due", due ?? 0),
      textCell("oldest due", duration(waits)),
      textCell("oldest running", duration(runs)),
      textCell("average", duration(average)),
      textCell("p95", duration(p95)),
    ];
  };
  const heads = ["kind", ...STATUSES, "due", "oldest due", "oldest running", "average", "p95"];
  return h("section", { "data-key": `queue ${queue}`, "aria-label": `Queue ${queue}` },
    h("div", { class: "title" },
      h("h2", null, name(queue)),
      isPaused && h("span", { class: "badge paused" }, "paused"),
      h("button", { type: "button", class: "small", "data-action": isPaused ? "resume" : "pause", "data-queue": queue,
        "aria-label": `${isPaused ? "Resume" : "Pause"} queue ${queue}` }, isPaused ? "Resume" : "Pause"),
    ),
    kinds.length
      ? h("table", { role: "table" },
        h("caption", { class: "unseen" }, `Jobs of queue ${queue} by kind and status`),
        h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, heads.map((head) => h("th", { scope: "col", role: "columnheader" }, head)))),
        h("tbody", { role: "rowgroup" }, kinds.map((kind) => h("tr", { role: "row", "data-key": `kind ${kind}` },
          h("th", { scope: "row", role: "rowheader" }, link(href(queue, kind), name(kind))), cells(kind)))))
      : h("p", { class: "note" }, "No jobs."),
  );
}

function href(queue, kind, status) {
  return `#/jobs?${new URLSearchParams({ ...(status && { status }), queue, kind })}`;
}

function cell(label, number, { href: target, loud, about } = {}) {
  const shown = `${about ? "≈ " : ""}${count(number)}`;
  return h("td", { role: "cell", "data-label": label, class: number === 0 ? "zero" : loud ? "bad" : "" },
    target && number ? link(target, shown) : shown);
}

const textCell = (label, text) => h("td", { role: "cell", "data-label": label, class: text === "–" ? "zero" : "" }, text);

function empty() {
  return h("div", { class: "empty" }, h("h2", null, "No jobs yet"),
    h("p", null, "The queue is empty. Push the first job with ", h("code", null, "pgqueue-ref push hello"), "; it shows up here within seconds."));
}
