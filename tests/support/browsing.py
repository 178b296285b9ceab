"""What the tests of the page do with a browser."""

from __future__ import annotations

from typing import Any


def look(browser: Any, width: int, scheme: str) -> None:
    """Width in pixels, and `light` or `dark`."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
