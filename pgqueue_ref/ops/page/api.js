// Talking to the REST API: the token, one request at a time with a deadline, and what went wrong in words.

const TOKEN = "pgqueue.token";
const DEADLINE = 10_000; // milliseconds; a hung proxy must become an error
// Relative to the page, so that a proxy may serve both below a path of its own.
const BASE = new URL("api/v1/queue/", new URL(".", location.href.split("#")[0]));

/** sessionStorage alone: gone with the tab, never in a URL, a cookie or the disk's cache. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** status is 0 where no answer came; message is a sentence for people. */
export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    Object.assign(this, { status, code });
  }
}

export const api = {
  overview: (signal) => call("GET", "stats/overview", signal),
  history: (id, signal) => call("GET", `jobs/${encodeURIComponent(id)}/history`, signal),
  jobs: (filters, signal) => {
    const given = Object.entries(filters).filter(([, value]) => value);
    return call("GET", `jobs?${new URLSearchParams(given)}`, signal);
  },
  retry: (id) => call("POST", `jobs/${encodeURIComponent(id)}/retry`),
  cancel: (id) => call("POST", `jobs/${encodeURIComponent(id)}/cancel`),
  pause: (queue) => call("POST", `queues/${encodeURIComponent(queue)}/pause`),
  resume: (queue) => call("POST", `queues/${encodeURIComponent(queue)}/resume`),
};

async function call(method, path, signal) {
  const deadline = AbortSignal.timeout(DEADLINE);
  const headers = { Accept: "application/json" };
  if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
  let response, text;
  try {
    response = await fetch(new URL(path, BASE), {
      method, headers, cache: "no-store", credentials: "same-origin", redirect: "error",
      signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error; // the reader went elsewhere: not a failure
    throw new ApiError(0, deadline.aborted ? `no answer within ${DEADLINE / 1000} s` : "no connection");
  }
  if (!response.ok) throw problem(response.status, text);
  try {
    return { body: JSON.parse(text, exactly), date: response.headers.get("Date") };
  } catch {
    throw new ApiError(response.status, "the answer is not JSON; is something else at this address?");
  }
}

/** Whole numbers that a double cannot hold keep their digits, where the browser can (JSON.rawJSON). */
function exactly(key, value, context) {
  const unsafe = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return unsafe && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

function problem(status, text) {
  let document = {};
  try {
    document = JSON.parse(text) ?? {};
  } catch {
    // a proxy's own page: its status says enough
  }
  // Below 500 the detail is about this request; above, the title says what is wrong and the detail what to do.
  const words = (status < 500 ? [document.detail || document.title] : [document.title, document.detail]).filter(Boolean);
  return new ApiError(status, words.join(": ") || `it answered ${status}`, document.code);
}
