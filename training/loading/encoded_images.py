"""All encoded images of a stored split, each turned into something small by a loader worker."""

from collections.abc import Callable
from typing import Any, TypeVar

import datasets
from torch.utils.data import Dataset

from training.data.decoding import name_with_path

T = TypeVar("T")
EncodedImage = dict[str, Any] | None  # `{"bytes": ..., "path": ...}` as `datasets.Image(decode=False)` gives it


class EncodedImages(Dataset[T]):
    """A stored split as `read(image, name)` of each image, by index. Pixels do not leave the worker.

    Args:
        split: with a column of encoded images, `Image(decode=False)`.
        image_column: its name.
        name: of the split, in messages.
        read: gets an encoded image and the sample's name for messages, such as `sample 7 of train`.
    """

    def __init__(
        self, split: datasets.Dataset, image_column: str, name: str, read: Callable[[EncodedImage, str], T]
    ) -> None:
        self.split = split.select_columns([image_column])
        self.image_column = image_column
        self.name = name
        self.read = read

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> T:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[T]:
        """Called by `DataLoader` with a batch of indices: reading rows together takes a fraction of the time."""
        images = self.split[indices][self.image_column]
        return [self.read(image, self._sample(index)) for image, index in zip(images, indices, strict=True)]

    def place(self, index: int) -> str:
        """The sample with its path, as messages name it: `photos/cat.jpg (sample 7 of train)`."""
        return name_with_path(self.split[index][self.image_column], self._sample(index))

    def _sample(self, index: int) -> str:
        return f"sample {index} of {self.name}"
