"""Witnesses: the formula and the table of the published recipe, restated in decimal arithmetic; timm's cosine."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from training.optim.lr_schedule import build_schedule

EPOCHS = 450
STEPS_PER_EPOCH = 1251  # of ImageNet at batch 1024
PUBLISHED = {
    "lr": 0.048,
    "total_steps": EPOCHS * STEPS_PER_EPOCH,
    "steps_per_epoch": STEPS_PER_EPOCH,
    "warmup_epochs": 3,
    "warmup_lr": 1e-6,
    "decay_epochs": 2.4,
    "decay_rate": 0.97,
    "min_lr": 0.0,
}


def published_lr(epoch: int) -> float:
    """get_lr of the original: 1e-6 + e (0.048 - 1e-6) / 3 for e < 3, then 0.048 * 0.97 ** floor(e / 2.4)."""
    with localcontext(prec=60):
        if epoch < 3:
            return float(Decimal("1e-6") + epoch * (Decimal("0.048") - Decimal("1e-6")) / 3)
        return float(Decimal("0.048") * Decimal("0.97") ** (epoch * 10 // 24))


def test_staircase_equals_the_originals_at_the_first_and_last_step_of_every_epoch():
    schedule = build_schedule("staircase", **PUBLISHED)
    for epoch in range(EPOCHS):
        assert schedule(epoch * STEPS_PER_EPOCH) == published_lr(epoch)
        assert schedule((epoch + 1) * STEPS_PER_EPOCH - 1) == published_lr(epoch)


@pytest.mark.parametrize(
    "epoch, lr", [(0, 1e-6), (3, 0.04656), (5, 0.0451632), (12, 0.0412192), (100, 0.0137684), (449, 0.000161271)]
)
def test_staircase_has_the_published_values(epoch, lr):
    assert float(f"{build_schedule('staircase', **PUBLISHED)(epoch * STEPS_PER_EPOCH):.6g}") == lr


def test_highest_value_of_the_published_staircase_is_0_04656():
    schedule = build_schedule("staircase", **PUBLISHED)
    assert max(schedule(epoch * STEPS_PER_EPOCH) for epoch in range(EPOCHS)) == 0.04656


def test_staircase_does_not_slip_where_floating_point_does():
    assert 12 * 1251 // (2.4 * 1251) == 4
    schedule = build_schedule("staircase", **PUBLISHED)
    assert schedule(12 * 1251) == float(Decimal("0.048") * Decimal("0.97") ** 5)
    assert schedule(12 * 1251 - 1) == float(Decimal("0.048") * Decimal("0.97") ** 4)


def test_staircase_goes_on_beyond_the_end():
    schedule = build_schedule("staircase", **PUBLISHED | {"total_steps": 1})
    assert schedule(500 * STEPS_PER_EPOCH) == published_lr(500)


def test_staircase_without_warm_up_starts_at_lr():
    schedule = build_schedule("staircase", **PUBLISHED | {"warmup_epochs": 0})
    assert [schedule(0), schedule(2 * STEPS_PER_EPOCH), schedule(3 * STEPS_PER_EPOCH)] == [0.048, 0.048, 0.04656]


@pytest.mark.parametrize("name", ["staircase", "cosine"])
def test_numbers_may_be_text_as_yaml_leaves_them(name):
    """YAML reads 1e-6, without a point, as text."""
    as_text = {key: str(value) for key, value in PUBLISHED.items() if "steps" not in key}
    numbers, texts = build_schedule(name, **PUBLISHED), build_schedule(name, **PUBLISHED | as_text)
    steps = range(0, EPOCHS * STEPS_PER_EPOCH, 997)
    assert [numbers(step) for step in steps] == [texts(step) for step in steps]


def test_cosine_equals_timms():
    total, warmup, lr, warmup_lr, min_lr = 200, 30, 0.1, 0.001, 0.002
    schedule = build_schedule(
        "cosine",
        **PUBLISHED
        | {"lr": lr, "total_steps": total, "steps_per_epoch": 20, "warmup_epochs": 1.5}
        | {"warmup_lr": warmup_lr, "min_lr": min_lr},
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    timms = CosineLRScheduler(
        optimizer,
        t_initial=total - warmup,
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_lr_init=warmup_lr,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    for step in range(total):
        timms.step_update(step)
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_cosine_peaks_after_the_warm_up_and_stays_at_min_lr_beyond_the_end():
    schedule = build_schedule("cosine", **PUBLISHED | {"min_lr": 1e-5})
    total = PUBLISHED["total_steps"]
    warmup = 3 * STEPS_PER_EPOCH
    assert [schedule(0), schedule(warmup), schedule(total), schedule(2 * total)] == [1e-6, 0.048, 1e-5, 1e-5]
    assert all(schedule(step) < schedule(step + 1) for step in range(warmup))
    assert all(schedule(step) > schedule(step + 1) for step in range(warmup, total, 997))
    assert math.isclose(schedule((warmup + total) // 2), (0.048 + 1e-5) / 2, rel_tol=1e-5)


@pytest.mark.parametrize("name", ["staircase", "cosine"])
@pytest.mark.parametrize(
    "field, value",
    [
        ("lr", 0),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", "fast"),
        ("total_steps", 0),
        ("steps_per_epoch", 0),
        ("warmup_epochs", -1),
        ("warmup_lr", -1e-6),
        ("decay_epochs", 0),
        ("decay_epochs", math.inf),
        ("decay_rate", 0),
        ("decay_rate", 1.01),
        ("min_lr", -1),
        ("min_lr", 0.05),
        ("min_lr", None),
    ],
)
def test_nonsense_is_an_error_that_names_field_and_value(name, field, value):
    with pytest.raises(ValueError, match=rf"^{field} must .* got {value!r}$"):
        build_schedule(name, **PUBLISHED | {field: value})


def test_cosine_needs_a_run_longer_than_its_warm_up():
    with pytest.raises(ValueError, match=r"^warmup_epochs must be below the run's 3 epochs for a cosine, got 3$"):
        build_schedule("cosine", **PUBLISHED | {"total_steps": 3 * STEPS_PER_EPOCH})


def test_unknown_schedule_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match="must be staircase or cosine, got 'step'"):
        build_schedule("step", **PUBLISHED)
