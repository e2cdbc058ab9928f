"""What was published comes back through unmodified clients, in processes of their own."""

import copy
import json
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import skimage.data
import torch
from PIL import Image

from hub_card.push import main
from modeling_tinynet import TinyNetForImageClassification, TinyNetImageProcessor
from tests import launcher
from tests.hub.conftest import TOKEN, sign_in
from tests.hub.http_handler import Fault
from tests.hub.repositories import Blob, User
from tests.hub.runs import write_run
from tests.hub.server import Hub
from tests.photos import write_photo_folder
from tests.training_jobs import RECIPE

ROOT = Path(__file__).parents[2]
REPOSITORY = "me/tinynet-digits"
# Logits are computed on copies: a tensor mapped from a file may start anywhere, and is then rounded otherwise.

# Runs Python blocks of the card as written, each with names of its own, and says what each printed.
RUN_BLOCKS = """
import contextlib, io, json, sys

shown = []
for block in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(block, {"__name__": "__main__"})
    shown.append(output.getvalue())
"""
STRANGER = f"""
import sys

sys.modules["modeling_tinynet"] = None  # however it is installed, importing it fails
{RUN_BLOCKS}
import copy

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{REPOSITORY}", trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained("{REPOSITORY}", trust_remote_code=True).eval()
with torch.inference_mode():
    logits = copy.deepcopy(model)(**processor(Image.open("photo.jpg"), return_tensors="pt")).logits
print(json.dumps({{"shown": shown, "logits": logits.tolist(), "module": type(model).__module__}}))
"""
OWNER = f"""
{RUN_BLOCKS}
import copy

import torch
from PIL import Image
from modeling_tinynet import TinyNetForImageClassification, TinyNetImageProcessor

model = TinyNetForImageClassification.from_pretrained("{REPOSITORY}").eval()
processor = TinyNetImageProcessor.from_pretrained("{REPOSITORY}")
with torch.inference_mode():
    logits = copy.deepcopy(model)(**processor(Image.open("photo.jpg"), return_tensors="pt")).logits
torch.nn.init.zeros_(model.classifier.bias)
model.push_to_hub("{REPOSITORY}")
processor.push_to_hub("{REPOSITORY}")
model.push_to_hub("me/new")
processor.push_to_hub("me/new")
print(json.dumps({{"shown": shown, "logits": logits.tolist()}}))
"""


class Malice:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub({TOKEN: User("me")}) as hub:
        yield hub


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trace") / "unpickled"


