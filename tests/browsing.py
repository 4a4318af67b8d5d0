"""Opens pages in a real Chromium and looks at them as a person would: structure, contrast, and whether anything is cut.

Set PGQUEUE_TEST_PICTURES to a directory for screenshots.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1200, "height": 900}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium; skips the test where none is installed."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium (Debian's package)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def looks(page: Page, name: str) -> list[str]:
    """What is wrong with a page's looks, on a phone and on a desk, in either theme; leaves pictures under `name`."""
    faults = []
    for size, label in ((PHONE, "phone"), (DESK, "desk")):
        page.set_viewport_size(size)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            faults += [f"{name}, {label}, {scheme}: {fault}" for fault in page.evaluate(LOOKS)]
            picture(page, f"{name}-{label}-{scheme}")
    return faults


def picture(page: Page, name: str) -> None:
    """A screenshot for whoever wants to look."""
    if directory := os.environ.get("PGQUEUE_TEST_PICTURES"):
        page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


# What assistive technology needs of every view: one main heading and no level left out, a name for each control and
# table, one main, a language.
STRUCTURE = r"""() => {
  const faults = [];
  const levels = [...document.querySelectorAll("main h1, main h2, main h3")].map((h) => Number(h.tagName[1]));
  if (levels.filter((level) => level === 1).length !== 1 || levels[0] !== 1) faults.push(`headings ${levels}`);
  levels.forEach((level, i) => i && level > levels[i - 1] + 1 && faults.push(`heading ${levels[i - 1]} then ${level}`));
  const controls = "main :is(button, input, select, a[href]), header :is(button, input, a[href])";
  for (const control of document.querySelectorAll(controls)) {
    const label = control.getAttribute("aria-label") || control.labels?.[0]?.textContent || control.textContent;
    if (!label.trim()) faults.push(`no name: ${control.outerHTML}`);
  }
  for (const table of document.querySelectorAll("table")) if (!table.caption) faults.push("a table without caption");
  if (document.querySelectorAll("main").length !== 1 || !document.documentElement.lang) faults.push("landmarks");
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  if (new Set(ids).size !== ids.length) faults.push("ids twice");
  return faults;
}"""

# Nothing is wider than the page but inside a box that scrolls or is there for screen readers alone (a pixel wide); the
# contrast of text (WCAG 2.2, 1.4.3: 4.5), computed for what is painted flat; no label of a plot is cut by its edge or
# lies on another.
LOOKS = r"""() => {
  const faults = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) faults.push(`${document.documentElement.scrollWidth} px wide`);
  const scrolls = (element) => {
    for (let one = element.parentElement; one; one = one.parentElement) {
      const { overflowX } = getComputedStyle(one);
      if (/auto|scroll/.test(overflowX) || overflowX === "hidden" && one.clientWidth <= 1) return true;
    }
    return false;
  };
  const light = (colour) => {
    const linear = (c) => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = colour.match(/[\d.]+/g).map((part) => linear(part / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/, 0\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  for (const element of document.querySelectorAll("main *, header *")) {
    const { right } = element.getBoundingClientRect();
    if (right > width + 1 && !scrolls(element)) faults.push(`beyond the edge: ${element.outerHTML.slice(0, 60)}`);
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(element.ownerSVGElement ? style.fill : style.color), light(ground(element))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(1)}: ${element.textContent.slice(0, 40)}`);
  }
  for (const plot of document.querySelectorAll("svg")) {
    const edge = plot.getBoundingClientRect();
    const labels = [...plot.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    labels.forEach(([text, box], i) => {
      const out = [edge.left - box.left, box.right - edge.right, edge.top - box.top, box.bottom - edge.bottom];
      if (Math.max(...out) > 1) faults.push(`cut: ${text}`);
      for (const [other, its] of labels.slice(i + 1)) {
        const across = Math.min(box.right, its.right) - Math.max(box.left, its.left);
        // Boxes are taller than their digits: a quarter of each may overlap.
        const down = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
        if (across > 1 && down > box.height / 2) faults.push(`${text} lies on ${other}`);
      }
    });
  }
  return faults;
}"""
