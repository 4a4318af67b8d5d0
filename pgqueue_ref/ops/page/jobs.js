// The list of jobs with its filters, and one job with its timeline.

import { duration, h, moment, name, now } from "./dom.js";

const STATUSES = ["pending", "blocked", "running", "succeeded", "failed", "cancelled"];
const RETRYABLE = ["failed", "cancelled"];
const CANCELLABLE = ["pending", "blocked", "running"];

const EXPECTED = ["due", "lease ends", "expires", "deleted"]; // moments of a timeline that may lie ahead

const badge = (status) => h("span", { class: `badge ${STATUSES.includes(status) ? status : ""}` }, status);
const attempts = (job) => (job.max_attempts == null ? `${job.attempt}` : `${job.attempt} of ${job.max_attempts}`);

function button(action, job, label, kind = "") {
  return h("button", { type: "button", class: kind, "data-key": `${action} ${job.id}`, "data-action": action, "data-id": job.id, "data-kind": job.kind,
    "data-status": job.status, "aria-label": `${label} job ${job.id}` }, label);
}

// -- the list ------------------------------------------------------------------------------------------------

/** `data` is the API's page of jobs; `filters` what the address asks for; `route` tells one list's form from another's. */
export function list(data, filters, route, isFailed) {
  const { jobs, next } = data;
  return [
    h("h1", { tabindex: "-1" }, isFailed ? "Failed jobs" : "Jobs"),
    isFailed && h("p", { class: "lead" }, "The last failure first. No attempts left: these stay until somebody retries or purges them."),
    filterForm(filters, route, isFailed),
    jobs.length ? h("ul", { class: "jobs" }, jobs.map((job) => item(job, isFailed))) : nothing(filters, isFailed),
    h("p", { class: "pages" },
      filters.cursor && h("a", { href: address(filters, null, isFailed) }, "Newest"),
      next && h("a", { href: address(filters, next, isFailed) }, "Older"),
    ),
  ];
}

function address(filters, cursor, isFailed) {
  const { status, ...others } = filters;
  const given = Object.entries({ ...(isFailed ? others : filters), cursor }).filter(([, value]) => value);
  const query = new URLSearchParams(given).toString();
  return `${isFailed ? "#/failed" : "#/jobs"}${query ? `?${query}` : ""}`;
}

function filterForm(filters, route, isFailed) {
  const field = (label, attribute) => h("label", null, label,
    h("input", { name: attribute, value: filters[attribute] ?? "", autocomplete: "off", autocapitalize: "off", spellcheck: "false" }));
  const choice = h("label", null, "status", h("select", { name: "status" },
    ["", ...STATUSES].map((status) => h("option", { value: status, selected: status === (filters.status ?? "") }, status || "any"))));
  return h("form", { class: "filters", role: "search", "aria-label": "Filter jobs", "data-key": `filters ${route}`,
    "data-form": "filter", "data-base": isFailed ? "#/failed" : "#/jobs" },
  !isFailed && choice, field("queue", "queue"), field("kind", "kind"), field("key", "key"), h("button", { type: "submit" }, "Show"));
}

function nothing(filters, isFailed) {
  const narrowed = Object.entries(filters).some(([key, value]) => value && !(isFailed && key === "status"));
  return h("p", { class: "empty" }, narrowed ? "No job matches." : isFailed ? "No failed jobs." : "No jobs yet.");
}

function item(job, isFailed) {
  const error = job.errors.at(-1);
  return h("li", { "data-key": `job ${job.id}` },
    h("div", { class: "what" },
      h("a", { href: `#/jobs/${job.id}` }, h("span", { class: "id" }, `#${job.id}`), " ", name(job.kind)),
      !isFailed && badge(job.status),
      h("span", { class: "faint" }, name(job.queue), job.key == null ? "" : [" · key ", name(job.key)],
        ` · attempt ${attempts(job)} · `, moment(job.finished_at ?? job.started_at ?? job.created_at, { short: true })),
    ),
    error != null && h("p", { class: "error clipped", dir: "auto" }, error),
    isFailed && button("retry", job, "Retry", "small"),
  );
}

// -- one job -------------------------------------------------------------------------------------------------

/** `history` is the API's: the job, its timeline, and what else is known of it. */
export function details(history) {
  const { job, timeline, traceback, result } = history;
  return [
    h("div", { class: "title" }, h("h1", { tabindex: "-1" }, `Job ${job.id} `, name(job.kind)), badge(job.status)),
    h("div", { class: "actions" },
      RETRYABLE.includes(job.status) && button("retry", job, "Retry", "primary"),
      CANCELLABLE.includes(job.status) && button("cancel", job, "Cancel", "danger"),
    ),
    waitsFor(history.waits_for),
    h("h2", null, "Timeline"),
    h("ol", { class: "timeline" }, timeline.map(step)),
    errors(job),
    traceback && text("Traceback", traceback.text, `of attempt ${traceback.attempt}`),
    result && json("Result", result.value),
    json("Payload", job.payload),
    h("h2", null, "Particulars"),
    h("dl", { class: "facts" }, facts(job)),
    Object.keys(job.metadata ?? {}).length > 0 && json("Metadata", job.metadata),
  ];
}

/** One moment of the timeline; a hollow dot is still to come. Whatever the clocks say, what happened has happened. */
function step({ at, event, detail }) {
  const toCome = EXPECTED.includes(event) && Date.parse(at) > now();
  return h("li", { class: toCome ? "open" : event }, h("b", null, event[0].toUpperCase() + event.slice(1)), " ", moment(at),
    detail && h("p", { dir: "auto" }, detail));
}

const json = (title, value) => text(title, JSON.stringify(value, null, 2));

function text(title, content, note) {
  return [h("h2", null, title, note && h("small", { class: "faint" }, ` ${note}`)),
    h("pre", { tabindex: "0", role: "group", "aria-label": title, dir: "auto" }, content)];
}

function waitsFor(parents) {
  if (!parents.length) return null;
  return [h("h2", null, "Waits for"), h("ul", { class: "parents" }, parents.map((parent) =>
    h("li", null, h("a", { href: `#/jobs/${parent.id}` }, `#${parent.id} `, parent.kind && name(parent.kind)), " ",
      parent.status ? badge(parent.status) : h("span", { class: "faint" }, "is gone"))))];
}

function errors(job) {
  if (!job.errors.length) return null;
  return [
    h("h2", null, job.errors.length === 1 ? "Error" : `Errors, newest first`),
    h("ol", { class: "errors", reversed: true }, [...job.errors].reverse().map((error) =>
      h("li", null, h("pre", { class: "error", tabindex: "0", role: "group", "aria-label": "Error", dir: "auto" }, error)))),
  ];
}

function facts(job) {
  const rows = [
    ["queue", name(job.queue)], ["kind", name(job.kind)], ["key", job.key == null ? "none" : name(job.key)],
    ["priority", job.priority], ["attempts", attempts(job)],
    ["worker", job.worker == null ? "none" : name(job.worker)],
    ["expires", job.expires_at ? moment(job.expires_at) : "never"],
    job.started_at && job.finished_at && ["took", duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000)],
  ];
  return rows.filter(Boolean).map(([term, value]) => h("div", null, h("dt", null, term), h("dd", null, value)));
}

export function missing(id) {
  return [h("h1", { tabindex: "-1" }, `No job ${id}`), h("p", { class: "empty" },
    "There is no such job, or it was deleted some time after it ended. ", h("a", { href: "#/jobs" }, "See the newest jobs"), ".")];
}
