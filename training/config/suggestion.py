"""Did you mean ...? For settings that are misspelled, or named as another trainer names them."""

import difflib
from collections.abc import Sequence

# Names from the original trainer and from transformers' whose nearest spelling here would be misleading or missing.
OTHER_NAMES = {
    "amp_level": "precision",
    "batch_size": "per_device_batch_size",
    "bn_eps": "batch_norm_eps",
    "bn_momentum": "batch_norm_momentum",
    "ckpt": "model",
    "data_path": "dataset",
    "drop": "dropout_rate",
    "drop_connect": "drop_path_rate",
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "opt": "optimizer",
    "opt_eps": "optimizer_eps",
    "per_print_times": "log_every_steps",
}


def suggestion(name: str, known: Sequence[str], prefix: str = "") -> str:
    """The end of a sentence about the unknown `name`."""
    nearest = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else "; --help lists all of them"
