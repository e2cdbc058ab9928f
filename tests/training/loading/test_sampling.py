import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from training.data.permutation import epoch_permutation
from training.loading.sampling import (
    TrainBatchSampler,
    TrainingPlan,
    evaluation_indices,
)


def rank_batches(plan, rank, seed=0, epoch=0, start_step=0):
    return list(plan.micro_batches(seed, epoch, rank, start_step))


def trained_order(plan, seed=0, epoch=0):
    """Indices in the order in which the plan's pieces go round the ranks."""
    ranks = [rank_batches(plan, rank, seed, epoch) for rank in range(plan.num_processes)]
    return [index for turn in zip(*ranks, strict=True) for micro_batch in turn for index in micro_batch.indices]


# The permutation


def test_permutation_is_the_same_on_every_platform_and_in_every_version():
    """Written down once: a change of these numbers changes every run."""
    assert epoch_permutation(10, seed=0, epoch=0).tolist() == [1, 4, 5, 6, 8, 2, 0, 3, 9, 7]
    assert epoch_permutation(10, seed=0, epoch=1).tolist() == [7, 8, 6, 2, 9, 3, 1, 0, 4, 5]
    assert epoch_permutation(10, seed=1, epoch=0).tolist() == [0, 5, 7, 4, 8, 2, 6, 9, 3, 1]
    assert epoch_permutation(1000, seed=2**40, epoch=449)[:5].tolist() == [809, 562, 342, 209, 856]


def test_permutation_sorts_the_raw_philox_stream():
    """The witness is Philox4x64-10 in plain integers, from Salmon et al., Parallel random numbers, 2011."""
    key = np.random.SeedSequence(3, spawn_key=(7,)).generate_state(2, np.uint64).tolist()
    words = [word for counter in range(1, 6) for word in philox4x64(counter, key)]
    assert epoch_permutation(20, seed=3, epoch=7).tolist() == sorted(range(20), key=words.__getitem__)


def philox4x64(counter, key):
    mask = 2**64 - 1
    x, (k0, k1) = [counter, 0, 0, 0], key
    for _ in range(10):
        p0, p1 = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [p1 >> 64 ^ x[1] ^ k0, p1 & mask, p0 >> 64 ^ x[3] ^ k1, p0 & mask]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return x


@pytest.mark.parametrize("num_samples", [0, 1, 2, 997])
def test_permutation_holds_each_index_once(num_samples):
    assert sorted(epoch_permutation(num_samples, 5, 3)) == list(range(num_samples))


def test_permutations_differ_between_epochs_and_seeds():
    keys = itertools.product(range(10), range(10))
    assert len({tuple(epoch_permutation(50, seed, epoch)) for seed, epoch in keys}) == 100


def test_every_position_is_equally_likely():
    """Index 0 over 6,000 epochs: chi-square with 19 degrees of freedom, 43.8 at p = 0.001."""
    positions = [int(np.flatnonzero(epoch_permutation(20, 0, epoch) == 0)[0]) for epoch in range(6000)]
    counts = np.bincount(positions, minlength=20)
    assert ((counts - 300) ** 2 / 300).sum() < 43.8


@pytest.mark.parametrize(("seed", "epoch"), [(-1, 0), (0, -1)])
def test_negative_seed_or_epoch_is_refused(seed, epoch):
    with pytest.raises(ValueError, match="must not be negative"):
        epoch_permutation(10, seed, epoch)


# The plan

# (samples, global batch, per-device batch) with short last batches of every kind
SIZES = [
    (num_samples, 8 * device_size, device_size)
    for device_size in (2, 3, 4)
    for num_samples in range(8 * device_size, 16 * device_size + 1)
]


def test_imagenet_has_1251_steps_of_1024():
    plan = TrainingPlan(1_281_167, 1024, 128, num_processes=8, drop_last=True)
    assert (plan.steps_per_epoch, plan.accumulation_steps, plan.samples_per_epoch) == (1251, 1, 1251 * 1024)
    one_gpu = TrainingPlan(1_281_167, 1024, 128, num_processes=1, drop_last=False)
    # 1,281,167 = 1251 * 1024 + 143: two micro-batches more, of 71 and 72
    assert (one_gpu.steps_per_epoch, one_gpu.accumulation_steps, one_gpu.samples_per_epoch) == (1252, 8, 1_281_167)
    assert one_gpu.step_shape(1251) == (2, 143)


