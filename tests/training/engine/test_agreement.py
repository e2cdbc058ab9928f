import math
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests import launcher
from training.engine.agreement import GO_ON, SAVE, STOP, Agreement, agree, peer_lost

ROOT = Path(__file__).parents[3]


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
    assert bad_gradient.losses_are_finite and not bad_gradient.is_finite
    assert not first.losses_are_finite and not first.is_finite
    assert Agreement((1.0, 1.0), (0.5, 0.5), (GO_ON, GO_ON), (0, 0), (1, 1)).is_finite


@pytest.mark.fault("39 the others end in one line when a rank fails")
@pytest.mark.parametrize(("way", "words"), [("ends", "Connection closed by peer"), ("hangs", "Timed out waiting")])
def test_the_loss_of_another_rank_is_told_from_other_errors(way, words, tmp_path):
    command = [Path(__file__).with_name("lost_peer.py"), tmp_path / "rendezvous"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ranks = [launcher.Run([*command, rank, way], env=environment) for rank in range(2)]
    assert ranks[0].communicate(timeout=120)[0] == f"{words}\n"
    for rank in ranks:
        rank.kill()
        rank.communicate()


def test_other_errors_are_not_the_loss_of_a_rank():
    assert peer_lost(RuntimeError("CUDA out of memory")) is None
    assert peer_lost(RuntimeError("Connection closed by peer")) is None  # not of torch.distributed
    assert peer_lost(torch.distributed.DistBackendError("NCCL error: Duplicate GPU detected")) is None
    nccl = "NCCL error in: x.cpp:1, remote process exited or there was a network error"
    assert peer_lost(torch.distributed.DistBackendError(nccl)) == "remote process exited"
