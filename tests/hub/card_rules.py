"""The Hub's rules for the metadata of a model card, as its documentation states them (hub/model-cards).

Only what can be known without a network: forms and closed lists, not whether a dataset or a base model exists.
"""

import re

import yaml

FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
REPO_ID = re.compile(r"[A-Za-z0-9](?:[\w.-]*[\w])?(?:/[\w](?:[\w.-]*[\w])?)?")
LICENSES = {
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
    "openrail",
    "other",
    "unknown",
}
PIPELINE_TAGS = {"image-classification", "image-feature-extraction", "object-detection", "image-segmentation"}
RELATIONS = {"finetune", "adapter", "merge", "quantized"}


def card_errors(content: str) -> list[str]:
    """What the Hub would refuse of a README.md with `content`; an empty list where it takes it."""
    match = FRONT_MATTER.match(content)
    if match is None:
        return []  # a warning on the Hub: "empty or missing yaml metadata"
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"not valid YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["the metadata must be a mapping"]
    errors = []
    if metadata.get("license", "unknown") not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    if metadata.get("pipeline_tag", "image-classification") not in PIPELINE_TAGS:
        errors.append(f'"pipeline_tag" must be one of {sorted(PIPELINE_TAGS)}')
    if metadata.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    for name in ("tags", "datasets", "metrics", "base_model"):
        values = metadata.get(name, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{name}" must be text or a list of texts')
        elif name in ("datasets", "base_model"):
            errors += [f'"{name}": {v!r} is no repository id' for v in values if not REPO_ID.fullmatch(v)]
    if "base_model_relation" in metadata and "base_model" not in metadata:
        errors.append('"base_model_relation" needs "base_model"')
    return errors + _model_index_errors(metadata.get("model-index", []))


def _model_index_errors(models: object) -> list[str]:
    if not isinstance(models, list):
        return ['"model-index" must be a list']
    errors = []
    for number, model in enumerate(models):
        place = f'"model-index[{number}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'{place}.name" must be text')
            continue
        for index, result in enumerate(model.get("results", [])):
            here = f"{place}.results[{index}]"
            for field, keys in (("task", ["type"]), ("dataset", ["type", "name"])):
                part = result.get(field, {})
                errors += [f'{here}.{field}.{k}" must be text' for k in keys if not isinstance(part.get(k), str)]
            if not REPO_ID.fullmatch(str(result.get("dataset", {}).get("type"))):
                errors.append(f"{here}.dataset.type\" must be a dataset's id")
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                errors.append(f'{here}.metrics" must be a list')
                continue
            for metric in metrics:
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    errors.append(f'{here}.metrics" need type and value')
    return errors