def test_two_ranks_see_the_global_batches_of_one_process_in_the_same_order():
    one, two = TrainingPlan(100, 32, 32), TrainingPlan(100, 32, 16, num_processes=2)
    expected = epoch_permutation(100, 4, 2).tolist()
    assert trained_order(one, 4, 2) == trained_order(two, 4, 2) == expected
    for whole, left, right in zip(*(rank_batches(*a, 4, 2) for a in ((one, 0), (two, 0), (two, 1))), strict=True):
        assert whole.indices == left.indices + right.indices


@pytest.mark.parametrize(("processes", "device_size"), list(itertools.product((1, 2, 4), (2, 4, 8, 16, 32))))
def test_order_depends_on_neither_processes_nor_accumulation(processes, device_size):
    plan = TrainingPlan(1000, 128, device_size, processes)
    assert plan.accumulation_steps * processes * device_size == 128
    assert trained_order(plan) == epoch_permutation(1000, 0, 0).tolist()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_no_sample_is_seen_twice_and_only_a_last_handful_is_missing(processes):
    for num_samples, global_size, device_size in SIZES:
        plan = TrainingPlan(num_samples, global_size, device_size, processes)
        seen = trained_order(plan)
        assert seen == epoch_permutation(num_samples, 0, 0)[: plan.samples_per_epoch].tolist()
        assert num_samples - len(seen) < 2 * processes  # two for each rank would have made one more round


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ranks_take_equally_many_micro_batches_of_at_least_two(processes):
    for num_samples, global_size, device_size in SIZES:
        plan = TrainingPlan(num_samples, global_size, device_size, processes)
        ranks = [rank_batches(plan, rank) for rank in range(processes)]
        for turn in zip(*ranks, strict=True):
            sizes = [len(micro_batch.indices) for micro_batch in turn]
            assert 2 <= min(sizes) <= max(sizes) <= device_size
            assert max(sizes) - min(sizes) <= 1
            assert len({(micro_batch.global_size, micro_batch.ends_step) for micro_batch in turn}) == 1


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_weights_of_a_step_add_up_to_one(processes, drop_last):
    for num_samples, global_size, device_size in SIZES:
        plan = TrainingPlan(num_samples, global_size, device_size, processes, drop_last)
        weight, steps = Fraction(0), 0
        ranks = [rank_batches(plan, rank) for rank in range(processes)]
        for turn in zip(*ranks, strict=True):
            weight += sum(Fraction(len(micro_batch.indices), micro_batch.global_size) for micro_batch in turn)
            if turn[0].ends_step:
                assert weight == 1
                weight, steps = Fraction(0), steps + 1
        assert (weight, steps) == (0, plan.steps_per_epoch)


def test_accumulated_gradients_equal_one_big_batch_over_a_short_step():
    """Four accumulated micro-batches and a tail of one more, on two ranks whose gradients DDP averages."""
    torch.manual_seed(0)
    images, labels = torch.randn(37, 5, dtype=torch.float64), torch.randint(3, (37,))
    plan = TrainingPlan(37, 32, 4, num_processes=2)
    order = epoch_permutation(37, 0, 0)
    for step, (start, stop) in enumerate([(0, 32), (32, 37)]):
        whole = order[start:stop].tolist()
        weights = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.cross_entropy(images[whole] @ weights, labels[whole]).backward()

        averaged = torch.zeros_like(weights)
        for rank in range(2):
            mine = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
            for indices, global_size, ends_step in plan.micro_batches(0, 0, rank, start_step=step):
                losses = torch.nn.functional.cross_entropy(images[indices] @ mine, labels[indices], reduction="sum")
                (losses / global_size * plan.num_processes).backward()
                if ends_step:
                    break
            averaged += mine.grad / plan.num_processes
        torch.testing.assert_close(averaged, weights.grad, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("left", "processes", "device_size", "shape"),
    [
        (1, 1, 8, (0, 0)),  # BatchNorm cannot train on a single sample
        (2, 1, 8, (1, 2)),
        (3, 2, 8, (0, 0)),
        (4, 2, 8, (1, 4)),
        (5, 2, 8, (1, 5)),
        (9, 1, 8, (2, 9)),
        (17, 2, 8, (2, 17)),
        (3, 1, 2, (1, 2)),  # two and one: the one is left out
        (7, 2, 3, (1, 6)),  # 2 + 2 + 2 + 1: not all have two, so one round of three each
        (9, 2, 3, (2, 9)),
    ],
)
def test_short_last_batch_is_cut_as_documented(left, processes, device_size, shape):
    plan = TrainingPlan(96 + left, 96, device_size, processes)
    assert plan.steps_per_epoch == 1 + (shape[0] > 0)
    assert plan.step_shape(1) == shape


