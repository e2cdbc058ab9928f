"""Samples of a streamed dataset: exact evaluation, and training that is shuffled and can be resumed.

Each loader worker of each process reads a *lane* of its own: the shards that fall to it in an order of the epoch, four
at a time and in turns, in blocks of a thousand rows that are shuffled one by one. All of it is a function of (seed,
epoch, lane), so that a place in a stream is four numbers. `IterableDataset.shuffle` is not used: what its buffer holds
cannot be restored, and over Parquet it sleeps for five seconds at the end of each pass.

What differs from a stored split: the order is only as random as the shards and the block, and depends on the numbers
of processes and loader workers.
"""

import itertools
import random
from collections.abc import Generator, Iterator
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset, get_worker_info

from training.data.decoding import ImageDecodeError
from training.data.permutation import epoch_permutation
from training.errors import DataError
from training.loading.samples import REPLACEMENT_TRIES, SampleReader

OPEN_SHARDS = 4  # of a lane, from which rows come in turns
READ_ROWS = 32  # of one shard at once
BLOCK_ROWS = 1000  # shuffled together, in memory as encoded bytes: about 110 MB of ImageNet in each worker


class EmptyStreamError(DataError):
    """There is no sample for one of the processes."""

    told_by = "each"


class StreamedEvaluation(IterableDataset):
    """One unshuffled pass of one rank; over all ranks and workers each sample exactly once.

    Args:
        split: with the reader's two columns.
        reader: makes a sample of a row.
        rank, num_processes: this process, and how many share the stream.
    """

    def __init__(
        self, split: datasets.IterableDataset, reader: SampleReader, *, rank: int = 0, num_processes: int = 1
    ) -> None:
        self.split = split_dataset_by_node(split, rank, num_processes)
        self.reader = reader
        self.rank = rank
        self.num_processes = num_processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        num_workers, worker = _worker()
        indices = itertools.count(self.rank * num_workers + worker, self.num_processes * num_workers)
        for row, index in zip(self.split, indices, strict=False):
            image, label = row[self.reader.image_column], row[self.reader.label_column]
            yield self.reader.sample(image, label, (0, 0, index))


