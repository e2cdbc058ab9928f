"""What a finished run left in its folder, read and checked: the only source of what is published about it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from hub_card.run_files import PublishError, run_file
from hub_card.schema import (
    CLASS_COUNTS,
    COUNTS,
    NETWORK,
    PROCESSOR,
    RECIPE,
    RECORD,
    SUMMARY,
    check,
    is_text,
    metric_values,
)
from hub_card.transform import load_processor
from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig, TinyNetImageProcessor
from training.run.finished_run import (
    FinishedRun,
    FinishedRunError,
    damaged,
    read_finished_run,
    read_json,
    require_finished,
)

READ = ("summary.json", "recipe.yaml", "metrics.jsonl", "best/config.json", "best/preprocessor_config.json")


def is_repository_id(text: str) -> bool:
    """Whether the Hub takes `text` as owner/name."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


@dataclass(frozen=True)
class Run(FinishedRun):
    """A finished run with the two configurations of its best model, as their files have them."""

    model_config: dict[str, Any]
    processor_config: dict[str, Any]

    @property
    def network(self) -> TinyNetConfig:
        return TinyNetConfig.from_dict(self.model_config)

    @property
    def processor(self) -> TinyNetImageProcessor:
        return load_processor(self.processor_config)

    @property
    def dataset(self) -> str:
        """The dataset by a name that says nothing about this machine."""
        return public_name(self.summary["dataset"], self._is_local("dataset"))

    @property
    def hub_dataset(self) -> str | None:
        """Its id on the Hub, None where it came from elsewhere."""
        return self._hub_id("dataset")

    @property
    def base_model(self) -> str | None:
        """The id on the Hub of the model that was fine-tuned, None where there was none."""
        return self._hub_id("model")

    @property
    def is_fine_tuned(self) -> bool:
        return self.summary["model"] not in TINYNET_VARIANTS

    def _is_local(self, what: str) -> bool:
        return self.summary["is_local"][what]

    def _hub_id(self, what: str) -> str | None:
        name = self.summary[what]
        return name if is_repository_id(name) and not self._is_local(what) else None

    @property
    def changes(self) -> list[str]:
        """What later starts of the run, or of a branch of it, changed. A model's place is left out."""
        return [text for text in self.summary.get("changes", []) if not re.match(r"step \d+: model ", text)]

    def public_recipe(self) -> dict[str, Any]:
        """The recipe without what only this machine knows: places are left out, folders become their names."""
        private = ("class_names", "output_dir", "run_name", "resume", "report_to", "push_to_hub")
        recipe = {name: value for name, value in self.recipe.items() if name not in private}
        return recipe | {what: public_name(recipe[what], self._is_local(what)) for what in ("model", "dataset")}


def public_name(name: str, is_local: bool) -> str:
    """A dataset or a model without the folders that lead to it; `runs/flowers/best` is `flowers`."""
    if not is_local:
        return name
    parts = [part for part in Path(name).parts if part not in ("best", "last", "/", "~", ".", "..")]
    return parts[-1] if parts else "photos"


def read_run(folder: str | Path) -> Run:
    """Reads the folder of a finished run.

    Raises:
        PublishError: there is no such folder, it holds no finished run, or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if not is_text(str(folder)):
        raise PublishError(f"the path {str(folder)!r} is not UTF-8: rename its folders")
    try:
        require_finished(folder)
        for name in READ:
            run_file(folder, name)
        run = Run(
            **vars(read_finished_run(folder)),
            model_config=read_json(folder, "best/config.json"),
            processor_config=read_json(folder, "best/preprocessor_config.json"),
        )
        if "is_local" not in run.summary:
            raise PublishError(
                f"the run in {folder} was made by an older train.py, whose summary.json says too little"
            )
        _check(run)
    except FinishedRunError as error:
        raise PublishError(str(error)) from error
    return run


def _check(run: Run) -> None:
    check(run.summary, SUMMARY, "summary.json")
    counts = metric_values(run.summary.get("metrics", [])) | COUNTS
    class_counts = metric_values(run.summary.get("class_metrics", [])) | CLASS_COUNTS
    check(run.summary["best"], counts | {"per_class?": [class_counts]}, "summary.json", "best")
    check(run.recipe, RECIPE, "recipe.yaml")
    for number, record in enumerate(run.records, start=1):
        check(record, RECORD | {"raw?": (counts, None), "ema?": (counts, None)}, f"metrics.jsonl, line {number}")
    check(run.model_config, NETWORK, "best/config.json")
    check(run.processor_config, PROCESSOR, "best/preprocessor_config.json")
    last, steps = max((record["step"] for record in run.epochs), default=0), run.summary["steps"]
    if last != steps:
        raise damaged(
            run.folder / "metrics.jsonl", f"its last epoch ends at step {last} where summary.json has {steps}"
        )
    if unknown := next((name for name in run.recipe if not re.fullmatch(r"[a-z]\w*", name, re.ASCII)), None):
        raise damaged(run.folder / "recipe.yaml", f"{unknown!r} is not a setting")
    _check_network(run)


def _check_network(run: Run) -> None:
    """That config.json describes a network, with the classes of the weights."""
    path = run.folder / "best" / "config.json"
    try:
        network = run.network
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise damaged(path, str(error)) from error
    labels = network.id2label
    weights = run_file(run.folder, "best/model.safetensors")
    try:
        with safe_open(weights, "pt") as file:  # compares the file's length with its header
            rows = file.get_slice("classifier.weight").get_shape()[0]
    except (SafetensorError, OSError) as error:
        raise damaged(weights, str(error)) from error
    if rows != len(labels):
        raise damaged(path, f"it has {len(labels)} classes where the weights have {rows}")
