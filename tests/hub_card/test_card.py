"""The card of a real run says what the run's files say, in the form that the Hub takes."""

import copy
import dataclasses
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hub_card.card import model_card
from hub_card.run import Run
from tests.hub.card_rules import card_errors
from tests.hub.runs import FIXTURE

ROOT = Path(__file__).parents[2]
GOLDEN = FIXTURE.with_name("README.md")


@pytest.fixture
def run() -> Run:
    """The quick start's, without weights."""
    return Run(
        folder=FIXTURE,
        summary=json.loads((FIXTURE / "summary.json").read_text()),
        recipe=yaml.safe_load((FIXTURE / "recipe.yaml").read_text()),
        records=[json.loads(line) for line in (FIXTURE / "metrics.jsonl").read_text().splitlines()],
        model_config=json.loads((FIXTURE / "best" / "config.json").read_text()),
        processor_config=json.loads((FIXTURE / "best" / "preprocessor_config.json").read_text()),
    )


@pytest.fixture
def fine_tuned(run) -> Run:
    """A run on a Hub dataset, from a Hub model, of a published image size."""
    names = {"model": "timm/tinynet_e.in1k", "dataset": "me/flowers"}
    best = copy.deepcopy(run.summary["best"])
    best["per_class"][0] |= {"class": "a|b <script>", "top_1_correct": 1}
    return dataclasses.replace(
        run,
        summary=run.summary | names | {"best": best, "image_size": 106},
        recipe=run.recipe | names,
        model_config=run.model_config | {"image_size": 106},
    )


def test_the_card_of_the_quick_start_is_the_golden_one(run):
    """After a change of the template: look at the difference, and write the new card to the fixture."""
    assert model_card(run, "me/tinynet-digits") == GOLDEN.read_text(encoding="utf-8")


def test_a_run_whose_settings_changed_does_not_pass_for_one_that_can_be_done_again(run):
    changes = ["step 26: precision no -> bf16", "step 26: model /models/flowers -> tinynet_e: not read"]
    card = model_card(dataclasses.replace(run, summary=run.summary | {"changes": changes}), "me/x")
    (item,) = re.findall(r"does not reproduce it:\n\n(.*)\n\n<details>", card)
    assert html.unescape(re.sub(r"\\(.)", r"\1", item)) == f"- {changes[0]}"
    assert "needs to repeat the run" not in card
    assert card_errors(card) == []
    for unchanged in ({}, {"changes": []}):
        assert "needs to repeat the run" in model_card(
            dataclasses.replace(run, summary=run.summary | unchanged), "me/x"
        )


def test_a_folder_called_digits_is_not_scikit_learns(run):
    for dataset, is_local in (("digits", False), ("./digits", True)):
        summary = run.summary | {"dataset": dataset, "is_local": {"model": False, "dataset": is_local}}
        assert (
            "scikit-learn's" in html.unescape(model_card(dataclasses.replace(run, summary=summary), "me/x"))
        ) != is_local


def test_the_hub_takes_the_metadata(run, fine_tuned):
    for one in (run, fine_tuned):
        assert card_errors(model_card(one, "me/x")) == []


def test_metadata_of_a_run_from_scratch(run):
    metadata = ModelCard(model_card(run, "me/x")).data.to_dict()
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "image-classification"
    assert "arxiv:2010.14819" in metadata["tags"]
    assert "base_model" not in metadata
    assert "datasets" not in metadata  # the digits are not on the Hub
    (result,) = metadata["model-index"][0]["results"]
    counts = run.summary["best"]
    assert [metric["args"] for metric in result["metrics"]] == [
        {"correct": counts["top_1_correct"], "n": counts["n"]},
        {"correct": counts["top_5_correct"], "n": counts["n"]},
    ]
    assert [metric["value"] for metric in result["metrics"]] == [counts["top_1"], counts["top_5"]]


def test_metadata_of_a_fine_tuned_run(fine_tuned):
    metadata = ModelCard(model_card(fine_tuned, "me/x")).data.to_dict()
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("timm/tinynet_e.in1k", "finetune")
    assert metadata["datasets"] == ["me/flowers"]
    assert metadata["model-index"][0]["results"][0]["dataset"] == {"type": "me/flowers", "name": "me/flowers"}


def test_folders_of_this_machine_are_no_repositories(fine_tuned):
    local = fine_tuned.summary | {"is_local": {"model": True, "dataset": True}, "dataset": "data/flowers"}
    card = model_card(dataclasses.replace(fine_tuned, summary=local), "me/x")
    metadata = ModelCard(card).data.to_dict()
    assert "base_model" not in metadata and "datasets" not in metadata
    assert "fine-tuned on flowers." in card
    assert "data/flowers" not in card


def test_a_model_from_imagenet_says_what_it_inherits(run, fine_tuned):
    assert "inherits this" in model_card(fine_tuned, "me/x")
    assert "ImageNet" not in model_card(run, "me/x")


def test_latency_is_said_where_it_was_measured(run, fine_tuned, tmp_path):
    measured = json.loads((ROOT / "benchmarks" / "results" / "model.json").read_text())
    (forward,) = [r for r in measured["results"] if (r["variant"], r["what"]) == ("tinynet_e", "forward")]
    assert f"{forward['ours_ms']:.1f} ms on 2 threads of {measured['environment']['processor']}" in model_card(
        fine_tuned, "me/x"
    )
    assert "threads" not in model_card(run, "me/x")  # at 64 px nothing was measured
    assert "threads" not in model_card(fine_tuned, "me/x", benchmarks=tmp_path / "none.json")


