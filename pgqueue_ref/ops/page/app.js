// Which view is shown, when it is refreshed, and what the buttons do. Called by index.html.

import { api, token } from "./api.js";
import { clock, h, render, setClock } from "./dom.js";
import { details, list, missing } from "./jobs.js";
import { overview } from "./overview.js";

const EVERY = 5000; // milliseconds between refreshes
const AT_MOST = 30_000; // between tries while the API cannot be reached
const STALE = 20_000; // older than that, data are called stale, whatever the reason

const byId = (id) => document.getElementById(id);
const main = byId("main");

let timer, request;
let failures = 0; // in a row
let freshAt = null; // when the view shown was answered
let shown = ""; // the address whose data `main` holds

// -- views ---------------------------------------------------------------------------------------------------

/** The address' view: how to load it, how to draw it, its title. */
function view() {
  const [path, query = ""] = (location.hash || "#/").slice(1).split(/\?(.*)/s);
  const filters = {};
  for (const key of ["status", "queue", "kind", "key", "cursor"]) {
    const value = new URLSearchParams(query).get(key);
    if (value) filters[key] = value;
  }
  const job = /^\/jobs\/(\d+)$/.exec(path);
  if (job) {
    return { load: (signal) => api.history(job[1], signal), draw: details, title: `Job ${job[1]}`, lacking: () => missing(job[1]), nav: "#/jobs" };
  }
  if (path === "/jobs" || path === "/failed") {
    const isFailed = path === "/failed";
    const wanted = isFailed ? { ...filters, status: "failed" } : filters;
    return { load: (signal) => api.jobs({ ...wanted, limit: 50 }, signal), draw: (data) => list(data, wanted, location.hash, isFailed),
      title: isFailed ? "Failed jobs" : "Jobs", nav: `#${path}` };
  }
  return { load: (signal) => api.overview(signal), draw: overview, title: "Overview", nav: "#/" };
}

/** Load and draw the current view; a newer call supersedes an older one. */
async function refresh({ arrived = false } = {}) {
  clearTimeout(timer);
  request?.abort();
  const own = (request = new AbortController());
  const address = location.hash;
  const current = view();
  try {
    const { body, date } = await current.load(own.signal);
    if (own.signal.aborted) return;
    setClock(date);
    render(main, current.draw(body));
    succeeded(address);
  } catch (error) {
    if (own.signal.aborted) return;
    failed(error, current, address);
  }
  if (arrived) arrive(current);
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (document.hidden || !byId("live").checked || byId("token")) return;
  timer = setTimeout(refresh, Math.min(EVERY * 2 ** Math.min(failures, 8), AT_MOST));
}

