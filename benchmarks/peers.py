"""
Draws the README's chart: accuracy on ImageNet-1k against multiply-adds, TinyNet beside other small networks.

    python -m benchmarks.peers             # rewrites docs/accuracy.png from benchmarks/results/peers.csv

No figure of peers.csv was measured here: each row says which published table it comes from. The multiply-adds were
counted on timm's networks, at the image size of the accuracy.
"""

import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.reporting.curves import STYLE

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "results" / "peers.csv"
PLOT = ROOT / "docs" / "accuracy.png"
COLORS = {
    "EfficientNet": "tab:blue",
    "EfficientNet-Lite": "tab:cyan",
    "MobileNetV3": "tab:green",
    "MobileNetV4": "tab:purple",
    "LCNet": "tab:gray",
    "TinyNet": "tab:red",
}
AREA = 22  # of a marker in square points, for a million parameters


@dataclass(frozen=True)
class Peer:
    """One network with published weights: a row of peers.csv."""

    family: str
    name: str
    weights: str  # timm's name of the weights; empty where timm has none
    image_size: int
    top_1: float  # percent
    macs: int
    parameters: int
    cpu_images_per_s: float | None
    gpu_images_per_s: float | None

    @property
    def title(self) -> str:
        """`TinyNet-A`, `EfficientNet-Lite0`, `LCNet x1.0`"""
        if self.family == "EfficientNet-Lite":
            return f"EfficientNet-{self.name}"
        return f"{self.family}{'-' if self.family in {'TinyNet', 'EfficientNet'} else ' '}{self.name}"


def read_peers() -> list[Peer]:
    with PEERS.open(encoding="utf-8", newline="") as file:
        return [
            Peer(
                family=row["family"],
                name=row["name"],
                weights=row["weights"],
                image_size=int(row["image_size"]),
                top_1=float(row["top_1"]),
                macs=int(row["macs"]),
                parameters=int(row["parameters"]),
                cpu_images_per_s=float(row["cpu_images_per_s"]) if row["cpu_images_per_s"] else None,
                gpu_images_per_s=float(row["gpu_images_per_s"]) if row["gpu_images_per_s"] else None,
            )
            for row in csv.DictReader(file)
        ]


def fingerprint() -> str:
    """What the chart is drawn from: the data and this script."""
    return hashlib.sha256(PEERS.read_bytes() + Path(__file__).read_bytes()).hexdigest()


def draw(peers: list[Peer]) -> bytes:
    """The plot as a PNG of 1200 x 700 pixels that holds the fingerprint of what it was drawn from."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for family, color in COLORS.items():
            _draw_family(axes, family, [peer for peer in peers if peer.family == family], color)
        axes.set_xscale("log")
        ticks = [20, 50, 100, 200, 500, 1000]
        axes.set_xticks(ticks, [f"{tick:,} M" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(20, 1500)
        axes.set_xlabel("multiply-adds for one image (log scale); a marker's area shows the parameters")
        axes.set_ylabel("top-1 on ImageNet-1k's validation set (%)")
        axes.legend(frameon=False, loc="lower right", markerscale=0.8)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Source": fingerprint()})
        return png.getvalue()


def _draw_family(axes: Axes, family: str, peers: list[Peer], color: str) -> None:
    """The family's networks with their names; a line joins one for each number of multiply-adds."""
    ours = family == "TinyNet"
    peers = sorted(peers, key=lambda peer: (peer.macs, peer.top_1))
    macs, top_1 = [peer.macs / 1e6 for peer in peers], [peer.top_1 for peer in peers]
    axes.plot(
        macs, top_1, color=color, linewidth=3 if ours else 1.2, zorder=3 if ours else 2, alpha=1 if ours else 0.7
    )
    axes.scatter(
        macs, top_1, [AREA * peer.parameters / 1e6 for peer in peers], color=color, zorder=4, label=family, alpha=0.9
    )
    for peer, x, y in zip(peers, macs, top_1, strict=True):
        above = ours or family == "EfficientNet"
        axes.annotate(
            peer.name,
            (x, y),
            xytext=(-5, 7) if above else (6, -11),
            textcoords="offset points",
            ha="right" if above else "left",
            fontsize=14 if ours else 9,
            fontweight="bold" if ours else "normal",
            color=color,
        )


def main() -> None:
    PLOT.write_bytes(draw(read_peers()))


if __name__ == "__main__":
    main()
