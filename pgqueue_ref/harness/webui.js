// Shows /queue in Locust's tab of that name, and in /queue itself fetches it anew. See webui.py.

const EVERY = 2000; // milliseconds, as Locust's own tables

// In Locust's page: React owns what is there, so the frame goes behind it and comes and goes with the tab.
function follow() {
  const frame = document.createElement("iframe");
  frame.title = "The queue, drawn";
  frame.style.cssText = "border: 0; display: block; width: 100%; min-height: 60vh";
  setInterval(() => {
    const main = document.querySelector("main");
    const tab = main?.querySelector('[role="tab"][aria-selected="true"]');
    if (tab?.textContent.trim().toLowerCase() !== "queue") return frame.remove();
    if (frame.parentNode !== main) {
      frame.src = "./queue";
      main.append(frame);
    }
    const inner = frame.contentDocument;
    if (!inner?.body) return;
    const ground = getComputedStyle(document.body).backgroundColor.match(/\d+/g);
    inner.documentElement.style.colorScheme = ground[0] < 128 ? "dark" : "light";
    frame.style.height = `${inner.body.offsetHeight}px`;
  }, 250);
}

async function renew() {
  try {
    const response = await fetch(location.href);
    const next = new DOMParser().parseFromString(await response.text(), "text/html");
    if (response.ok) document.querySelector("main").replaceChildren(...next.querySelector("main").childNodes);
  } catch {
    // Locust has ended, or does not answer just now: what is shown stays.
  }
  setTimeout(renew, EVERY);
}

if (window.templateArgs) follow();
else {
  document.body.classList.toggle("framed", window !== window.parent); // there Locust's table has the figures
  setTimeout(renew, EVERY);
}