/** After a change of view: title, place in the menu, and focus on the heading, where a screen reader goes on. */
function arrive(current) {
  document.title = `${current.title} · pgqueue`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === current.nav) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const heading = main.querySelector("h1");
  if (heading && !main.querySelector("#token")) {
    heading.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

function succeeded(address) {
  if (failures) say("The API answers again.");
  failures = 0;
  freshAt = new Date();
  shown = address;
  render(byId("trouble"));
  byId("forget").hidden = !token.get();
  showAge();
}

/** A refresh that failed: what was shown stays, marked as old; a view without data says so instead. */
function failed(error, current, address) {
  if (error.status === 401) return askForToken();
  if (error.status === 404 && current.lacking) {
    render(main, current.lacking());
    return succeeded(address);
  }
  if (error.status === undefined) console.error(error);
  failures += 1;
  if (shown !== address) {
    shown = "";
    freshAt = null;
    render(main, h("h1", { tabindex: "-1" }, current.title), h("p", { class: "empty" }, "There is nothing to show yet."));
  }
  const title = error.status === undefined ? "This page has a fault" : error.status === 0 ? "Cannot reach the API"
    : error.status < 500 ? "The API refuses" : "The API answers, but cannot look at the queue";
  const since = freshAt ? ` What you see is from ${clock(freshAt)}.` : "";
  render(byId("trouble"), h("div", { class: "trouble" }, h("p", null, h("b", null, title), ": ", sentence(error.message), since),
    h("button", { type: "button", class: "small", "data-action": "refresh" }, "Try again")));
  showAge();
  return undefined;
}

/** How old the data are. Runs each second, on its own, so that it tells the truth after a sleep of the machine too. */
function showAge() {
  if (byId("token")) return; // nothing is shown or loaded
  const isStale = freshAt != null && (failures > 0 || Date.now() - freshAt > STALE);
  document.body.classList.toggle("stale", isStale);
  const paused = !byId("live").checked;
  const text = freshAt == null ? (failures ? "no data" : "loading…") : `${isStale ? "stale: " : paused ? "frozen, " : ""}as of ${clock(freshAt)}`;
  if (byId("freshness").textContent !== text) byId("freshness").textContent = text;
}

// -- the token -----------------------------------------------------------------------------------------------

function askForToken() {
  const refused = token.get() !== "";
  token.forget();
  clearTimeout(timer);
  failures = 0;
  shown = "";
  freshAt = null;
  byId("forget").hidden = true;
  document.body.classList.remove("stale");
  byId("freshness").textContent = "signed out";
  render(byId("trouble"));
  const help = refused ? "The API does not know that token. Check that it is whole, or ask for a new one." : "It stays in this tab and is gone when you close it.";
  render(main, h("form", { class: "token", "data-form": "token" },
    h("h1", null, "A token, please"),
    h("p", null, "The queue's API asks for one. Whoever runs it has given you a token that may read, or read and write."),
    h("label", { for: "token" }, "API token"),
    h("input", { id: "token", type: "password", required: true, autocomplete: "off", spellcheck: "false",
      "aria-describedby": "token-help", "aria-invalid": refused ? "true" : null }),
    h("p", { id: "token-help", class: refused ? "bad" : "faint", role: refused ? "alert" : null }, help),
    h("button", { type: "submit", class: "primary" }, "Open")));
  document.title = "Token · pgqueue";
  byId("token").focus();
}

// -- what the buttons do ---------------------------------------------------------------------------------------

const PAST = { retry: "is pending again", cancel: "is cancelled", pause: "is paused", resume: "runs again" };

/** Send one action and tell how it went; the button does nothing while its request is under way. */
async function act(button, action) {
  if (button.getAttribute("aria-disabled") === "true") return;
  const { id, queue } = button.dataset;
  const subject = id ? `Job ${id}` : `Queue ${queue}`;
  if (!(await isConfirmed(button, action, subject))) return;
  button.setAttribute("aria-disabled", "true");
  try {
    await api[action](id ?? queue);
    say(`${subject} ${PAST[action]}.`);
  } catch (error) {
    if (error.status === 401) return askForToken();
    const verb = action[0].toUpperCase() + action.slice(1);
    if (error.code === "read_only_token") say(`This token may only read: ${verb.toLowerCase()} was refused. Sign out and use a token that may write.`, true);
    else if (error.status === 0) say(`${verb} may not have arrived: ${sentence(error.message)} Look at ${subject} before you try again.`, true);
    else say(`${verb} was refused: ${sentence(error.message)}`, true);
  } finally {
    button.removeAttribute("aria-disabled");
  }
  const hadFocus = document.activeElement === button;
  const following = button.closest("li")?.nextElementSibling?.querySelector("button");
  await refresh();
  // The button may be gone with what it did; a keyboard must not fall back to the top of the page.
  if (hadFocus && !button.isConnected) (following?.isConnected ? following : main.querySelector("h1") ?? main).focus();
  return undefined;
}

function isConfirmed(button, action, subject) {
  const { kind, status } = button.dataset;
  if (action === "cancel") {
    return ask(`Cancel ${subject.toLowerCase()} (${kind})?`, status === "running"
      ? "It is running: its worker is told at the next heartbeat, and what it has done so far stays done. You can retry it later."
      : "It will not run. You can retry it later.", "Cancel the job");
  }
  if (action === "pause") return ask(`Pause ${subject.toLowerCase()}?`, "No worker takes a job from it until it is resumed. What runs now goes on; pushes are still accepted.", "Pause it");
  return true;
}

/** A modal question of our own: window.confirm freezes the tab, can be switched off by the browser, and says OK and Cancel. */
function ask(question, consequence, yes) {
  const dialog = byId("confirm");
  byId("confirm-question").textContent = question;
  byId("confirm-consequence").textContent = consequence;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

/** One sentence for eyes and screen readers. It stays until the next one: nobody is hurried. */
function say(words, isBad = false) {
  const box = byId("outcome");
  box.replaceChildren(); // the same sentence twice is two announcements
  box.append(h("p", { class: isBad ? "outcome bad" : "outcome" }, words,
    h("button", { type: "button", class: "small", "data-action": "dismiss", "aria-label": "Dismiss this message" }, "Dismiss")));
}

// -- events ----------------------------------------------------------------------------------------------------

/** A hidden tab asks for nothing; a frozen view stays as it is, and so does a token that is being typed. */
function comeBack() {
  if (document.hidden) clearTimeout(timer);
  else if (byId("live").checked && !byId("token")) refresh();
}

document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-action], .skip");
  if (!target) return;
  if (target.classList.contains("skip")) {
    event.preventDefault(); // the address' fragment belongs to the views
    main.focus();
    return;
  }
  const { action } = target.dataset;
  if (action === "refresh") refresh();
  else if (action === "dismiss") byId("outcome").replaceChildren();
  else if (action === "forget") {
    token.forget();
    refresh();
  } else act(target, action);
});

document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  if (form.dataset.form === "token") {
    token.set(byId("token").value.trim());
    render(main, h("p", { class: "empty" }, "Opening…"));
    refresh({ arrived: true });
  } else if (form.dataset.form === "filter") {
    const given = [...new FormData(form)].map(([key, value]) => [key, value.trim()]).filter(([, value]) => value);
    const query = new URLSearchParams(given).toString();
    location.hash = form.dataset.base + (query ? `?${query}` : "");
  }
});

byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
byId("confirm-no").addEventListener("click", () => byId("confirm").close(""));
byId("live").addEventListener("change", () => {
  showAge();
  if (byId("live").checked) refresh();
  else schedule();
});
document.addEventListener("visibilitychange", comeBack);
addEventListener("online", comeBack);
addEventListener("hashchange", () => {
  byId("outcome").replaceChildren();
  refresh({ arrived: true });
});
setInterval(showAge, 1000);
refresh({ arrived: true });
