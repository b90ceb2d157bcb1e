"""Opens report pages in headless Chromium at desktop and phone width, light and dark: accessibility
by axe, no overflow, no empty figure, every text of a figure readable (size, contrast), one colour a
method, and a file for each figure; folded, a page is no longer than a reader scrolls.

    python tests/pages/check_pages.py [PAGE.html …]        default: the example and benchmark pages

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
TALLEST = 12_000  # px, folded, on a desktop
SMALLEST = 11  # px of a figure's text, as drawn
CONTRAST = 4.5
PROBE = """
const linear = part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4;
const rgb = text => (text.match(/[0-9.]+/g) || []).slice(0, 3).map(Number);
const luminance = colour => {
  const [red, green, blue] = rgb(colour).map(part => linear(part / 255));
  return .2126 * red + .7152 * green + .0722 * blue;
};
const contrast = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + .05) / (low + .05);
};
const inside = (box, other) => {
  const x = box.left + box.width / 2, y = box.top + box.height / 2;
  return x > other.left && x < other.right && y > other.top && y < other.bottom;
};
const ground = text => {
  const box = text.getBoundingClientRect();
  const squares = [...text.ownerSVGElement.querySelectorAll("rect")].filter(rect =>
    !rect.classList.contains("band") && inside(box, rect.getBoundingClientRect()));
  if (squares.length) return getComputedStyle(squares.at(-1)).fill;
  let node = text.ownerSVGElement;
  while (node && getComputedStyle(node).backgroundColor === "rgba(0, 0, 0, 0)")
    node = node.parentElement;
  return node ? getComputedStyle(node).backgroundColor : "rgb(255, 255, 255)";
};
addEventListener("load", async () => {
  const folded = document.documentElement.scrollHeight;
  document.querySelectorAll("details").forEach(one => one.open = true);
  await new Promise(done => setTimeout(done, 50));
  const found = await axe.run(document, {resultTypes: ["violations"]});
  const wide = [...document.querySelectorAll("body *")].filter(one =>
    !one.closest(".scroll, svg, pre") && one.getBoundingClientRect().right > innerWidth + 1)
    .map(one => one.tagName + " " + one.textContent.slice(0, 40));
  const cards = [...document.querySelectorAll(".cards")].filter(one =>
    one.scrollWidth > one.clientWidth + 1).map(one => one.getAttribute("aria-label"));
  const empty = [...document.querySelectorAll("svg")]
    .filter(one => !one.querySelector("circle, rect, polygon, polyline")).length;
  const texts = [...document.querySelectorAll("svg text")];
  const outside = texts.filter(one => {
    const box = one.getBoundingClientRect(), frame = one.ownerSVGElement.getBoundingClientRect();
    return box.left < frame.left - 2 || box.right > frame.right + 2;
  }).map(one => one.textContent);
  const small = texts.filter(one => {
    const scale = one.ownerSVGElement.getBoundingClientRect().width
      / one.ownerSVGElement.viewBox.baseVal.width;
    return parseFloat(getComputedStyle(one).fontSize) * scale < SMALLEST;
  }).map(one => one.textContent);
  const pale = texts.filter(one =>
    contrast(getComputedStyle(one).fill, ground(one)) < CONTRAST).map(one => one.textContent);
  const looks = {};
  for (const one of document.querySelectorAll("[data-method]"))
    (looks[one.dataset.method] ??= new Set()).add(one.dataset.colour);
  const colours = Object.entries(looks).filter(([, own]) => own.size > 1).map(([name]) => name);
  const used = Object.values(looks).map(own => [...own][0]);
  if (used.length <= 8 && new Set(used).size < used.length) colours.push("two of one colour");
  parent.postMessage({
    violations: found.violations.map(one => one.id + ": " + one.help + " (" + one.nodes.length
      + ") " + one.nodes[0].html.slice(0, 120)),
    overflow: wide.slice(0, 5), cards, empty, outside: outside.slice(0, 5),
    small: small.slice(0, 5), pale: pale.slice(0, 5), colours, folded,
    figures: document.querySelectorAll("svg").length,
  }, "*");
});
""".replace("SMALLEST", str(SMALLEST)).replace("CONTRAST", str(CONTRAST))


def axe_source() -> str:
    """The text of axe-core, from npm, once."""
    path = ROOT / ".pages" / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        folder = str(ROOT / ".pages")
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, AXE]
        subprocess.run(install, check=True)
    return path.read_text(encoding="utf-8")


def check(page: Path, width: int, *, dark: bool, chromium: str, axe: str) -> dict:
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
            "--no-first-run",
            "--disable-sync",
            f"--user-data-dir={folder}/profile",
            "--virtual-time-budget=60000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--dump-dom",
            f"file://{file}",
        ]
        done = subprocess.run(
            [chromium, *flags], capture_output=True, text=True, check=True, timeout=180
        )
    found = re.search(r'<pre id="out">(\{.*?\})</pre>', done.stdout, re.S)
    assert found, f"{page} at {width}: the page told nothing:\n{done.stderr[-500:]}"
    return json.loads(html.unescape(found.group(1)))


def problems_of(found: dict, width: int) -> list[str]:
    """Each thing that is wrong, in a line."""
    problems = list(found["violations"])
    for key, said in (
        ("overflow", "wider than the page"),
        ("cards", "a main table is not whole"),
        ("outside", "text outside its figure"),
        ("small", f"text of a figure under {SMALLEST} px"),
        ("pale", f"text of a figure below {CONTRAST} : 1"),
        ("colours", "a method in two colours, or two in one"),
    ):
        problems += [f"{said}: {one}" for one in found[key]]
    if found["empty"]:
        problems.append(f"{found['empty']} empty figures")
    if width == WIDTHS["desktop"] and found["folded"] > TALLEST:
        problems.append(f"{found['folded']} px tall while folded")
    return problems


def missing_files(page: Path) -> list[str]:
    """Figures of a page whose file is not beside it (where the report's figures are kept)."""
    folder = page.parent / "figures"
    names = re.findall(r'data-figure="([^"]+)"', page.read_text(encoding="utf-8"))
    if not folder.is_dir():
        return []
    return [f"no file of figure {name}" for name in names if not (folder / f"{name}.svg").is_file()]


def main() -> int:
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if chromium is None or shutil.which("npm") is None:
        print("check-pages needs Chromium and npm", file=sys.stderr)
        return 2
    kept = (*ROOT.glob("docs/examples/*.html"), *ROOT.glob("benchmarks/p*/h100_*/*.html"))
    pages = [Path(one) for one in sys.argv[1:]] or sorted(kept)
    axe, faults = axe_source(), 0
    for page in pages:
        lost = missing_files(page)
        for name, width in WIDTHS.items():
            for dark in (False, True):
                found = check(page, width, dark=dark, chromium=chromium, axe=axe)
                problems = [*lost, *problems_of(found, width)]
                how = f"{page.name} at {width} px ({name}, {'dark' if dark else 'light'})"
                size = f"{found['figures']} figures, {found['folded']:,} px folded"
                print(f"{how}: {size}, {len(problems)} problems")
                for problem in problems:
                    print(f"  {problem}")
                faults += len(problems)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
