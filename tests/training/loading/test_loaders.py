import datasets
import pytest
import torch

from tests.image_data import NoisyCorner, batches, pictures, write_folder
from training.data.decoding import ImageDecodeError, decode_rgb
from training.data.permutation import epoch_permutation
from training.data.sources import load_splits
from training.errors import DataError
from training.loading.loaders import ImageDataset, build_eval_loader, build_train_loader
from training.loading.samples import SampleReader
from training.loading.sampling import TrainingPlan

# Some tests start more loader workers than a small machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def digits_dataset(count=None, seed=0):
    splits = load_splits("digits")
    split = splits.train if count is None else splits.train.select(range(count))
    return ImageDataset(split, SampleReader("image", "label", NoisyCorner(), 10), seed=seed)


def assert_same_batches(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_sample_is_what_the_key_says():
    dataset = digits_dataset(20, seed=5)
    sample = dataset[(3, 7)]
    pixels = decode_rgb(dataset.split[7]["image"])
    assert (sample["labels"], sample["index"]) == (dataset.split[7]["label"], 7)
    assert (sample["pixel_values"] == NoisyCorner()(pixels, (5, 3, 7))).all()
    assert (sample["pixel_values"] != dataset[(4, 7)]["pixel_values"]).any()


def test_batches_are_uint8_with_labels_and_indices():
    batch = next(iter(build_train_loader(digits_dataset(20), TrainingPlan(20, 8, 8), rank=0, total_steps=1)))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "pixel_values": (torch.uint8, (8, 3, 8, 8)),
        "labels": (torch.int64, (8,)),
        "index": (torch.int64, (8,)),
        "replaced": (torch.int64, (8,)),
    }


def test_workers_do_not_change_a_bit():
    """Over two epochs and into a third, with accumulation and short last batches."""
    dataset, plan = digits_dataset(45), TrainingPlan(45, 16, 4)
    expected = batches(build_train_loader(dataset, plan, rank=0, total_steps=8))
    assert len(expected) == 12 + 12 + 8
    for num_workers in (2, 4):
        loader = build_train_loader(dataset, plan, rank=0, total_steps=8, num_workers=num_workers)
        assert_same_batches(batches(loader), expected)


def test_two_ranks_train_on_the_samples_and_pixels_of_one_process():
    dataset = digits_dataset(90)
    whole = batches(build_train_loader(dataset, TrainingPlan(90, 32, 32), rank=0, total_steps=6))
    plan = TrainingPlan(90, 32, 16, num_processes=2)
    left, right = (batches(build_train_loader(dataset, plan, rank=rank, total_steps=6)) for rank in range(2))
    joined = [
        {name: torch.cat([one[name], other[name]]) for name in one} for one, other in zip(left, right, strict=True)
    ]
    assert_same_batches(joined, whole)
    order = [epoch_permutation(90, 0, epoch).tolist() for epoch in range(2)]
    assert [batch["index"].tolist() for batch in whole] == [
        epoch[start : start + 32] for epoch in order for start in (0, 32, 64)
    ]


def test_a_started_run_goes_on_with_the_same_batches():
    dataset, plan = digits_dataset(45), TrainingPlan(45, 16, 8)
    everything = batches(build_train_loader(dataset, plan, rank=0, total_steps=9))
    rest = build_train_loader(dataset, plan, rank=0, total_steps=9, start_step=4, num_workers=2)
    assert_same_batches(batches(rest), everything[plan.micro_batches_before(4) :])


def test_loaders_leave_the_global_generator_alone():
    dataset = digits_dataset(20)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches(build_train_loader(dataset, TrainingPlan(20, 8, 8), rank=0, total_steps=2))
    batches(build_eval_loader(dataset, batch_size=8))
    assert (torch.rand(3) == expected).all()


@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 65])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_evaluation_delivers_each_sample_once(count, num_processes):
    dataset = digits_dataset(count)
    ranks = [
        batches(build_eval_loader(dataset, batch_size=16, rank=rank, num_processes=num_processes))
        for rank in range(num_processes)
    ]
    delivered = [batch for rank in ranks for batch in rank]
    indices = torch.cat([batch["index"] for batch in delivered])
    assert indices.tolist() == list(range(count))
    assert torch.cat([batch["labels"] for batch in delivered]).tolist() == dataset.split["label"][:]


def test_evaluation_is_the_same_each_time_with_any_number_of_workers():
    dataset = digits_dataset(33)
    expected = batches(build_eval_loader(dataset, batch_size=16))
    loader = build_eval_loader(dataset, batch_size=16, num_workers=2)
    for _ in range(2):
        assert_same_batches(batches(loader), expected)


@pytest.mark.fault("15 labels missing or out of range")
@pytest.mark.parametrize("label", [-1, 3, None, 1.5])
def test_label_out_of_range_is_named_with_its_sample(label):
    split = datasets.Dataset.from_dict({"image": pictures(2), "label": [0, label]})
    with pytest.raises(DataError, match=f"^label {label} of sample 1 is not one of the 3 classes$"):
        ImageDataset(split, SampleReader("image", "label", NoisyCorner(), 3))[(0, 1)]


@pytest.mark.fault("13 bad images are named, or replaced on request")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_image_ends_loading_with_its_path(tmp_path, num_workers):
    write_folder(tmp_path, "train/ant/1.jpg", "train/ant/2.jpg", "train/bee/1.jpg", "val/ant/1.jpg")
    bad = tmp_path / "train/ant/2.jpg"
    bad.write_text("not an image")
    splits = load_splits(str(tmp_path))
    dataset = ImageDataset(splits.train, SampleReader(splits.image_column, splits.label_column, NoisyCorner(), 2))
    loader = iter(build_train_loader(dataset, TrainingPlan(3, 3, 3), rank=0, total_steps=1, num_workers=num_workers))
    with pytest.raises(ImageDecodeError) as error:
        next(loader)
    message = str(error.value).strip()
    del error  # its traceback and this frame hold each other, and the garbage collector is slow to end workers
    # A worker's message is its whole traceback, the sentence at its end.
    assert message.endswith(f"{bad} (sample 1): is not an image, or its format is unknown to Pillow")


def with_bad_images(bad: list[int], count: int = 12) -> datasets.Dataset:
    images = [
        {"bytes": b"<html>", "path": f"{i}.jpg"} if i in bad else image for i, image in enumerate(pictures(count))
    ]
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    return datasets.Dataset.from_dict({"image": images, "label": [i % 3 for i in range(count)]}, features=features)


@pytest.mark.fault("13 bad images are named, or replaced on request")
def test_a_bad_image_is_replaced_by_what_its_key_says():
    dataset = ImageDataset(
        with_bad_images([3, 7]), SampleReader("image", "label", NoisyCorner(), 3), replace_bad_images=True
    )
    keys = [(epoch, index) for epoch in range(8) for index in (2, 3)]
    samples = [dataset[key] for key in keys]
    assert [(sample["index"], sample["replaced"]) for sample in samples] == 8 * [(2, 0), (3, 1)]
    again = [dataset[key] for key in reversed(keys)][::-1]
    for one, other in zip(samples, again, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and one["labels"] == other["labels"]
    labels = [sample["labels"] for sample in samples[1::2]]
    assert len(set(labels)) > 1  # another one in each epoch


def test_a_data_set_without_good_images_is_named_by_the_one_asked_for():
    dataset = ImageDataset(
        with_bad_images([*range(12)]), SampleReader("image", "label", NoisyCorner(), 3), replace_bad_images=True
    )
    with pytest.raises(ImageDecodeError, match=r"^5\.jpg \(sample 5\): is not an image"):
        dataset[(0, 5)]
