import numpy as np
import pytest

from training.data.permutation import stratified_holdout


def test_holdout_takes_its_share_of_each_class():
    labels = np.array([0] * 100 + [1] * 7 + [2] * 2 + [3])
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    kept, held_out = stratified_holdout(labels, 0.2)
    assert sorted([*kept, *held_out]) == list(range(110))
    assert np.bincount(labels[held_out], minlength=4).tolist() == [20, 1, 1, 0]
    assert (np.diff(kept) > 0).all() and (np.diff(held_out) > 0).all()


def test_holdout_is_fixed_by_its_seed():
    labels = np.arange(1000) % 10
    first, again, other = (stratified_holdout(labels, 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 1.5])
def test_holdout_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {fraction}"):
        stratified_holdout(np.arange(10), fraction)
