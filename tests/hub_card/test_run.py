"""A run whose files are missing, damaged, replaced or linked away is refused in a sentence that names file and key."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hub_card.card import model_card
from hub_card.collect import collect
from hub_card.run import PublishError, is_repository_id, read_run
from hub_card.schema import COUNTS, SUMMARY
from tests.hub.runs import write_run
from training.evaluation.metrics import card_metrics

JSON_FILES = ("summary.json", "best/config.json", "best/preprocessor_config.json")
FILES = (*JSON_FILES, "recipe.yaml", "metrics.jsonl", "curves.png", "best/model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "runs" / "digits")


def refusal(folder: Path) -> str:
    """The sentence of a run that cannot be published, at whichever step."""
    with pytest.raises(PublishError) as error:
        run = read_run(folder)
        collect(run, model_card(run, "me/x"))
    assert "\n" not in str(error.value)
    return str(error.value)


def change(path: Path, keys: list[str], value: Any) -> None:
    """Sets the value at these keys of a JSON or YAML file; `...` deletes it."""
    content = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))


def required(kinds: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, kind in kinds.items():
        if key != "*" and not key.endswith("?"):
            yield (*prefix, key)
            if isinstance(kind, dict):
                yield from required(kind, (*prefix, key))


KEYS = [keys for keys in required(SUMMARY) if keys != ("is_local",)]


def test_a_whole_run_is_read(run):
    collected = read_run(run)
    assert collect(collected, model_card(collected, "me/x"))


def test_the_schema_asks_for_what_the_card_says(run):
    """Every key of summary.json that the card or its metadata reads is in the schema."""
    asked = set()

    class Watched(dict):
        prefix = ()

        def __getitem__(self, key):
            asked.add((*self.prefix, key))
            return super().__getitem__(key)

        def get(self, key, default=None):
            asked.add((*self.prefix, key))
            return super().get(key, default)

    def watched(value, prefix=()):
        if not isinstance(value, dict):
            return value
        result = Watched({key: watched(item, (*prefix, key)) for key, item in value.items()})
        result.prefix = prefix
        return result

    whole = read_run(run)
    object.__setattr__(whole, "summary", watched(whole.summary))
    model_card(whole, "me/x")
    known = {*KEYS, ("is_local",), ("changes",), *(("best", key) for key in COUNTS), ("best", "per_class")}
    known |= {("metrics",), ("class_metrics",)}
    assert {keys for keys in asked if "versions" not in keys} <= known
    assert len(asked) > 25


@pytest.mark.parametrize("keys", KEYS, ids=".".join)
def test_a_missing_key_of_the_summary_is_named(run, keys):
    change(run / "summary.json", list(keys), ...)
    assert f"summary.json has no {'.'.join(keys)}: restore the file" in refusal(run)


@pytest.mark.parametrize("keys", KEYS, ids=".".join)
def test_a_wrong_type_in_the_summary_is_named(run, keys):
    change(run / "summary.json", list(keys), [float("nan")])
    assert f"summary.json: {'.'.join(keys)} must be " in refusal(run)


@pytest.fixture
def described(run) -> Path:
    """A run whose summary describes its metrics: the real one is from before that."""
    for name, value in card_metrics(10).items():
        change(run / "summary.json", [name], value)
    change(run / "summary.json", ["best", "macro_f1"], 0.97)
    change(run / "summary.json", ["best", "per_class", 5, "predicted"], 32)
    return run


def test_a_summary_that_describes_its_metrics_decides_what_is_shown(described):
    """The log has no macro-F1: the run began before there was one."""
    card = model_card(read_run(described), "me/x")
    assert "| 359 held-out images | top-1 | top-5 | macro-F1 |\n| --- | --- | --- | --- |\n" in card
    assert "| as trained (published here) | 351/359 = 97.772 % | 359/359 = 100.000 % | - |" in card
    assert "metrics:\n- accuracy\n- f1\n" in card
    assert "| class | recall | precision |\n| --- | --- | --- |\n| 5 | 31/36 = 86.1 % | 31/32 = 96.9 % |" in card
    assert "| 9 | 34/36 = 94.4 % | - |" in card


def test_best_weights_from_before_a_metric_was_declared_are_published_without_it(described):
    change(described / "summary.json", ["best", "macro_f1"], ...)
    change(described / "summary.json", ["best", "per_class"], ...)
    card = model_card(read_run(described), "me/x")
    assert "| 359 held-out images | top-1 | top-5 |\n" in card
    assert "macro-F1" not in card and "recall" not in card


def test_a_run_that_shows_no_metric_on_its_card_is_published(described):
    for name in ("metrics", "class_metrics"):
        change(described / "summary.json", [name], [])
    card = model_card(read_run(described), "me/x")
    assert "top-1" not in card and "recall" not in card and "| --- |\n| as trained" not in card


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["metrics"], None, "summary.json: metrics must be a list, got None"),
        (["metrics"], "top_1", "metrics must be a list, got 'top_1'"),
        (["metrics", 0], "top_1", "metrics[0] must be a mapping, got 'top_1'"),
        (["metrics", 2, "label"], ..., "summary.json has no metrics[2].label"),
        (["metrics", 0, "digits"], 10**9, "metrics[0].digits must be a whole number from 0 to 9, got 1000000000"),
        (["metrics", 0, "ratio"], ["top_1_correct", "n"], "metrics[0].ratio must be a mapping"),
        (["metrics", 0, "ratio", "part"], 1, "metrics[0].ratio.part must be text, got 1"),
        (["metrics", 0, "ratio", "part"], "weights", "best.weights must be a whole number of at least 0, got 'raw'"),
        (["metrics", 2, "hub_args"], {"a": {}}, "metrics[2].hub_args.a must be a value or a list of values"),
        (["class_metrics", 1, "percent"], 1, "class_metrics[1].percent must be true or false, got 1"),
        (["best", "macro_f1"], "high", "best.macro_f1 must be a number, got 'high'"),
        (["best", "per_class", 5, "predicted"], -1, "best.per_class[5].predicted must be a whole number"),
        (["best", "per_class", 5, "f1"], [], "best.per_class[5].f1 must be a number, got []"),
    ],
)
def test_a_wrong_metric_is_named(described, keys, value, said):
    change(described / "summary.json", keys, value)
    sentence = refusal(described)
    assert "summary.json" in sentence and said in sentence


def test_a_wrong_metric_of_the_log_is_named(described):
    path = described / "metrics.jsonl"
    path.write_text(path.read_text().replace('"top_1": ', '"macro_f1": "high", "top_1": ', 1))
    assert "raw.macro_f1 must be a number, got 'high'" in refusal(described)


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", '"text"', "[" * 100_000, "\xff"])
def test_a_damaged_file_is_named(run, file, content):
    (run / file).write_text(content, encoding="latin-1")
    assert file in refusal(run)


@pytest.mark.parametrize(
    "content", ["", "[" * 3000, "- a", "model", "a: [", "lr: 1", "model: {a: 1}", "date: 2026-99-99", "\xff"]
)
def test_a_damaged_recipe_is_named(run, content):
    (run / "recipe.yaml").write_text(content, encoding="latin-1")
    assert "recipe.yaml" in refusal(run)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["optimizer"], ..., "recipe.yaml has no optimizer"),
        (["schedule"], ["cosine"], "recipe.yaml: schedule must be text, got ['cosine']"),
        (["lr"], {"a": 1}, "recipe.yaml: lr must be a value or a list of values, got {'a': 1}"),
        (["a|b"], 1, "'a|b' is not a setting"),
        ([7], 1, "recipe.yaml: the key 7 must be text, got 7"),
    ],
)
def test_a_wrong_setting_is_named(run, keys, value, said):
    change(run / "recipe.yaml", keys, value)
    assert said in refusal(run)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (lambda text: "", "its last epoch ends at step 0 where summary.json has 552"),
        (lambda text: text[:-20], r"line \d+ is cut short"),
        (
            lambda text: text[: text[:-1].rindex("\n")] + "\n",
            "its last epoch ends at step 529 where",
        ),
        (
            lambda text: text[: text.index("\n", len(text) // 2) + 1],
            r"its last epoch ends at step \d+ where",
        ),
        (lambda text: "{}\n" + text, "metrics.jsonl, line 1 is not a metrics record"),
        (
            lambda text: text.replace('"step": 10,', '"step": "10",', 1),
            'line 1 is not a metrics record: .* a whole "step"',
        ),
        (
            lambda text: text.replace('"kind": "step"', '"kind": "stop"', 1),
            "line 1 is not a metrics record",
        ),
        (lambda text: text.replace('"top_1_correct"', '"top_1"'), "raw has no top_1_correct|no raw.top_1_correct"),
        (lambda text: "x" + text, r"line 1 is not JSON \(Expecting value"),
    ],
)
def test_a_damaged_log_is_named(run, cut, said):
    path = run / "metrics.jsonl"
    text = path.read_text()
    path.write_text(cut(text))
    sentence = refusal(run)
    assert "metrics.jsonl" in sentence and re.search(said, sentence)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["model_type"], "resnet", "model_type must be tinynet, got 'resnet'"),
        (["image_mean"], "x", "image_mean"),
        (["kernel_sizes"], None, "kernel_sizes"),
        (["num_channels"], 1, "image_mean must hold one number for each of the 1 channels"),
        (["hidden_act"], 3, "hidden_act"),
        (["crop_pct"], 0, "crop_pct must be above 0"),
        (["id2label"], ["a"], "id2label must be a mapping"),
        (["dtype"], "float", "dtype must be bfloat16 or float16 or float32 or float64, got 'float'"),
        (["torch_dtype"], [], "torch_dtype must be"),
        (["id2label"], {"x": "a"}, "best/config.json"),
        (["id2label", "3"], ..., "id2label must name the classes 0 to 8"),
        (["id2label", "3"], "caf\udce9", r"id2label.3 must be text, got 'caf\udce9'"),
        (["id2label"], {"0": "a", "1": "b"}, "it has 2 classes where the weights have 10"),
    ],
)
def test_a_wrong_network_is_named(run, keys, value, said):
    change(run / "best" / "config.json", keys, value)
    sentence = refusal(run)
    assert "best/config.json" in sentence and said in sentence


def test_a_processor_of_its_own_is_published_and_said(run):
    half = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": False, "resample": 2}
    for key, value in half.items():
        change(run / "best" / "preprocessor_config.json", [key], value)
    whole = read_run(run)
    card = model_card(whole, "me/x")
    published = json.loads(collect(whole, card)["preprocessor_config.json"])
    assert {key: published[key] for key in half} == half
    assert "(bilinear, antialiased, on 8-bit pixels)" in card
    assert "cut out, mean (0.5, 0.5, 0.5) subtracted and divided by (0.25, 0.25, 0.25). `preproc" in card


# Files that are not the run's


@pytest.mark.parametrize("file", FILES)
def test_a_link_out_of_the_run_is_refused(run, tmp_path, file):
    (run / file).rename(tmp_path / "elsewhere")
    (run / file).symlink_to(tmp_path / "elsewhere")
    sentence = refusal(run)
    assert sentence.startswith(f"{run / file} is a link to ") and "outside of the run" in sentence


def test_a_linked_folder_is_refused(run, tmp_path):
    (run / "best").rename(tmp_path / "elsewhere")
    (run / "best").symlink_to(tmp_path / "elsewhere")
    assert "is a link to" in refusal(run)


def test_links_within_a_run_that_is_linked_itself_are_followed(run, tmp_path):
    (run / "curves.png").rename(run / "new.png")
    (run / "curves.png").symlink_to("new.png")
    (tmp_path / "link").symlink_to(run)
    assert collect(read_run(tmp_path / "link"), "a card")["curves.png"].read_bytes() == (run / "new.png").read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_six_gigabytes_are_refused_unread(run, file):
    os.truncate(run / file, 6_000_000_000)  # sparse: it takes no space
    assert f"{run / file} has 6,000,000,000 bytes, but at most " in refusal(run)


@pytest.mark.parametrize("file", FILES)
def test_what_is_no_file_is_not_waited_for(run, file):
    (run / file).unlink()
    os.mkfifo(run / file)
    assert "is missing" in refusal(run) or "holds no run" in refusal(run)


# Names


def test_a_path_that_is_not_utf_8_is_refused(run, tmp_path):
    other = shutil.copytree(run, tmp_path / os.fsdecode(b"caf\xe9"))
    assert refusal(other) == f"the path {str(other)!r} is not UTF-8: rename its folders"


@pytest.mark.parametrize("text", ["me/x", "my-org/tinynet_a.in1k", "A1/0"])
def test_repositories(text):
    assert is_repository_id(text)


NO_REPOSITORIES = [
    "",
    "x",
    "me/x..y",
    "me/x--y",
    "me/x.git",
    "me/-x",
    "me/x.",
    "me/",
    "/x",
    "a/b/c",
    "me/x y",
    "me/x\n",
]


@pytest.mark.parametrize("text", [*NO_REPOSITORIES, "me/x\n", "me/t\u00efny", "me/" + "a" * 97])
def test_what_the_hub_takes_for_no_repository(text):
    assert not is_repository_id(text)
