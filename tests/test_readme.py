"""The examples of the README and of docs/ run as they are written, their tables are what the files of results say, and
their commands, links and sentences hold."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from markdown_it import MarkdownIt
from PIL import Image
from skimage import data

from benchmarks.peers import read_peers
from benchmarks.readme import BLOCK, FAULTS_TO_MEASURE, PAGES, RESULTS, TABLES, rendered
from modeling_tinynet import TinyNetConfig
from tests import launcher
from tests.hub.repositories import User
from tests.hub.runs import write_run
from tests.hub.server import Hub
from tests.photos import write_photo_folder

ROOT = Path(__file__).parents[1]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
ALL_PAGES = TEXTS | {"CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")}


def blocks(language: str) -> dict[str, list[str]]:
    """The code blocks in that language by page, pages without one left out."""
    found = {page: re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for page, text in TEXTS.items()}
    return {page: code for page, code in found.items() if code}


PYTHON_BLOCKS, BASH_BLOCKS = blocks("python"), blocks("bash")
PUBLISHED = PYTHON_BLOCKS["README.md"][1]
SHOWN = {
    "README.md 0": "'label': ",
    "docs/python.md 0": "torch.Size([1, 1280])",
    "docs/python.md 1": "[24, 64, 176] [(1, 24, 32, 32), (1, 64, 16, 16), (1, 176, 8, 8)]",
    "docs/python.md 2": "",
    "docs/python.md 3": "torch.Size([1, 1, 106, 106]) torch.Size([1])",
    "docs/python.md 4": "PeftModel",
}
TOOLS = [
    "train.py",
    "eval.py",
    "convert.py",
    "training.audit",
    "training.prepare",
    "training.compare",
    "hub_card.push",
]
# In one interpreter, because most of a start is imports: each example with names of its own, then each tool's help.
RUN_ALL = """
import contextlib, io, json, runpy, sys
answers = {}
for name, code in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as shown:
        if code:
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [name, "--help"]
            with contextlib.suppress(SystemExit):
                run = runpy.run_path if name.endswith(".py") else runpy.run_module
                run(name, run_name="__main__")
    shown.flush()
    answers[name] = shown.buffer.getvalue().decode()
print(json.dumps(answers))
"""


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


def make_reader_folder(folder: Path) -> Path:
    """Where a reader of the pages works: the repository's files, a photo, a folder of images."""
    for name in ("train.py", "eval.py", "convert.py", "configuration", "conversion", "hub_card", "training"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "modeling_tinynet").symlink_to(ROOT / "modeling_tinynet")
    write_photo_folder(
        folder / "photos", crops_per_class=4, val_crops_per_class=1, classes=["coffee", "coins", "rocket"]
    )
    Image.fromarray(data.astronaut()).save(folder / "photo.jpg")
    return folder


@pytest.fixture
def reader_folder(tmp_path) -> Path:
    return make_reader_folder(tmp_path)


