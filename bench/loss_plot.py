"""The figures of `loss` as a plot: what was delivered once, twice, and not, by contender and script."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

ONCE, TWICE = "#2a6f97", "#e07a5f"


def draw(made: dict[str, Any], path: Path) -> None:
    """Write an SVG of what `loss.to_json` gives; contenders that were not measured are left out."""
    mpl = importlib.import_module("matplotlib")
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mailboat"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    plt = importlib.import_module("matplotlib.pyplot")

    measured = {name: scripts for name, scripts in made["contenders"].items() if scripts is not None}
    scripts = list(next(iter(measured.values()), {}))
    figure, panels = plt.subplots(1, max(len(scripts), 1), figsize=(11, 3.2), sharey=True, squeeze=False)
    for panel, script in zip(panels[0], scripts, strict=False):
        names = list(measured)
        delivered = [100 * measured[name][script]["delivered"] for name in names]
        twice = [100 * measured[name][script]["duplicated"] for name in names]
        panel.barh(names, delivered, color=ONCE, label="delivered")
        panel.barh(names, twice, left=delivered, color=TWICE, label="delivered twice")
        for row, (share, again) in enumerate(zip(delivered, twice, strict=True)):
            told = f"{share:.1f} %" + (f" (+{again:.1f} %)" if again else "")
            panel.text(2, row, told, va="center", color="white" if share > 40 else "black", fontsize=8)  # noqa: PLR2004
        panel.axvline(100, color="#888888", linewidth=0.8, linestyle=":")
        panel.set_title(script, fontsize=10)
        panel.set_xlabel("% of recorded events", fontsize=8)
        panel.invert_yaxis() if panel is panels[0][0] else None
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)