def test_one_of_a_kind_is_singular(run):
    one = {"num_train": 1, "num_validation": 1, "epochs": 1, "steps": 1, "elapsed_s": 1.2}
    environment = run.summary["environment"] | {"cpu_cores": 1}
    card = model_card(dataclasses.replace(run, summary=run.summary | one | {"environment": environment}), "me/x")
    assert "\n1 image, 1 epoch, 1 update, 1 second on AMD EPYC (1 core), " in card
    assert "| 1 held-out image |" in card


def test_names_of_any_kind_leave_the_card_whole(run, fine_tuned):
    """Front matter, links and tables stay what they are, whatever a class, a dataset or a processor is called."""
    odd = "---\n| `a` $x$ &amp; <b> http://x.org [y](z) {{ z }}"
    best = copy.deepcopy(run.summary["best"])
    best["per_class"][3] |= {"class": odd, "top_1_correct": 0}
    environment = run.summary["environment"] | {"processor": odd, "commit": odd, "date": odd}
    names = {"dataset": odd, "is_local": {"model": False, "dataset": False}}
    summary = run.summary | names | {"best": best, "environment": environment}
    config = run.model_config | {"id2label": run.model_config["id2label"] | {"3": odd}}
    card = model_card(dataclasses.replace(run, summary=summary, model_config=config), "me/_x_")
    assert card_errors(card) == []
    metadata, shown = ModelCard(card).data, MarkdownIt("commonmark").enable("table").render(ModelCard(card).text)
    assert metadata.eval_results[0].dataset_name == odd
    as_shown = html.escape(" ".join(odd.split()))
    assert shown.count(as_shown) == 6  # the class twice, dataset, processor, commit, date
    assert "<h1>_x_</h1>" in shown
    rows = [row.count("<td") for row in shown.split("<tr>")]
    assert set(rows) <= {0, 2, 3}


def test_class_names_are_text_and_no_markup(fine_tuned):
    assert "| a&#124;b &lt;script&gt; | 1/36" in model_card(fine_tuned, "me/x")


def test_what_is_unknown_is_left_out(run):
    unmeasured = run.summary | {"images_per_s": None, "environment": run.summary["environment"] | {"commit": None}}
    unmeasured["best"] = {name: value for name, value in run.summary["best"].items() if name != "per_class"}
    card = model_card(dataclasses.replace(run, summary=unmeasured, records=[]), "me/x")
    for word in ("None", "null", "nan", "needed", "unknown", "TODO", "images/s", "commit", "| class |"):
        assert word not in card
    assert "EMA" not in card


# Numbers


def numbers_in(value: Any) -> Iterator[float]:
    """Every number of a JSON value, keys and those inside texts too."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers_in(name)
            yield from numbers_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, str):
        yield from (float(number) for number in re.findall(r"\d+(?:\.\d+)?", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def said_numbers(card: str) -> list[str]:
    """The numbers of the card's prose and tables: not those of code, of names and of the citation."""
    text = re.sub(r"```.*?```", "", html.unescape(card), flags=re.DOTALL)
    text = re.sub(r"arxiv[.:/\w]*2010\.14819|NeurIPS 2020|top-[15]|8-bit|divided by 255", "", text)
    text = re.sub(r"\w+ \d+(?:\.\d+)+(?:\.dev\d+)?|commit [\w-]+|\d{4}-\d\d-\d\d", "", text)  # versions, tested below
    return re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])", text)


def is_known(said: str, known: list[float]) -> bool:
    """Whether one of these numbers is written like this, with as many decimals; a whole number as it is."""
    decimals = len(said.partition(".")[2]) if "e" not in said else 12
    value = float(said.replace(",", ""))
    return any((round(number, decimals) if decimals else number) == value for number in known)


@pytest.mark.parametrize("kind", ["run", "fine_tuned"])
def test_every_number_of_the_card_is_in_a_file_of_the_run(kind, request):
    run = request.getfixturevalue(kind)
    card = model_card(run, "me/tinynet-digits")
    benchmarks = json.loads((ROOT / "benchmarks" / "results" / "model.json").read_text())
    files = [run.summary, run.recipe, run.model_config, run.processor_config]
    epoch = run.summary["best"]["epoch"]
    files += [r for r in run.records if r["kind"] == "epoch" and r["epoch"] == epoch]
    known = list(numbers_in(files)) + [round(number, 5) for number in numbers_in(run.recipe)]
    # The same in other words: percentages, millions, and what follows from config.json.
    measured = [] if kind == "run" else [benchmarks]
    known += [round(number, 1) for number in numbers_in(measured)]
    counts = [record[name] for record in files[4:] for name in ("raw", "ema")]
    known += [100 * c[name] for c in counts for name in ("top_1", "top_5")]
    known += [100 * c["top_1_correct"] / c["n"] for c in run.summary["best"]["per_class"]]
    known += [round(run.summary[name]) for name in ("images_per_s", "elapsed_s")]
    known += [run.summary["macs"] / 1e6, run.network.hidden_size, *run.network.hidden_sizes]
    said = said_numbers(card)
    assert len(said) > 60
    assert [number for number in said if not is_known(number, known)] == []


def test_a_number_that_is_in_no_file_is_found(run):
    assert not is_known("98.765", list(numbers_in(run.summary)))


def test_versions_and_origin_are_those_of_the_run(run):
    card, environment = model_card(run, "me/x"), run.summary["environment"]
    assert f"torch {environment['versions']['torch']}" in card
    assert f"commit {environment['commit']}" in card
    assert environment["processor"] in card
