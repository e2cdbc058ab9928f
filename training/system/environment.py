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
CPUINFO = Path("/proc/cpuinfo")  # of Linux only
# As /proc/cpuinfo calls them; the last five are Arm's.
VECTOR_EXTENSIONS = (
    "avx",
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
)


def environment() -> dict[str, Any]:
    """
    What a result file says about its origin; `-dirty` behind the commit marks uncommitted changes. A processor's name
    does not tell what it can do: virtual machines of one name differ in their vector extensions, and so in speed.
    """
    cpuinfo = _cpuinfo()
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(cpuinfo),
        "cpu_cores": os.cpu_count(),
        "vector_extensions": _vector_extensions(cpuinfo, platform.machine()),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),  # what PyTorch makes of them
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def machine(device: torch.device) -> dict[str, str | None]:
    """What of the environment bears on the numbers of a run on `device`, in words to compare."""
    names = {name: _version(name) for name in ("torch", "pillow", "simplejpeg")}
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device)} | names
    return {"device": f"{_processor(_cpuinfo())}, {torch.backends.cpu.get_cpu_capability()}"} | names


def _commit() -> str | None:
    """None where there is no git, or no repository of this project's own (a source archive)."""
    root = Path(__file__).parents[1]
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpuinfo() -> dict[str, str]:
    """What Linux says about the first processor; nothing on other systems."""
    try:
        text = CPUINFO.read_text()
    except FileNotFoundError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _processor(cpuinfo: dict[str, str]) -> str:
    return cpuinfo.get("model name") or platform.processor() or platform.machine()


def _vector_extensions(cpuinfo: dict[str, str], machine: str) -> list[str]:
    """Those of `VECTOR_EXTENSIONS` that Linux lists, and NEON where every processor has it."""
    flags = (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()
    neon = ["neon"] if machine in ("arm64", "aarch64") else []
    return neon + [name for name in VECTOR_EXTENSIONS if name in flags]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