def run(command: list[str], folder: Path, hub: dict[str, str], **keywords: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | hub | {"PATH": path, "PYTHONPATH": str(ROOT)}
    if command[0] == sys.executable and not keywords:
        result = launcher.run(command[1:], cwd=folder, env=environment)
        assert result.returncode == 0, result.stderr
        return result.stdout
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, **keywords
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def answers(tmp_path_factory, cached_hub) -> dict[str, str]:
    """What each example printed, and what each tool answers to --help; and what pipeline says of the saved folder."""
    folder = make_reader_folder(tmp_path_factory.mktemp("reader"))
    examples = {f"{page} {i}": code for page, found in PYTHON_BLOCKS.items() for i, code in enumerate(found)}
    del examples["README.md 1"]  # runs without this package, in test_publishing_example
    assert examples.keys() == SHOWN.keys()
    classify = "import transformers\nprint(transformers.pipeline('image-classification', 'my-tinynet')('photo.jpg'))"
    orders = examples | {"saved folder": classify} | dict.fromkeys(TOOLS, "")
    answer = run([sys.executable, "-c", RUN_ALL], folder, cached_hub, input=json.dumps(orders))
    timm.create_model("tinynet_e", num_classes=10, checkpoint_path=folder / "my-tinynet" / "model.safetensors")
    return json.loads(answer.splitlines()[-1])


def test_python_examples(answers):
    for name, shown in SHOWN.items():
        assert shown in answers[name], name
    assert "LABEL_" in answers["saved folder"]


def test_every_flag_of_a_command_exists(answers):
    """Words that begin with -- behind a tool's name, in code and in sentences."""
    seen = set()
    for page, text in ALL_PAGES.items():
        joined = re.sub(r"\\\n\s*", " ", text)
        for tool, words in re.findall(rf"\b({'|'.join(map(re.escape, TOOLS))})((?: [^\s`|]+)*)", joined):
            for flag in re.findall(r"--[a-z]\w*", words):
                assert re.search(rf"{flag}\b", answers[tool]), f"{page}: {tool} has no {flag}"
                seen.add(tool)
    assert {"train.py", "eval.py", "training.prepare", "hub_card.push"} <= seen


def test_every_flag_named_in_the_pages_on_training_exists(answers):
    of_tools = set(re.findall(r"--[a-z]\w*", "".join(answers.values())))
    of_launchers = {"--config_file", "--nproc_per_node", "--requeue", "--signal", "--nodes", "--gpus", "--cpus"}
    for page in ("README.md", "docs/training.md", "docs/data.md", "docs/fault-tolerance.md", "docs/publishing.md"):
        flags = set(re.findall(r"(?<![\w-])--[a-z]\w*", BLOCK.sub("", TEXTS[page])))
        assert flags <= of_tools | of_launchers, page


def test_fine_tuning_example(reader_folder, cached_hub):
    output = run(["bash", "-c", BASH_BLOCKS["README.md"][0]], reader_folder, cached_hub)
    assert 'pipeline("image-classification"' in output
    assert (reader_folder / "runs" / "tinynet_e.in1k-photos" / "best" / "model.safetensors").exists()


def test_publishing_example(reader_folder):
    write_run(reader_folder / "runs" / "my-run")
    with Hub({"hf_of_me": User("me")}) as hub:
        home = hub.environment("hf_of_me", reader_folder / "home")
        shown = run(["bash", "-c", BASH_BLOCKS["README.md"][1]], reader_folder, home)
        assert "Nothing was uploaded" in shown and "Published: " in shown
        without_package = f"import sys; sys.modules['modeling_tinynet'] = None\n{PUBLISHED}"
        stranger = hub.environment(None, reader_folder / "elsewhere")
        assert "'label': " in run([sys.executable, "-c", without_package], reader_folder, stranger)


def test_every_bash_block_is_run():
    assert {page: len(found) for page, found in BASH_BLOCKS.items()} == {"README.md": 2}
    assert len(PYTHON_BLOCKS["README.md"]) == 2


@pytest.mark.parametrize("page", TEXTS)
def test_tables_are_generated(page):
    assert rendered(TEXTS[page]) == TEXTS[page], "run python -m benchmarks.readme"


def test_every_table_is_shown():
    assert {name for text in TEXTS.values() for _, name, _ in BLOCK.findall(text)} == TABLES.keys()


def test_every_fault_was_survived():
    cases = json.loads((RESULTS / "faults.json").read_text())["cases"]
    assert len(cases) >= 26
    assert [case for case in cases if not case["tried"] or case["passed"] < case["tried"]] == []


def test_the_table_of_faults_has_the_cases_of_the_tests():
    measured = {case["case"] for case in json.loads((RESULTS / "faults.json").read_text())["cases"]}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    marked = {case for source in sources for case in re.findall(r'mark\.fault\("([^"]+)"\)', source)}
    assert marked ^ measured == FAULTS_TO_MEASURE, "make faults, then correct FAULTS_TO_MEASURE"


def anchors(text: str) -> set[str]:
    """The anchors that a forge makes of a page's headings."""
    tokens = MarkdownIt().parse(text)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", ALL_PAGES[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_a_page_names_exist(page):
    pattern = r"(?<![\w/.])((?:configuration|benchmarks|tests|docs)/[\w./-]*\w)"
    for name in re.findall(pattern, BLOCK.sub("", TEXTS[page])):
        assert (ROOT / name).exists(), name


def test_readme_fits_on_a_few_screens():
    assert len(README.splitlines()) <= 180


def test_sentences_of_the_readme_are_true():
    peers = {peer.title: peer for peer in read_peers()}
    ours, efficientnet = peers["TinyNet-A"], peers["EfficientNet-B0"]
    assert abs(ours.top_1 - efficientnet.top_1) < 0.1
    assert "with 13 % fewer multiply-adds" in README
    assert round(100 * (1 - ours.macs / efficientnet.macs)) == 13
    shares = [peers[f"TinyNet-{variant}"].macs / ours.macs for variant in "BCDE"]
    assert [round(100 * share) for share in shares] == [60, 30, 15, 7]
    assert "as fast as timm's, to 2 %" in " ".join(README.split())
    ratios = [row["ratio"] for row in json.loads((RESULTS / "model.json").read_text())["results"]]
    assert max(abs(ratio - 1) for ratio in ratios) <= 0.021
    config = TinyNetConfig.from_variant("tinynet_e")
    ten = TinyNetConfig.from_variant("tinynet_e", num_labels=10)
    assert round((config.parameter_count - ten.parameter_count) * 1000 / 990, -5) == 1_300_000
    assert round(ten.parameter_count, -5) == 800_000
