"""Exactly what is uploaded of a run, and nothing else: an allow-list, and a check that nothing private is in it.

config.json               of best/, with `auto_map`, which names the classes for trust_remote_code
preprocessor_config.json  likewise
model.safetensors         of best/
*_tinynet.py              the package's files of code
README.md                 the card
curves.png, metrics.jsonl, recipe.yaml
"""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token

import modeling_tinynet
from hub_card.run import Run
from hub_card.run_files import PublishError, run_file

AUTO_MAP = {
    "AutoConfig": "configuration_tinynet.TinyNetConfig",
    "AutoModel": "modeling_tinynet.TinyNetModel",
    "AutoModelForImageClassification": "modeling_tinynet.TinyNetForImageClassification",
    "AutoBackbone": "modeling_tinynet.TinyNetBackbone",
    "AutoImageProcessor": "image_processing_tinynet.TinyNetImageProcessor",
}
PACKAGE = Path(modeling_tinynet.__file__).parent
CODE = tuple(sorted(path.name for path in PACKAGE.glob("*_tinynet.py")))  # these import each other
TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
ABSOLUTE_PATH = re.compile(r"(?:/|~|[A-Za-z]:[\\/]|\\\\)")


def collect(run: Run, card: str) -> dict[str, bytes | Path]:
    """The files of the repository: path -> contents, or the file that holds them.

    Raises:
        PublishError: a file is missing, too large, or a link out of the run; or it holds a token, or a path of this
            machine.
    """
    config = {name: value for name, value in run.model_config.items() if name != "_name_or_path"}
    processor_map = {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}
    recipe = run.public_recipe()
    _refuse_paths("config.json", config)
    _refuse_paths("preprocessor_config.json", run.processor_config)
    _refuse_paths("metrics.jsonl", run.records)
    _refuse_paths("recipe.yaml", recipe)
    files: dict[str, bytes | Path] = {
        "README.md": card.encode(),
        "config.json": _json(config | {"auto_map": AUTO_MAP}),
        "preprocessor_config.json": _json(run.processor_config | {"auto_map": processor_map}),
        "model.safetensors": run_file(run.folder, "best/model.safetensors"),
        **{name: PACKAGE / name for name in CODE},
        "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=1000).encode(),
        "metrics.jsonl": run_file(run.folder, "metrics.jsonl"),
        "curves.png": run_file(run.folder, "curves.png"),
    }
    for path, content in files.items():
        _refuse_tokens(path, content)
    return files


def _json(value: dict[str, Any]) -> bytes:
    """As transformers writes it."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _refuse_tokens(path: str, content: bytes | Path) -> None:
    if isinstance(content, bytes):
        found = _holds_token(content)
    elif content.stat().st_size:
        with content.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = _holds_token(data)
    else:
        found = False
    if found:
        raise PublishError(f"{path} holds what looks like a Hugging Face token; remove it from the run first")


def _holds_token(data: bytes | mmap.mmap) -> bool:
    token = get_token()
    return TOKEN.search(data) is not None or bool(token and data.find(token.encode()) >= 0)


def _refuse_paths(path: str, value: Any) -> None:
    for text in _texts(value):
        if ABSOLUTE_PATH.match(text):
            raise PublishError(f"{path} names a place on this machine, {text!r}; remove it from the run first")


def _texts(value: Any) -> Iterator[str]:
    """All texts of a JSON value but class names, which may begin with anything."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in ("id2label", "label2id"):
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
