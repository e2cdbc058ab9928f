"""The config.json of timm-format repositories, read as fields of TinyNetConfig."""

from typing import Any

from .field_checks_tinynet import TIMM_MODEL_ARGS, for_channels


def fields_from_timm(timm_config: dict[str, Any], variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """
    The fields of a TinyNetConfig from a config.json that timm wrote (`timm.models._hub.save_config_for_hf`). Older
    files keep the fields of `pretrained_cfg` at the top level; newer ones carry the model's arguments in `model_args`.

    Args:
        timm_config (`dict`): What the file holds.
        variants (`dict`): `TINYNET_VARIANTS`.

    Raises:
        ValueError: The file describes another network than the five TinyNets, or one with changed building blocks.
    """
    architecture = timm_config["architecture"]
    if architecture not in variants:
        raise ValueError(f"architecture must be one of {', '.join(variants)}, got {architecture!r}")
    pretrained_cfg = timm_config.get("pretrained_cfg", timm_config)
    model_args = {"global_pool": timm_config.get("global_pool"), **timm_config.get("model_args", {})}
    if model_args.pop("global_pool") not in (None, "avg") or set(model_args) - set(TIMM_MODEL_ARGS):
        raise ValueError(
            f"model_args {model_args} or global_pool {timm_config.get('global_pool')!r} change the network; it must "
            f"pool by averaging, and only {list(TIMM_MODEL_ARGS)} can differ"
        )

    fields = {
        **variants[architecture],
        "num_labels": timm_config.get("num_classes", pretrained_cfg.get("num_classes", 1000)),
    }
    if "input_size" in pretrained_cfg:
        fields["num_channels"], fields["image_size"], _ = pretrained_cfg["input_size"]
    for theirs, ours in (("mean", "image_mean"), ("std", "image_std"), ("crop_pct", "crop_pct")):
        if theirs in pretrained_cfg:
            fields[ours] = pretrained_cfg[theirs]
    fields |= {TIMM_MODEL_ARGS[name]: value for name, value in model_args.items() if value is not None}
    for name in ("image_mean", "image_std"):
        if name in fields:  # earlier versions of timm left them as they were under in_chans
            fields[name] = for_channels(fields[name], fields.get("num_channels", 3))
    if (class_names := _timm_class_names(timm_config, pretrained_cfg)) is not None:
        if len(class_names) != fields["num_labels"]:
            raise ValueError(f"config.json names {len(class_names)} classes but has {fields['num_labels']}")
        fields["id2label"] = dict(enumerate(class_names))
    return fields


def _timm_class_names(*sources: dict[str, Any]) -> list[str] | None:
    """The names that timm stored: a list, or a dictionary by index; WordNet ids are described by a second one."""

    def first(*keys: str) -> Any:
        return next((source[key] for source in sources for key in keys if source.get(key)), None)

    names, descriptions = first("label_names", "labels"), first("label_descriptions") or {}
    if isinstance(names, dict):
        names = [names[index] for index in sorted(names, key=int)]
    return None if names is None else [descriptions.get(name, name) for name in names]


__all__ = ["fields_from_timm"]
