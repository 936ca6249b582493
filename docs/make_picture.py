"""The picture of the README: a network before and after pruning. `python docs/make_picture.py RUN`"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dpap.report.files import read_run
from dpap.report.network_figure import network
from dpap.report.svg import percent, share_of

TARGET = Path(__file__).parent / "figures" / "before-after.svg"
STYLE = """
:root{--ink:#1d2326;--soft:#5d676c;--run:#0c7a70;--gone:#dcd8cc;--page:#faf9f6}
@media(prefers-color-scheme:dark){:root{--ink:#e7e8e4;--soft:#9ea7aa;--run:#4fbfae;--gone:#3a4248;--page:#121517}}
text{font:13px system-ui,sans-serif;fill:var(--ink)}
.tick{fill:var(--soft);font-size:12px}.name{font-weight:600}.head{font-size:17px;font-weight:600}
.units.gone,.square.gone{fill:var(--gone)}.units.alive,.square.alive{fill:var(--run)}
.ribbon.gone{fill:var(--gone);opacity:.42}.ribbon.alive{fill:var(--run)}
"""


def main(run: Path) -> None:
    files = read_run(run)
    result, control = files.result, files.control and files.control.result
    if result is None or control is None:
        sys.exit(f"{run} is not a finished run with its control.")
    drawn = re.search(
        r'<svg id="network" .*?viewBox="0 0 (\d+) (\d+)".*?>(.*?)</svg>', network(result.layers), re.DOTALL
    )
    assert drawn is not None
    width, height, content = int(drawn[1]), int(drawn[2]) + 60, drawn[3]
    head = (
        f"{files.history.run.recipe}: {percent(result.test_accuracy)} test accuracy with "
        f"{share_of(result.connectivity)} of the connections, unpruned {percent(control.test_accuracy)} (one seed)"
    )
    small = f"{result.macs / result.dense_macs:.0%} of the MACs. Coloured: what is left; grey: what was pruned."
    TARGET.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 40} {height + 30}" role="img">'
        f"<title>{head}</title><style>{STYLE}</style>"
        f'<rect width="{width + 40}" height="{height + 30}" rx="12" fill="var(--page)"/>'
        f'<text x="20" y="34" class="head">{head}</text><text x="20" y="56" class="tick">{small}</text>'
        f'<g transform="translate(20 82)">{content}</g></svg>\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
