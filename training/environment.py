"""Where a number comes from: commit, date, machine and versions, for every file of results."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "modeling-tinynet",
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "timm",
    "pillow",
    "simplejpeg",
)


def environment() -> dict[str, Any]:
    """What a result file says about its origin; `-dirty` behind the commit marks uncommitted changes."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def machine(device: torch.device) -> dict[str, str | None]:
    """What of the environment bears on the numbers of a run on `device`, in words to compare."""
    names = {name: _version(name) for name in ("torch", "pillow", "simplejpeg")}
    return {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()} | names


def _commit() -> str | None:
    """None where there is no git, or no repository of this project's own (a source archive)."""
    root = Path(__file__).parents[1]
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
