"""What a finished run left in its folder, read and checked: the only source of what is published about it."""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from modeling_tinynet import TINYNET_VARIANTS, TinyNetConfig

REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class PublishError(ValueError):
    """A run cannot be published. The message is one sentence and says what to do."""


@dataclass(frozen=True)
class Run:
    """`summary`, `recipe`, `records` and the two configurations are the files' contents."""

    folder: Path
    summary: dict[str, Any]
    recipe: dict[str, Any]
    records: list[dict[str, Any]]  # metrics.jsonl
    model_config: dict[str, Any]
    processor_config: dict[str, Any]

    @property
    def network(self) -> TinyNetConfig:
        return TinyNetConfig.from_dict(self.model_config)

    @property
    def dataset(self) -> str:
        """The data set by a name that says nothing about this machine."""
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
        return name if REPOSITORY_ID.fullmatch(name) and not self._is_local(what) else None

    def public_recipe(self) -> dict[str, Any]:
        """The recipe without what only this machine knows: places are left out, folders become their names."""
        private = ("class_names", "output_dir", "run_name", "resume", "report_to", "push_to_hub")
        recipe = {name: value for name, value in self.recipe.items() if name not in private}
        return recipe | {what: public_name(recipe[what], self._is_local(what)) for what in ("model", "dataset")}


def public_name(name: str, is_local: bool) -> str:
    """A data set or a model without the folders that lead to it; `runs/flowers/best` is `flowers`."""
    if not is_local:
        return name
    parts = [part for part in Path(name).parts if part not in ("best", "last", "/", "~", ".", "..")]
    return parts[-1] if parts else "pictures"


def read_run(folder: str | Path) -> Run:
    """Reads the folder of a finished run.

    Raises:
        PublishError: there is no such folder, it holds no finished run, or a file of it is missing or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        others = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        near = difflib.get_close_matches(folder.name, others, n=1)
        hint = f"; did you mean {folder.with_name(near[0])}?" if near else "; name the folder of a run"
        raise PublishError(f"there is no folder {folder}{hint}")
    if not (folder / "summary.json").exists():
        if folder.name in ("best", "last") and (folder.parent / "summary.json").exists():
            raise PublishError(f"{folder} is the model of a run; name the run's own folder, {folder.parent}")
        if (folder / "recipe.yaml").exists():
            raise PublishError(f"the run in {folder} is not finished; start it again with the same command first")
        raise PublishError(f"{folder} holds no run of train.py: it has no summary.json")
    try:
        run = Run(
            folder=folder,
            summary=json.loads((folder / "summary.json").read_text()),
            recipe=yaml.safe_load((folder / "recipe.yaml").read_text()),
            records=[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()],
            model_config=json.loads((folder / "best" / "config.json").read_text()),
            processor_config=json.loads((folder / "best" / "preprocessor_config.json").read_text()),
        )
        with safe_open(folder / "best" / "model.safetensors", "pt"):  # compares the file's length with its header
            pass
    except OSError as error:
        raise PublishError(
            f"the run in {folder} is not complete: {error.filename or error}: {error.strerror}"
        ) from error
    except (ValueError, yaml.YAMLError, SafetensorError) as error:
        problem = " ".join(str(error).split())
        raise PublishError(f"a file of the run in {folder} is damaged: {problem}") from error
    if "is_local" not in run.summary:
        raise PublishError(f"the run in {folder} was made by an older train.py, whose summary.json says too little")
    return run
