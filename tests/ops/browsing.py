"""What tests in a browser share beside the fixtures. Set PGQUEUE_TEST_PICTURES to a directory for screenshots."""

from __future__ import annotations

import os
from pathlib import Path

from playwright.sync_api import Page

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1200, "height": 900}


def picture(page: Page, name: str) -> None:
    """A screenshot for whoever wants to look."""
    if directory := os.environ.get("PGQUEUE_TEST_PICTURES"):
        page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)
