"""A label out of range must not reach the device: a kernel that meets one there ends the process without a name."""

import pytest
import torch

from tests.gpu.training_run import DEVICE
from training.data.sources import load_splits
from training.errors import DataError
from training.loading.loaders import ImageDataset, build_eval_loader
from training.loading.samples import SampleReader
from training.optim.loss import smoothed_targets, soft_cross_entropy
from training.transforms.augmentation import EvalTransform

pytestmark = pytest.mark.gpu


def test_a_label_out_of_range_is_named_on_the_host_and_the_device_goes_on():
    splits = load_splits("digits")
    transform = EvalTransform(image_size=8, resize_size=8)
    # Nine classes for ten digits: the nines are out of range.
    dataset = ImageDataset(splits.train, SampleReader(splits.image_column, splits.label_column, transform, 9))
    with pytest.raises(DataError, match=r"label 9 of sample .* is not one of the 9 classes"):
        for batch in build_eval_loader(dataset, batch_size=8):
            targets = smoothed_targets(batch["labels"].to(DEVICE), 9, 0.1)
            soft_cross_entropy(torch.zeros_like(targets), targets)
    torch.testing.assert_close(torch.ones(4, device=DEVICE).sum().cpu(), torch.tensor(4.0))
