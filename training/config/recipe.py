"""Recipes: flat YAML files of settings to change. A mistake in one is named with its line."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from training.config.fields import FIELDS, ConfigError, Fields, one_sentence
from training.config.suggestion import suggestion


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The settings of a recipe, converted to their types.

    Scalars are read as the text that they are, and not by YAML's rules: `1e-6` is a number (a string in YAML 1.1) and
    `no` a word (False there).

    Raises:
        ConfigError: the file cannot be read, is not a flat mapping, or has a key that is unknown, repeated or has a
            wrong value; one sentence naming file and line.
    """
    texts: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value in _read_mapping(path).value:
        name, place = str(key.value), f"{path}:{key.start_mark.line + 1}"
        if name not in FIELDS:
            raise ConfigError(f"{place}: unknown key {name!r}{suggestion(name, list(FIELDS))}")
        if name in texts:
            raise ConfigError(f"{place}: {name} is given twice")
        texts[name], places[name] = _texts(value), place
    try:
        settings = Fields(**texts)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise ConfigError(f"{places[name]}: {one_sentence(error)}") from None
    return {name: getattr(settings, name) for name in texts}


def _read_mapping(path: str | Path) -> yaml.MappingNode:
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"recipe {path} cannot be read: {reason}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"recipe {path} must be lines of `key: value`, see configuration/ for examples")
    return root


def _texts(node: yaml.Node) -> str | list | dict:
    """A YAML value with its scalars as they are written."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _texts(value) for key, value in node.value}
    return [_texts(item) for item in node.value] if isinstance(node, yaml.SequenceNode) else node.value