def test_drop_last_leaves_out_the_short_batch():
    plan = TrainingPlan(100, 32, 16, 2, drop_last=True)
    assert (plan.steps_per_epoch, plan.samples_per_epoch) == (3, 96)
    assert trained_order(plan) == epoch_permutation(100, 0, 0)[:96].tolist()


def test_fewer_samples_than_a_global_batch_make_one_short_step():
    plan = TrainingPlan(10, 32, 8, 2)
    assert plan.steps_per_epoch == 1
    assert [len(micro_batch.indices) for micro_batch in rank_batches(plan, 0) + rank_batches(plan, 1)] == [5, 5]


def test_start_step_is_reached_without_what_came_before():
    plan = TrainingPlan(100, 16, 4, 2)
    everything = rank_batches(plan, 1)
    for step in range(plan.steps_per_epoch):
        assert rank_batches(plan, 1, start_step=step) == everything[plan.micro_batches_before(step) :]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((5000, 1024, 100, 2), "choose per_device_batch_size 64 or 128, or global_batch_size 1000 or 1200"),
        ((5000, 1024, 128, 3), "with that many processes choose global_batch_size 768 or 1152"),
        ((5000, 64, 128, 2), "choose per_device_batch_size 32, or global_batch_size 256"),
        ((5000, 74, 16, 2), "choose per_device_batch_size 37, or global_batch_size 64 or 96"),
    ],
)
def test_numbers_that_do_not_divide_come_with_numbers_that_do(arguments, advice):
    with pytest.raises(ValueError, match="is not a multiple of") as error:
        TrainingPlan(*arguments)
    assert str(error.value).endswith(advice)


def test_advice_on_batch_sizes_holds():
    num_samples, global_size, device_size, processes = 5000, 1024, 100, 2
    for good in (64, 128):
        TrainingPlan(num_samples, global_size, good, processes)
    for good in (1000, 1200):
        TrainingPlan(num_samples, good, device_size, processes)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match=r"^10 training samples are fewer than one global batch of 32, and drop_last"):
        TrainingPlan(10, 32, 16, 2, drop_last=True)
    with pytest.raises(ValueError, match=r"^3 training samples are too few for 2 processes: each needs at least 2$"):
        TrainingPlan(3, 32, 16, 2)


@pytest.mark.parametrize("name", ["num_samples", "global_batch_size", "per_device_batch_size", "num_processes"])
def test_numbers_that_are_not_positive_are_refused(name):
    numbers = {"num_samples": 8, "global_batch_size": 4, "per_device_batch_size": 2, "num_processes": 1}
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        TrainingPlan(**numbers | {name: 0})


# The sampler of a whole run


def test_sampler_lists_the_plan_epoch_after_epoch():
    plan = TrainingPlan(21, 8, 4)
    sampler = TrainBatchSampler(plan, seed=3, rank=0, total_steps=3 * plan.steps_per_epoch)
    expected = [
        [(epoch, index) for index in micro_batch.indices]
        for epoch in range(3)
        for micro_batch in rank_batches(plan, 0, seed=3, epoch=epoch)
    ]
    assert list(sampler) == expected
    assert len(sampler) == len(expected)


@pytest.mark.parametrize("drop_last", [False, True])
def test_sampler_starts_and_ends_at_any_step(drop_last):
    plan = TrainingPlan(43, 16, 4, 2, drop_last)
    everything = list(TrainBatchSampler(plan, seed=0, rank=1, total_steps=9))
    for start, stop in itertools.combinations_with_replacement(range(10), 2):
        sampler = TrainBatchSampler(plan, seed=0, rank=1, total_steps=stop, start_step=start)
        cut = slice(plan.micro_batches_before(start), plan.micro_batches_before(stop))
        assert list(sampler) == everything[cut]
        assert len(sampler) == len(everything[cut])


# Evaluation and the held-out part


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_evaluation_counts_each_index_once(num_processes):
    for num_samples in [*range(1, 66), 50_000]:
        parts = [evaluation_indices(num_samples, rank, num_processes) for rank in range(num_processes)]
        assert list(itertools.chain(*parts)) == list(range(num_samples))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
