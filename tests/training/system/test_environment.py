"""Where a number comes from."""

import pytest
from numpy._core._multiarray_umath import __cpu_features__ as numpys

from training.system import environment as module
from training.system.environment import environment

# Excerpts of what Linux writes on three machines.
CPUINFO = {
    "EPYC": "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu fma avx avx2 avx512f avx512_bf16 avx512_vnni\n",
    "Xeon": "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: avx avx2 amx_bf16 avx512f amx_tile amx_int8\n",
    "Graviton": "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd sve asimddp i8mm bf16\nCPU part\t: 0xd40\n",
}
EXTENSIONS = {
    "EPYC": ["avx", "avx2", "avx512f", "avx512_bf16", "avx512_vnni"],
    "Xeon": ["avx", "avx2", "avx512f", "amx_bf16", "amx_int8"],
    "Graviton": ["neon", "asimddp", "bf16", "i8mm", "sve"],
}


@pytest.mark.parametrize("name", CPUINFO)
def test_vector_extensions_are_recorded(name, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(f"{CPUINFO[name]}\nprocessor\t: 1\nmodel name\t: another\nflags\t\t: none\n")
    monkeypatch.setattr(module, "CPUINFO", path)
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64" if name == "Graviton" else "x86_64")
    monkeypatch.setattr(module.platform, "processor", lambda: "")
    recorded = environment()
    assert recorded["vector_extensions"] == EXTENSIONS[name]
    assert recorded["processor"] == {"EPYC": "AMD EPYC", "Xeon": "Intel(R) Xeon(R)", "Graviton": "aarch64"}[name]


def test_vector_extensions_of_this_machine_are_those_that_numpy_finds():
    """numpy asks the processor itself."""
    names = {"avx": "AVX", "avx2": "AVX2", "avx512f": "AVX512F", "neon": "NEON", "asimddp": "ASIMDDP", "sve": "SVE"}
    found = environment()["vector_extensions"]
    assert [name for name in names if name in found] == [name for name, theirs in names.items() if numpys.get(theirs)]


@pytest.mark.parametrize(("machine", "extensions"), [("arm64", ["neon"]), ("x86_64", [])])
def test_without_proc_as_on_macos(machine, extensions, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    recorded = environment()
    assert recorded["vector_extensions"] == extensions
    assert recorded["processor"] and recorded["torch_cpu_capability"]