@pytest.fixture(scope="module")
def card(hub, run_folder, trace) -> str:
    """Published, beside a poisoned checkpoint that somebody added; the card as the Hub has it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        sign_in(hub, monkeypatch)
        main([str(run_folder), "--repo", REPOSITORY, "--yes"])
    poison = {"pytorch_model.bin": Blob(pickle.dumps(Malice(trace)), is_lfs=True)}
    hub.repository(REPOSITORY).change("main", "Poison", poison, set())
    return hub.repository(REPOSITORY).files()["README.md"].decode()


def run_python(script: str, blocks: list[str], hub: Hub, folder: Path, token: str | None, path: str | None) -> dict:
    """In `folder`, with a photo; `path` is PYTHONPATH."""
    Image.fromarray(skimage.data.coffee()).save(folder / "photo.jpg")
    environment = os.environ | hub.environment(token, folder / "home")
    environment.pop("PYTHONPATH", None)
    environment |= {"PYTHONPATH": path} if path else {}
    result = launcher.run(["-c", script, json.dumps(blocks)], cwd=folder, env=environment)
    assert result.returncode == 0, result.stderr
    assert "canary" not in result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def local_logits(run_folder: Path, photo: Path) -> torch.Tensor:
    model = TinyNetForImageClassification.from_pretrained(run_folder / "best").eval()
    processor = TinyNetImageProcessor.from_pretrained(run_folder / "best")
    with torch.inference_mode():
        return copy.deepcopy(model)(**processor(Image.open(photo), return_tensors="pt")).logits


def python_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_a_stranger_without_the_package_gets_the_same_logits(hub, card, run_folder, trace, tmp_path):
    blocks = [block for block in python_blocks(card) if "trust_remote_code" in block]
    assert len(blocks) == 2
    report = run_python(STRANGER, blocks, hub, tmp_path, token=None, path=None)
    expected = local_logits(run_folder, tmp_path / "photo.jpg")
    assert torch.equal(torch.tensor(report["logits"]), expected)
    assert report["module"].startswith("transformers_modules.me.")
    assert "'score': " in report["shown"][0]
    assert report["shown"][1].strip() == str(expected.argmax().item())
    assert hub.asked("GET", "pytorch_model.bin") == [] and not trace.exists()


def test_somebody_with_the_package_and_transformers_own_push(hub, card, run_folder, trace, tmp_path):
    blocks = [block for block in python_blocks(card) if "trust_remote_code" not in block]
    assert len(blocks) == 4
    before = hub.repository(REPOSITORY).files()
    report = run_python(OWNER, blocks, hub, tmp_path, token=TOKEN, path=str(ROOT))
    expected = local_logits(run_folder, tmp_path / "photo.jpg")
    assert torch.equal(torch.tensor(report["logits"]), expected)
    features, backbone, head, timm_classes = report["shown"]
    assert features == "torch.Size([1, 1280])\n"
    assert "torch.Size([1, 160, 8, 8])" in backbone
    assert "out_features=3" in head
    assert timm_classes == "10\n"
    assert hub.asked("GET", "pytorch_model.bin") == [] and not trace.exists()

    after = hub.repository(REPOSITORY).files()
    assert after["README.md"] == before["README.md"]
    assert set(after) == set(before)
    assert not safetensors.torch.load(after["model.safetensors"])["classifier.bias"].any()
    new = hub.repository("me/new").files()
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(new)
    assert new["model.safetensors"] == after["model.safetensors"]


def test_training_on_a_data_set_of_the_hub_and_publishing_it(hub, tmp_path):
    """A failed upload keeps the run, and names the command that repeats it."""
    write_photo_folder(tmp_path / "flowers", crops_per_class=8, val_crops_per_class=2, classes=["coffee", "coins"])
    images = {str(path.relative_to(tmp_path / "flowers")): path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    hub.add_repository("me/flowers", images, kind="dataset")
    hub.inject(Fault("POST", "/me/net/commit/", status=500))
    environment = os.environ | hub.environment(TOKEN, tmp_path / "home") | {"CUDA_VISIBLE_DEVICES": ""}
    command = [ROOT / "train.py", *RECIPE, "--dataset", "me/flowers", "--push_to_hub", "me/net"]
    command += ["--image_size", "32", "--epochs", "1", "--warmup_epochs", "0", "--run_name", "net"]
    command += ["--global_batch_size", "8", "--per_device_batch_size", "8", "--lr", "0.001", "--num_workers", "0"]
    trained = launcher.run(command, cwd=tmp_path, env=environment)
    assert trained.returncode == 0, trained.stderr
    warning = trained.stdout.splitlines()[-1]
    assert warning.startswith("warning: the run is complete but not published: ")
    assert hub.repository("me/net").files() == {}

    (again,) = re.findall(r"python (-m hub_card\.push .*)", warning)
    result = launcher.run(again.split(), cwd=tmp_path, env=environment | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr
    card = hub.repository("me/net").files()["README.md"].decode()
    assert "datasets:\n- me/flowers\n" in card
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert kept == []
    assert TOKEN not in trained.stdout + trained.stderr + result.stdout + result.stderr


def test_training_does_not_begin_without_the_right_to_publish(hub, tmp_path):
    environment = os.environ | hub.environment("hf_canary_wrong", tmp_path / "home")
    command = [ROOT / "train.py", *RECIPE, "--push_to_hub", "me/net2", "--run_name", "x"]
    result = launcher.run(command, cwd=tmp_path, env=environment)
    assert result.returncode == 2
    assert "error: the Hugging Face token is not valid" in result.stderr
    assert "Traceback" not in result.stderr and "canary" not in result.stderr
    assert not (tmp_path / "runs" / "x" / "metrics.jsonl").exists()
