"""Opens report pages in headless Chromium at desktop and phone width: accessibility by axe, no
overflow, no empty figure.

    python tests/pages/check_pages.py [PAGE.html …]        default: docs/examples/*.html

`make check-pages` runs it. It needs Chromium and npm (for axe-core, kept in `.pages/`); the pages
themselves need nothing.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
AXE = "axe-core@4.10.3"
WIDTHS = {"desktop": 1280, "phone": 390}
PROBE = """
addEventListener("load", async () => {
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const wide = [...document.querySelectorAll("body *")].filter(one =>
    !one.closest(".scroll, svg") && one.getBoundingClientRect().right > innerWidth + 1)
    .map(one => one.tagName + " " + one.textContent.slice(0, 40));
  const empty = [...document.querySelectorAll("svg")]
    .filter(one => !one.querySelector("circle, rect, polygon, polyline")).length;
  const outside = [...document.querySelectorAll("svg text")].filter(one => {
    const box = one.getBoundingClientRect(), frame = one.ownerSVGElement.getBoundingClientRect();
    return box.left < frame.left - 2 || box.right > frame.right + 2;
  }).map(one => one.textContent);
  parent.postMessage({
    violations: found.violations.map(one => one.id + ": " + one.help + " (" + one.nodes.length
      + ") " + one.nodes[0].html.slice(0, 120)),
    overflow: wide.slice(0, 5), empty, outside: outside.slice(0, 5),
    figures: document.querySelectorAll("svg").length,
  }, "*");
});
"""


def axe_source() -> str:
    """The text of axe-core, from npm, once."""
    path = ROOT / ".pages" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        subprocess.run(
            [
                "npm",
                "install",
                "--silent",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(ROOT / ".pages"),
                AXE,
            ],
            check=True,
        )
    return path.read_text(encoding="utf-8")


def check(page: Path, width: int, chromium: str, axe: str) -> dict:
    """What the probe found on the page, shown in a frame of that width (a window cannot be as
    narrow as a phone)."""
    text = page.read_text(encoding="utf-8").replace(
        "</head>", f"<script>{axe}</script><script>{PROBE}</script></head>"
    )
    shell = (
        '<!doctype html><meta charset="utf-8"><pre id="out"></pre><script>'
        'addEventListener("message", event => { if (event.data.violations) '
        'document.getElementById("out").textContent = JSON.stringify(event.data); });'
        f'</script><iframe width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>'
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shell.html"
        file.write_text(shell, encoding="utf-8")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
        ]
        flags += [
            "--no-first-run",
            "--disable-sync",
            f"--user-data-dir={folder}/profile",
            "--virtual-time-budget=60000",
            "--dump-dom",
            f"file://{file}",
        ]
        done = subprocess.run(
            [chromium, *flags], capture_output=True, text=True, check=True, timeout=180
        )
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', done.stdout, re.S)
    assert found, f"{page} at {width}: the page told nothing:\n{done.stderr[-500:]}"
    return json.loads(html.unescape(found.group(1)))


def main() -> int:
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None or shutil.which("npm") is None:
        print("check-pages needs Chromium and npm", file=sys.stderr)
        return 2
    pages = [Path(one) for one in sys.argv[1:]] or sorted(
        (ROOT / "docs" / "examples").glob("*.html")
    )
    axe, faults = axe_source(), 0
    for page in pages:
        for name, width in WIDTHS.items():
            found = check(page, width, chromium, axe)
            problems = [
                *found["violations"],
                *(f"wider than the page: {one}" for one in found["overflow"]),
            ]
            problems += [f"text outside its figure: {one}" for one in found["outside"]] + (
                [f"{found['empty']} empty figures"] if found["empty"] else []
            )
            print(
                f"{page.name} at {width} px ({name}): {found['figures']} figures, {len(problems)} "
                "problems"
            )
            for problem in problems:
                print(f"  {problem}")
            faults += len(problems)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
