import math

import torch
from accelerate import Accelerator

from training.agreement import GO_ON, SAVE, STOP, Agreement, agree


def test_one_process_agrees_with_itself():
    agreed = agree(Accelerator(cpu=True), torch.tensor(2.5), torch.tensor(0.5), SAVE, 3, 1.5)
    assert agreed == Agreement((2.5,), (0.5,), (SAVE,), (3,), (1.5,))


def test_the_strongest_wish_and_the_sum_of_losses_count():
    agreed = Agreement((1.0, 2.0), (0.5, 0.5), (SAVE, STOP), (0, 1), (1, 1))
    assert (agreed.wish, agreed.loss_sum) == (STOP, 3.0)


def test_what_is_not_finite_is_named_by_rank_and_samples():
    samples = [list(range(20)), [7, 8]]
    bad_loss = Agreement((1.0, math.nan), (math.nan, math.nan), (GO_ON, GO_ON), (0, 0), (1, 1))
    assert bad_loss.problem(5, samples) == "the loss is nan at step 5 on rank 1, which holds samples 7, 8"
    first = Agreement((math.inf, 1.0), (1.0, 1.0), (GO_ON, GO_ON), (0, 0), (1, 1))
    assert first.problem(5, samples).endswith("on rank 0, which holds samples 0, 1, 2, 3, 4, 5, 6, 7, ...")
    bad_gradient = Agreement((1.0, 1.0), (math.inf, math.inf), (GO_ON, GO_ON), (0, 0), (1, 1))
    assert bad_gradient.problem(5, samples) == "the gradient's norm is inf at step 5"
    assert not bad_gradient.is_finite(with_gradients=True)
    assert bad_gradient.is_finite(with_gradients=False)
