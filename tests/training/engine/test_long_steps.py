"""Inside which micro-batches the ranks ask each other, and what is left of a step that is broken off."""

import pytest
import torch
from accelerate import Accelerator

from training.engine import long_steps
from training.engine.long_steps import LongSteps
from training.loading.streaming import StreamPositions

pytestmark = pytest.mark.fault("35 SIGTERM inside a long step")


@pytest.fixture
def network() -> torch.nn.Module:
    return torch.nn.BatchNorm1d(3)


@pytest.fixture
def steps(network) -> LongSteps:
    return LongSteps(Accelerator(cpu=True), network, None, lambda: True)


def looks(steps: LongSteps, micro_batches: int) -> list[int]:
    """The micro-batches after which a signal would stop the run."""
    steps.begin(micro_batches)
    return [done for done in range(1, micro_batches + 1) if steps.stopped(done)]


def test_until_the_ranks_know_better_they_ask_after_every_micro_batch_but_the_last(steps):
    assert looks(steps, 4) == [1, 2, 3]
    steps.end(steps.micro_batch_s)
    assert looks(steps, 4) == [1, 2, 3]
    assert looks(steps, 1) == []


@pytest.mark.parametrize(
    ("micro_batch_s", "expected"),
    [(0.01, []), (0.55, []), (0.6, [8]), (2.0, [2, 4, 6, 8]), (7.0, [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_in_long_steps_they_ask_every_few_seconds_and_in_short_ones_never(steps, micro_batch_s, expected):
    looks(steps, 9)
    steps.end(micro_batch_s)
    assert looks(steps, 9) == expected


def test_the_time_of_a_micro_batch_is_told_to_the_others(steps, monkeypatch):
    times = iter([10.0, 18.0])
    monkeypatch.setattr(long_steps.time, "perf_counter", lambda: next(times))
    steps.begin(4)
    steps.end(1.0)
    assert steps.micro_batch_s == 2.0


def test_a_step_that_is_broken_off_leaves_batch_norm_and_stream_as_they_were(network):
    positions = StreamPositions(2, 0, 0, None)
    signals = []
    steps = LongSteps(Accelerator(cpu=True), network, positions, lambda: bool(signals))
    network(torch.randn(8, 3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stream_before = positions.tensor.clone()
    steps.begin(4)
    network(torch.randn(8, 3))
    positions.tensor += 1
    assert not steps.stopped(1)
    assert not torch.equal(network.running_mean, before["running_mean"])
    network(torch.randn(8, 3))
    signals.append("SIGTERM")
    assert steps.stopped(2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(positions.tensor, stream_before)
