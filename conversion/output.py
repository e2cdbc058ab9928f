"""The folder that a conversion writes: read back and compared before it counts as one."""

import hashlib
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from conversion.checkpoint import ConversionError
from modeling_tinynet import TinyNetForImageClassification, TinyNetImageProcessor

WEIGHTS_FILE = "model.safetensors"


def write(network: TinyNetForImageClassification, folder: Path) -> str:
    """
    Saves network and image processor, reads both back, and compares: tensors bit by bit, and all settings.

    Returns:
        The SHA-256 of the weights file, in hexadecimal.

    Raises:
        RuntimeError: What was read back is something else.
    """
    processor = TinyNetImageProcessor.from_config(network.config)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".convert-") as unchecked:
        network.save_pretrained(unchecked)
        processor.save_pretrained(unchecked)
        saved = TinyNetForImageClassification.from_pretrained(unchecked).state_dict()
        for name, tensor in network.state_dict().items():
            if tensor.dtype != saved[name].dtype or tensor.numpy().tobytes() != saved[name].numpy().tobytes():
                raise RuntimeError(f"{name} came back from {WEIGHTS_FILE} as something else")
        if TinyNetImageProcessor.from_pretrained(unchecked).to_dict() != processor.to_dict():
            raise RuntimeError("the image processor came back as something else")
        del saved  # unmaps the file, which Windows otherwise refuses to move
        # The weights last: without them nobody takes the folder for a model.
        for path in sorted(Path(unchecked).iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
            path.rename(folder / path.name)
    with (folder / WEIGHTS_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_or_nothing(network: TinyNetForImageClassification, folder: Path) -> str:
    """
    `write` into a folder that is empty or does not exist; folders made for it go if it fails.

    Raises:
        ConversionError: The folder cannot be made or written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return write(network, folder)
    except (OSError, SafetensorError) as error:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise ConversionError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}") from error
