"""A stream delivers what it holds, shuffled anew in each epoch, and resumes where it was left."""

import itertools
from collections import Counter

import datasets
import numpy as np
import pytest
import torch

from tests.image_data import CLASS_LABEL, NoisyCorner, batches, picture
from training.data.decoding import ImageDecodeError, decode_rgb
from training.data.sources import load_splits, num_samples
from training.errors import DataError
from training.loading import streaming
from training.loading.loaders import build_dataset, build_eval_loader, build_train_loader
from training.loading.sampling import TrainingPlan
from training.loading.streaming import StreamPositions

# Some tests start more loader workers than a small machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

SIZES = {"train": 60, "validation": 9}
SHARDS = {"train": 6, "validation": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Parquet in several files for each split, with the sizes stated as on the Hub."""
    return stream_folder(tmp_path_factory.mktemp("stream"))


def stream_folder(root):
    for split, count in SIZES.items():
        for shard in range(SHARDS[split]):
            name = f"{split}-{shard:05}-of-{SHARDS[split]:05}.parquet"
            write_parquet(root / "data" / name, range(shard, count, SHARDS[split]))
    sizes = "".join(f"  - name: {name}\n    num_bytes: 1\n    num_examples: {n}\n" for name, n in SIZES.items())
    (root / "README.md").write_text(f"---\ndataset_info:\n  splits:\n{sizes}---\n")
    return str(root)


def evaluation(splits, rank=0, num_processes=1):
    columns = (splits.image_column, splits.label_column)
    shared = {"columns": columns, "num_classes": 3, "seed": 0, "rank": rank, "num_processes": num_processes}
    return build_dataset(splits.validation, NoisyCorner(), **shared)


def training(splits, plan, *, num_workers, rank=0, start_step=0, saved=None, **options):
    """(positions, micro-batches) of one rank from `start_step` on."""
    positions = StreamPositions(
        num_workers,
        plan.micro_batches_before(start_step),
        start_step // plan.steps_per_epoch,
        saved,
        rank=rank,
        num_processes=plan.num_processes,
    )
    dataset = build_dataset(
        splits.train,
        options.pop("transform", NoisyCorner()),
        columns=(splits.image_column, splits.label_column),
        num_classes=3,
        seed=0,
        rank=rank,
        num_processes=plan.num_processes,
        positions=positions,
        **options,
    )
    loader = build_train_loader(dataset, plan, rank=rank, total_steps=1000, num_workers=num_workers)
    return positions, positions.followed(iter(loader))


def test_a_streamed_test_split_without_labels_is_told_before_training(tmp_path):
    """Not after an epoch, when it is evaluated on."""
    write_parquet(tmp_path / "train.parquet", range(6))
    features = datasets.Features({"image": datasets.Image(), "label": CLASS_LABEL})
    rows = {"image": [{"bytes": picture(0), "path": None}], "label": [-1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match="has no validation split, and none can be held out of a stream; name one"):
        load_splits(str(tmp_path), streaming=True)


def test_stream_states_names_and_sizes(folder):
    splits = load_splits(folder, streaming=True)
    assert splits.class_names == ["ant", "bee", "cat"]
    assert (num_samples(splits.train), num_samples(splits.validation)) == (60, 9)
    assert splits.description == f"{folder}, streamed: 3 classes, evaluated on its split 'validation'"


def test_stream_of_unknown_size_is_refused(tmp_path):
    dataset = stream_folder(tmp_path)
    (tmp_path / "README.md").unlink()
    with pytest.raises(DataError, match="does not state its number of samples"):
        num_samples(load_splits(dataset, streaming=True).train)


@pytest.mark.parametrize(("num_processes", "num_workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 0), (1, 3)])
def test_streamed_evaluation_delivers_each_sample_once(folder, num_processes, num_workers):
    splits = load_splits(folder, streaming=True)
    delivered = []
    for rank in range(num_processes):
        delivered += batches(
            build_eval_loader(evaluation(splits, rank, num_processes), batch_size=2, num_workers=num_workers)
        )
    labels = torch.cat([batch["labels"] for batch in delivered])
    assert torch.bincount(labels).tolist() == [3, 3, 3]
    indices = torch.cat([batch["index"] for batch in delivered]).tolist()
    assert len(set(indices)) == 9


def write_splits(root, numbers):
    for split in SIZES:
        write_parquet(root / f"{split}.parquet", numbers)


def write_parquet(path, numbers):
    """The images of these numbers, in the classes 0, 1 and 2 in turns; None is a file that is no image."""
    images = [{"bytes": b"<html>" if n is None else picture(n), "path": None} for n in numbers]
    features = datasets.Features({"image": datasets.Image(), "label": CLASS_LABEL})
    rows = {"image": images, "label": [(n or 0) % 3 for n in numbers]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


class FirstPixels:
    """The image's own first pixels: they tell the samples apart."""

    def __call__(self, image, key):
        return image[:, :4, :4].contiguous()


def identities(batch):
    return [pixels.numpy().tobytes() for pixels in batch["pixel_values"]]


def stored(splits):
    """The identities of all training images."""
    return sorted(FirstPixels()(decode_rgb(row["image"]), None).numpy().tobytes() for row in splits.train)


def test_each_epoch_delivers_each_sample_once_in_another_order(folder):
    splits = load_splits(folder, streaming=True)
    plan = TrainingPlan(60, 10, 5, drop_last=True)
    _, loader = training(splits, plan, num_workers=0, transform=FirstPixels())
    epochs = [list(itertools.chain(*(identities(next(loader)) for _ in range(12)))) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [stored(splits)] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize(
    ("num_processes", "num_workers"), [(1, 2), (2, 1), (2, 2), (4, 2)], ids=lambda number: str(number)
)
def test_processes_and_workers_share_an_epoch(folder, num_processes, num_workers):
    # (4, 2): eight lanes of six shards, so that some shards are read by two lanes.
    splits = load_splits(folder, streaming=True)
    plan = TrainingPlan(60, 4 * num_processes, 1, num_processes, drop_last=True)
    seen = []
    for rank in range(num_processes):
        positions, loader = training(splits, plan, num_workers=num_workers, rank=rank, transform=FirstPixels())
        for batch in itertools.islice(loader, 200):
            if batch["position"][0, 0] == 0:
                seen += identities(batch)
            elif (positions.tensor[:, 0] > 0).all():
                break
    assert sorted(seen) == stored(splits)


@pytest.mark.parametrize("num_workers", [0, 2, 3])
@pytest.mark.parametrize("steps", [1, 5, 8, 13])
def test_a_stream_goes_on_with_the_very_next_sample(folder, num_workers, steps):
    splits = load_splits(folder, streaming=True)
    plan = TrainingPlan(60, 8, 4, drop_last=True)
    _, loader = training(splits, plan, num_workers=num_workers)
    undisturbed = list(itertools.islice(loader, 2 * steps + 20))
    positions, loader = training(splits, plan, num_workers=num_workers)
    for _ in range(2 * steps):
        next(loader)
    saved = positions.tensor[None].clone()
    resumed, loader = training(splits, plan, num_workers=num_workers, start_step=steps, saved=saved)
    assert resumed.is_exact
    for batch, expected in zip(itertools.islice(loader, 20), undisturbed[2 * steps :], strict=True):
        for name in ("pixel_values", "labels", "index", "position"):
            assert torch.equal(batch[name], expected[name])


def test_with_another_number_of_workers_the_epoch_begins_anew(folder):
    splits = load_splits(folder, streaming=True)
    plan = TrainingPlan(60, 8, 4, drop_last=True)
    saved = torch.tensor([[[1, 0, 3, 3], [1, 0, 4, 4]]])
    positions, loader = training(splits, plan, num_workers=3, start_step=10, saved=saved)
    assert not positions.is_exact
    _, fresh = training(splits, plan, num_workers=3, start_step=10)
    assert torch.equal(next(loader)["pixel_values"], next(fresh)["pixel_values"])
    assert positions.tensor[:, 0].tolist() == [1, 1, 1]


def test_a_block_takes_rows_from_several_shards_in_turns(folder, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_ROWS", 8)
    splits = load_splits(folder, streaming=True)
    shard_of = {
        FirstPixels()(decode_rgb(row["image"]), None).numpy().tobytes(): shard
        for shard in range(6)
        for row in splits.train.shard(6, shard)
    }
    _, loader = training(splits, TrainingPlan(60, 8, 8, drop_last=True), num_workers=0, transform=FirstPixels())
    counts = Counter(shard_of[pixels] for pixels in identities(next(loader)))
    assert sorted(counts.values()) == [2, 2, 2, 2]


def test_bad_images_of_a_stream_are_left_out_and_counted(tmp_path):
    write_splits(tmp_path / "some", [None, *range(9), None, None, *range(9, 20)])
    splits = load_splits(str(tmp_path / "some"), streaming=True)
    plan = TrainingPlan(20, 5, 5, drop_last=True)
    with pytest.raises(ImageDecodeError, match="is not an image"):
        list(itertools.islice(training(splits, plan, num_workers=0)[1], 4))
    _, loader = training(splits, plan, num_workers=0, replace_bad_images=True, transform=FirstPixels())
    epoch = list(itertools.islice(loader, 4))
    assert len({pixels for batch in epoch for pixels in identities(batch)}) == 20
    assert np.concatenate([batch["replaced"].numpy() for batch in [*epoch, next(loader)]]).sum() >= 3

    write_splits(tmp_path / "all", 23 * [None])
    splits = load_splits(str(tmp_path / "all"), streaming=True)
    with pytest.raises(ImageDecodeError, match="is not an image"):
        next(training(splits, plan, num_workers=0, replace_bad_images=True)[1])


def test_a_stream_without_samples_is_named(tmp_path):
    write_splits(tmp_path / "none", [])
    splits = load_splits(str(tmp_path / "none"), streaming=True)
    with pytest.raises(DataError, match="the stream holds no training sample"):
        next(training(splits, TrainingPlan(4, 2, 2, drop_last=True), num_workers=0)[1])


def test_a_loader_refuses_the_stream_of_another_purpose(folder):
    splits = load_splits(folder, streaming=True)
    plan = TrainingPlan(60, 8, 4, drop_last=True)
    with pytest.raises(ValueError, match="a stream that does not end: give build_dataset the positions"):
        build_train_loader(evaluation(splits), plan, rank=0, total_steps=1)
    columns = (splits.image_column, splits.label_column)
    options = {"columns": columns, "num_classes": 3, "seed": 0, "rank": 0, "num_processes": 1}
    endless = build_dataset(splits.train, NoisyCorner(), positions=StreamPositions(0, 0, 0, None), **options)
    with pytest.raises(ValueError, match="a stream that ends: give build_dataset no positions"):
        build_eval_loader(endless, batch_size=2)


def test_stream_goes_with_full_batches_only(folder):
    splits = load_splits(folder, streaming=True)
    with pytest.raises(ValueError, match="set drop_last"):
        training(splits, TrainingPlan(60, 8, 4), num_workers=0)
