"""Adapters of PEFT: what to train and to save, and a warning where the statistics of BatchNorm would be lost."""

import sys

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import logging

logger = logging.get_logger(__name__)

# For `LoraConfig(r=8, **TINYNET_LORA)`, and alike for IA3Config, OFTConfig and others: all pointwise convolutions get
# an adapter. The classifier is trained whole, and so is BatchNorm, whose running statistics training changes even
# where its weights are frozen: what is not in modules_to_save is no part of the adapter.
TINYNET_LORA: dict[str, list[str]] = {
    "target_modules": ["conv_pw", "conv_pwl"],
    "modules_to_save": ["classifier", "bn1", "bn2", "bn3"],
}


def warn_of_unsaved_statistics(model: nn.Module) -> None:
    """
    Warns, once for each model, when a forward pass in training mode is about to move the running statistics of a
    BatchNorm that the saved adapter will lack. PEFT need not be installed, and is not imported.

    An adapter around another part of a larger network is not seen, nor is anything in a compiled forward pass.
    """
    # PEFT freezes what it does not train. Where the first parameter is trained there is no adapter, which is cheap.
    # The submodule: sys.modules["peft"] can be None, which forbids the import.
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None or next(model.parameters()).requires_grad or hasattr(model, "_has_warned"):
        return
    if any(isinstance(module, tuners.BaseTunerLayer) for module in model.modules()) and _moving_batch_norms(model):
        model._has_warned = True  # type: ignore[assignment]
        logger.warning(
            "BatchNorm runs in training mode under an adapter that does not hold its running statistics: once saved"
            " and loaded again, this model will answer differently. Pass"
            f" modules_to_save={TINYNET_LORA['modules_to_save']} to the adapter's configuration, as"
            " modeling_tinynet.TINYNET_LORA does, or keep BatchNorm in eval mode."
        )


def _moving_batch_norms(module: nn.Module) -> bool:
    """Whether a BatchNorm in training mode belongs to the frozen network, and not to a copy that PEFT saves."""
    if isinstance(module, _BatchNorm):
        return module.training and module.track_running_stats
    if isinstance(module, sys.modules["peft.utils.other"].AuxiliaryTrainingWrapper):
        return False
    if isinstance(getattr(module, "base_layer", None), _BatchNorm):  # of LNTuning, which trains and saves a copy
        return False
    return any(_moving_batch_norms(child) for child in module.children())


__all__ = ["TINYNET_LORA", "warn_of_unsaved_statistics"]
