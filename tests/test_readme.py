"""The README's examples run as they are written, and its tables are what the files of results say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from skimage import data

from benchmarks.readme import rendered
from tests import launcher
from tests.hub.repositories import User
from tests.hub.runs import write_run
from tests.hub.server import Hub
from tests.photos import write_photo_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASH_BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def cached_hub(tmp_path_factory) -> dict[str, str]:
    """A Hub cache that holds timm's repositories, as a download leaves them, with weights drawn at random."""
    home = tmp_path_factory.mktemp("hf")
    for variant in ("tinynet_a", "tinynet_c", "tinynet_e"):
        repository = home / "hub" / f"models--timm--{variant}.in1k"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        torch.manual_seed(0)
        timm.models.save_for_hf(timm.create_model(variant), snapshot, safe_serialization=True)
        assert len(safetensors.torch.load_file(snapshot / "model.safetensors")) > 100
        assert json.loads((snapshot / "config.json").read_text())["architecture"] == variant
    return {"HF_HOME": str(home)}


@pytest.fixture
def reader_folder(tmp_path) -> Path:
    """Where a reader of the README works: the repository's files, a photo, a folder of images."""
    for name in ("train.py", "configuration", "hub_card", "training", "modeling_tinynet"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_photo_folder(
        tmp_path / "photos", crops_per_class=4, val_crops_per_class=1, classes=["coffee", "coins", "rocket"]
    )
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.jpg")
    return tmp_path


def run(command: list[str], folder: Path, hub: dict[str, str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | hub | {"PATH": path, "PYTHONPATH": str(ROOT)}
    if command[0] == sys.executable:
        result = launcher.run(command[1:], cwd=folder, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_fault_was_survived():
    cases = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text())["cases"]
    assert len(cases) >= 26
    assert [case for case in cases if not case["tried"] or case["passed"] < case["tried"]] == []


def test_examples_are_there():
    assert len(PYTHON_BLOCKS) == 5
    assert len(BASH_BLOCKS) == 2


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        (0, "'label': "),
        (1, "torch.Size([1, 1280])"),
        (2, "[24, 64, 176] [(1, 24, 32, 32), (1, 64, 16, 16), (1, 176, 8, 8)]"),
        (3, ""),
    ],
    ids=["classify", "features", "backbone", "new head"],
)
def test_python_example(block, shown, reader_folder, cached_hub):
    output = run([sys.executable, "-c", PYTHON_BLOCKS[block]], reader_folder, cached_hub)
    assert shown in output
    if (reader_folder / "my-tinynet").exists():
        classify = (
            "import modeling_tinynet, transformers as t; "
            "print(t.pipeline('image-classification', model='my-tinynet')('photo.jpg'))"
        )
        assert "LABEL_" in run([sys.executable, "-c", classify], reader_folder, cached_hub)


def test_fine_tuning_example(reader_folder, cached_hub):
    output = run(["bash", "-c", BASH_BLOCKS[0]], reader_folder, cached_hub)
    assert 'pipeline("image-classification"' in output
    assert (reader_folder / "runs" / "tinynet_e.in1k-photos" / "best" / "model.safetensors").exists()


def test_publishing_example(reader_folder):
    write_run(reader_folder / "runs" / "my-run")
    with Hub({"hf_of_me": User("me")}) as hub:
        shown = run(["bash", "-c", BASH_BLOCKS[1]], reader_folder, hub.environment("hf_of_me", reader_folder / "home"))
        assert "Nothing was uploaded" in shown and "Published: " in shown
        without_package = f"import sys; sys.modules['modeling_tinynet'] = None\n{PYTHON_BLOCKS[4]}"
        stranger = hub.environment(None, reader_folder / "elsewhere")
        assert "'label': " in run([sys.executable, "-c", without_package], reader_folder, stranger)


def test_tables_are_generated():
    assert rendered(README) == README
