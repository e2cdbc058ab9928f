"""The GPU benchmark without a GPU: every path of it, so that a GPU's minutes are not spent on finding mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

from benchmarks import gpu
from tests import launcher
from training.engine.step import OptimizerStep

ROOT = Path(__file__).parents[1]
SIDES = ("ours", "timm")


def test_dry_run_records_tests_and_speed_and_goes_on_after_a_failure(tmp_path):
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--dry_run", "--output", tmp_path]
    command += ["--variants", "tinynet_z", "tinynet_e", "--commit", "0123abc"]
    result = launcher.run(command)
    assert result.returncode == 1, result.stderr  # there is no tinynet_z

    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["dry_run"] is True and report["rounds"] == 1
    assert report["environment"]["commit"] == "0123abc" and report["environment"]["versions"]["torch"]
    assert report["tests"]["succeeded"], result.stdout
    assert {test["outcome"] for test in report["tests"]["tests"]} == {"passed"}
    rows = {(row["variant"], row["compile"]): row for row in report["training"]}
    assert len(rows) == len(report["training"]) == 4
    for compiled in (False, True):
        assert "tinynet_z" in rows["tinynet_z", compiled]["failure"]
        row = rows["tinynet_e", compiled]
        assert row["image_size"] == 64 and row["ratio"] > 0
        for side in SIDES:
            assert row[side]["images_per_s"] == pytest.approx(1e3 * row["batch_size"] / row[side]["step_ms"])
            assert set(row[side]["parts_ms"]) == set(gpu.PARTS) and 0 < row[side]["other_share"] < 1
            # The clock is read between the parts, so that they make up the step.
            assert sum(row[side]["parts_ms"].values()) == pytest.approx(row[side]["step_ms"], rel=0.5)


@pytest.mark.only_thorough
@pytest.mark.timeout(1500)
@pytest.mark.fault("40 the tests that need a GPU, tried on a CPU")
def test_the_tests_for_a_gpu_pass_on_a_cpu():
    """With tests/gpu/on_cpu.py in the place of fp16 and of generated code: of the tests, every line runs."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "--timeout=700"]
    command += ["-p", "no:cacheprovider"]
    environment = os.environ | {"TINYNET_TEST_DEVICE": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.fixture
def accelerate_remembers_nothing():
    """Accelerate keeps in its classes what it was told first; here, that would be another test's precision."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield
    forget()


@pytest.mark.usefixtures("accelerate_remembers_nothing")
def test_without_timm_this_package_is_measured_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # an import of it now fails as where it is not installed
    updates, apply_update = [], OptimizerStep.apply_update  # the trainer's own, which cannot drift from it
    monkeypatch.setattr(OptimizerStep, "apply_update", lambda self, lr: updates.append(self) or apply_update(self, lr))
    row = gpu.measure("cpu", "tinynet_e", 2, compiled=False, scale=gpu.DRY)
    assert row["ours"]["images_per_s"] > 0
    assert len(updates) == 3 + 2 * row["steps_per_round"]  # three steps and a round to warm up
    assert row["timm"] is None and row["ratio"] is None


def test_tests_that_outlast_their_time_are_stopped_and_recorded():
    result = gpu.run_tests("cpu", dry_run=True, limit_s=0.1)
    assert not result["succeeded"] and result["elapsed_s"] < 30
    assert result["failure"].startswith("stopped after 0 s")


@pytest.mark.parametrize("arguments", [["--device", "cpu"], []], ids=["a CPU that is not a dry run", "no GPU"])
def test_numbers_of_a_cpu_are_not_taken_for_a_gpus(arguments, monkeypatch, capsys):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2 and "--dry_run" in capsys.readouterr().err