class StreamedTraining(IterableDataset):
    """The endless training stream of one rank: samples as of `ImageDataset`, and a `position`.

    `index` counts an epoch's rows over all lanes and is no position in the dataset. A lane that has less to read
    than others begins its next epoch earlier. Where there are fewer shards than lanes, several lanes read one shard
    and take every n-th row.

    Args:
        split, reader, rank, num_processes: as for `StreamedEvaluation`.
        start: where this rank's lanes begin; number m of the run's micro-batches comes from worker m % num_workers.
        seed: of the run.
        replace_bad_images: take the next image in place of one that cannot be decoded.

    Raises:
        EmptyStreamError: on iteration.
        ImageDecodeError: on iteration, an image cannot be decoded; with `replace_bad_images`, nor can the next ten.
    """

    def __init__(
        self,
        split: datasets.IterableDataset,
        reader: SampleReader,
        *,
        start: "StreamPositions",
        seed: int,
        rank: int,
        num_processes: int,
        replace_bad_images: bool = False,
    ) -> None:
        self.split = split
        self.reader = reader
        self.first_batch = start.first_batch
        self.positions = start.tensor.clone()  # int64 (num_workers or 1, 4); `start` itself moves on with the run
        self.seed = seed
        self.rank = rank
        self.num_processes = num_processes
        self.replace_bad_images = replace_bad_images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        num_workers, worker = _worker()
        own_lane = (worker + self.first_batch) % num_workers
        lane, lanes = self.rank * num_workers + own_lane, self.num_processes * num_workers
        first_epoch, first_group, since_group, since_epoch = self.positions[own_lane].tolist()
        left_out = 0
        for epoch in itertools.count(first_epoch):
            groups = self._groups(epoch, lane, lanes)
            for group in range(first_group, len(groups)):
                rows = self._shuffled_rows(groups[group], f"stream/{self.seed}/{epoch}/{lane}/{group}")
                for image, label in itertools.islice(rows, since_group, None):
                    key = (self.seed, epoch, lane + since_epoch * lanes)
                    since_group, since_epoch = since_group + 1, since_epoch + 1
                    position = torch.tensor([epoch, group, since_group, since_epoch])
                    try:
                        sample = self.reader.sample(image, label, key)
                    except ImageDecodeError:
                        left_out += 1
                        if not self.replace_bad_images or left_out > REPLACEMENT_TRIES:
                            raise
                    else:
                        yield sample | {"position": position, "replaced": left_out}
                        left_out = 0
                since_group = 0
            if not since_epoch:
                raise EmptyStreamError(f"the stream holds no training sample for process {self.rank}")
            first_group = since_epoch = 0

    def _groups(self, epoch: int, lane: int, lanes: int) -> list[list[tuple[int, int, int]]]:
        """The lane's pieces of the epoch, (shard, first row, every so many rows), in groups that are open together."""
        num_shards = self.split.num_shards
        parts = -(-lanes // num_shards)
        order = epoch_permutation(num_shards, self.seed, epoch).tolist()
        pieces = [(shard, part, parts) for part in range(parts) for shard in order][lane::lanes]
        return [pieces[start : start + OPEN_SHARDS] for start in range(0, len(pieces), OPEN_SHARDS)]

    def _shuffled_rows(self, pieces: list[tuple[int, int, int]], key: str) -> Iterator[tuple[dict[str, Any], int]]:
        opened = [itertools.islice(self._shard(shard), part, None, parts) for shard, part, parts in pieces]
        in_turns = (row for turn in itertools.zip_longest(*opened) for row in turn if row is not None)
        for number in itertools.count():
            block = list(itertools.islice(in_turns, BLOCK_ROWS))
            if not block:
                return
            random.Random(f"{key}/{number}").shuffle(block)
            yield from block

    def _shard(self, number: int) -> Iterator[tuple[dict[str, Any], int]]:
        # `__iter__` would share the one shard out among the loader workers once more; `iter` does not.
        for rows in self.split.shard(self.split.num_shards, number).iter(batch_size=READ_ROWS):
            yield from self.reader.images_and_labels(rows)


class StreamPositions:
    """Where the loader workers of one rank are in their streams, for the checkpoint.

    Args:
        num_workers: of the loader.
        first_batch: the number, in the run, of the first micro-batch to come.
        epoch: where to begin, if `saved` does not say.
        saved: `tensor` of all ranks at the checkpoint, int64 (processes, workers, 4); None for a new run.
        rank, num_processes: this process, and how many there are now.

    Attributes:
        tensor: int64 (workers, 4), for each lane: epoch, number of the group of open shards, rows read since the group
            began, rows read since the epoch began.
        is_exact: the stream continues with the sample after the last one; else the epoch starts over, because a new
            run starts there, or because another number of processes or workers now shares the stream.
    """

    def __init__(
        self,
        num_workers: int,
        first_batch: int,
        epoch: int,
        saved: torch.Tensor | None,
        *,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        shape = (num_processes, max(1, num_workers), 4)
        self.first_batch = first_batch
        if saved is not None and tuple(saved.shape) == shape:
            self.is_exact, self.tensor = True, saved[rank].clone()
        else:
            self.is_exact, self.tensor = False, torch.tensor([[epoch, 0, 0, 0]]).repeat(shape[1], 1)

    def followed(self, batches: Iterator[dict[str, torch.Tensor]]) -> Generator[dict[str, torch.Tensor], None, None]:
        """The loader's micro-batches, each noted as it is handed on."""
        for number, batch in enumerate(batches, self.first_batch):
            self.tensor[number % len(self.tensor)] = batch["position"][-1]
            yield batch


def _worker() -> tuple[int, int]:
    """(number of loader workers, this one); a process without workers is its own."""
    info = get_worker_info()
    return (info.num_workers, info.id) if info else (1, 0)
