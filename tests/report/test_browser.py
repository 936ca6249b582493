"""The report in headless Chromium: quiet, offline, complete, and no word outside its place at 1280 and 400 pixels.

Skips where there is no browser; with DPAP_REQUIRE_BROWSER=1 it fails instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, find_browser
from report_runs import KINDS, MadeUp, write_run

from dpap.report.compare import compare_runs
from dpap.report.compare_page import write_comparison
from dpap.report.page import write_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WIDTHS = (1280, 400)
PLOTS = ("accuracy", "loss", "connectivity", "learning-rate", "network", "rates", "silent", "energy", "speed")

# Everything that is wrong with the words of the page as it is laid out now, as a list of sentences. An HTML text must
# lie inside its block and the window, a text of a drawing inside the drawing and on no other text; every HTML text has
# a contrast of at least 4.5 to what is behind it.
FAULTS = r"""(() => {
  const faults = [], shown = e => e.checkVisibility();
  for (const d of document.querySelectorAll('details')) d.open = true;
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) faults.push(`page: ${root.scrollWidth} wide`);
  const rgb = text => text.match(/[\d.]+/g).map(Number);
  const light = c => {
    const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let words = 0;
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, said = node.data.trim().slice(0, 40);
    if (!said || e.closest('svg, script, style') || !shown(e)) continue;
    words++;
    let block = e;
    while (getComputedStyle(block).display.startsWith('inline')) block = block.parentElement;
    const box = block.getBoundingClientRect(), range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects()) {
      if (r.left < box.left - 1 || r.right > box.right + 1) faults.push(`outside its block: ${said}`);
      if (r.left < 0 || r.right > root.clientWidth) faults.push(`outside the window: ${said}`);
    }
    if (block.scrollWidth > block.clientWidth + 1) faults.push(`wider than its block: ${said}`);
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) faults.push(`faint, ${((a + .05) / (b + .05)).toFixed(2)}: ${said}`);
  }
  let labels = 0;
  for (const svg of document.querySelectorAll('svg')) {
    if (!shown(svg)) continue;
    const {width, height} = svg.viewBox.baseVal, placed = [];
    for (const text of svg.querySelectorAll('text')) {
      labels++;
      const b = text.getBBox(), said = `${svg.id}: ${text.textContent}`;
      if (b.x < -.5 || b.y < -.5 || b.x + b.width > width + .5 || b.y + b.height > height + .5)
        faults.push(`outside the drawing ${said}`);
      if (b.height * svg.getBoundingClientRect().width / width < 9) faults.push(`too small in ${said}`);
      for (const [o, other] of placed)
        if (b.x < o.x + o.width - 1 && o.x < b.x + b.width - 1 && b.y < o.y + o.height - 3 && o.y < b.y + b.height - 3)
          faults.push(`on ${other} in ${said}`);
      placed.push([b, text.textContent]);
    }
  }
  if (words < 20 || labels < 5) faults.push(`only ${words} words and ${labels} labels: nothing was checked`);
  return [...new Set(faults)];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None and os.environ.get("DPAP_REQUIRE_BROWSER") == "1":
        pytest.fail("DPAP_REQUIRE_BROWSER is 1 and there is no Chromium on the path")
    if program is None:
        pytest.skip("no Chromium on the path")
    with Browser(program, tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    pages = {name: write_report(write_run(folder / str(k), like)) for k, (name, like) in enumerate(KINDS.items())}
    pages["comparison"] = write_comparison(compare_runs(several_runs(folder / "several")), folder / "compare.html")
    return pages


def several_runs(folder: Path) -> list[Path]:
    """Three targets, two seeds each, every run with its control."""
    return [
        write_run(
            folder / f"{share}-{seed}",
            MadeUp(
                settings={"development.target.connectivity": str(share), "seed": str(seed)},
                accuracy=0.97 + 0.1 * share + 0.002 * seed,
            ),
        )
        for share in (0.02, 0.05, 0.1)
        for seed in (0, 1)
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", [*KINDS, "comparison"])
def test_quiet_offline_and_every_word_in_its_place(
    browser: Browser, reports: dict[str, Path], kind: str, width: int, dark: bool
) -> None:
    browser.open(reports[kind], width, dark=dark)
    assert browser.run("innerWidth") == width
    assert browser.run(FAULTS) == []
    assert browser.messages == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [reports[kind].as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_plots_are_there_and_seen(browser: Browser, reports: dict[str, Path], width: int) -> None:
    browser.open(reports["spiking"], width)
    for name in PLOTS:
        ending = "" if width == 1280 else "-narrow"
        size = browser.run(
            f"(b => [b.width, b.height])(document.getElementById('{name}{ending}').getBoundingClientRect())"
        )
        assert min(size) > 50, f"{name}: {size}"
    assert browser.run("document.querySelectorAll('#survival-maps img').length") == 3
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 1)")


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_of_time_is_seen(browser: Browser, reports: dict[str, Path], width: int) -> None:
    browser.open(reports["time"], width)
    sizes = browser.run(
        "Object.fromEntries(['#pair-maps img', '#rasters img', '.film img', '.step-bars', '.step-bars i'].map(s =>"
        " [s, [...document.querySelectorAll(s)].map(e => e.getBoundingClientRect()).map(b => [b.width, b.height])]))"
    )
    assert {name: len(found) for name, found in sizes.items()} == {
        "#pair-maps img": 3,
        "#rasters img": 3,
        ".film img": 30,
        ".step-bars": 3,
        ".step-bars i": 60,
    }
    for name in ("#pair-maps img", "#rasters img", ".film img", ".step-bars"):
        assert min(min(size) for size in sizes[name]) > 50, name
    assert min(width for width, _ in sizes[".step-bars i"]) > 3
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 1)")
    for name in ("anytime", "living-steps"):
        ending = "" if width == 1280 else "-narrow"
        assert browser.run(f"document.getElementById('{name}{ending}').getBoundingClientRect().height") > 50


def test_the_pointer_counts_time_steps(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["time"], 1280)
    x, y, width = browser.run(
        "(s => { s.scrollIntoView({block: 'center', behavior: 'instant'});"
        " const b = s.getBoundingClientRect(), k = b.width / s.viewBox.baseVal.width;"
        " return [b.left + 48 * k, b.top + b.height / 2, (s.dataset.right - 48) * k]; })"
        "(document.getElementById('anytime'))"
    )
    browser.move(x + width * 0.3, y)
    assert browser.run("document.querySelector('figure:has(#anytime) .at').textContent") == "time step 3"
    assert browser.run("document.querySelector('figure:has(#anytime) .value').textContent") == "88.50 %"


def test_a_small_screen_gets_the_small_drawings(browser: Browser, reports: dict[str, Path]) -> None:
    seen = {}
    for width in WIDTHS:
        browser.open(reports["spiking"], width)
        seen[width] = browser.run(
            "[...document.querySelectorAll('svg')].filter(s => s.checkVisibility()).map(s => s.id)"
        )
    assert len(seen[1280]) == len(seen[400]) == len(PLOTS)
    assert set(seen[400]) == {f"{name}-narrow" for name in seen[1280]}


def test_complete_without_its_script(browser: Browser, reports: dict[str, Path]) -> None:
    """The script shows values under the pointer; it adds nothing that is not on the page already."""
    browser.open(reports["spiking"], 1280, script=False)
    without = browser.run("document.body.innerText")
    browser.open(reports["spiking"], 1280)
    assert without == browser.run("document.body.innerText")


def test_the_pointer_reads_the_curves(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["spiking"], 1280)
    legend = "[...document.querySelectorAll('figure:has(#connectivity) .value')].map(v => v.textContent)"
    at_the_end = browser.run(legend)
    x, y, width, height = browser.run(
        "(s => { s.scrollIntoView({block: 'center', behavior: 'instant'});"
        " const b = s.getBoundingClientRect(), k = b.width / s.viewBox.baseVal.width;"
        " return [b.left + 48 * k, b.top, (s.dataset.right - 48) * k, b.height]; })"
        "(document.getElementById('connectivity'))"
    )
    browser.move(x + 1, y + height / 2)
    assert browser.run(legend)[0] == "100 %"
    browser.move(x + width * 0.301, y + height / 2)  # half-way through the window, 0.1 to 0.5
    assert browser.run(legend)[0] == "55.0 %"
    assert browser.run("document.querySelector('#connectivity .cross').style.opacity") == "1"
    browser.move(2, 2)
    assert browser.run(legend) == at_the_end


def test_dark_is_dark(browser: Browser, reports: dict[str, Path]) -> None:
    colours = []
    for dark in (False, True):
        browser.open(reports["spiking"], 1280, dark=dark)
        colours.append(browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))
    assert min(colours[0]) > 200
    assert max(colours[1]) < 60


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (
            "document.querySelector('h1').style.cssText = 'white-space:nowrap;width:40px'",
            "outside its block: digits-snn",
        ),
        ("document.querySelector('h2').style.marginLeft = '2000px'", "outside the window: Over the run"),
        ("document.querySelector('#loss text').setAttribute('x', -30)", "outside the drawing loss"),
        ("{ const [a, b] = document.querySelectorAll('#rates text'); a.setAttribute('x', 480) }", "in rates"),
        ("document.querySelector('.lead').style.color = '#ccc'", "faint"),
        ("document.querySelector('main').remove()", "nothing was checked"),
    ],
)
def test_the_check_sees_a_fault(browser: Browser, reports: dict[str, Path], harm: str, fault: str) -> None:
    browser.open(reports["spiking"], 1280)
    browser.run(harm)
    assert any(fault in found for found in browser.run(FAULTS)), browser.run(FAULTS)


@pytest.mark.parametrize(
    "harm",
    [
        "<script>console.log('injected')</script>",
        "<img src='https://example.org/x.png'>",
        "<link rel=stylesheet href='style.css'>",
    ],
)
def test_the_page_refuses_what_is_not_its_own_and_the_test_hears_it(
    browser: Browser, tmp_path: Path, harm: str
) -> None:
    path = write_report(write_run(tmp_path / "run", MadeUp()))
    path.write_text(path.read_text(encoding="utf-8").replace("</main>", f"{harm}</main>"), encoding="utf-8")
    browser.open(path, 1280)
    assert any("Content Security Policy" in message for message in browser.messages)
    assert not any("injected" in message for message in browser.messages if message.startswith("log"))
