import pytest
import torch
import torch.distributed as dist
from torch import nn

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from training.modeling.batch_norm import (
    average_batch_norm_statistics,
    batch_norm_statistics,
    check_batch_size,
    set_batch_norm_statistics,
)


def build():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(6)))


def fill(model, rank):
    """Statistics that are powers of two times small integers, so that their mean is exact."""
    for number, (name, buffer) in enumerate(model.named_buffers()):
        if not name.endswith("num_batches_tracked"):
            buffer.copy_(torch.arange(len(buffer)) * 4.0 + number + 16 * rank)


def on_one_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = build()
    fill(model, rank)
    model[1].num_batches_tracked.fill_(7)
    weights = [parameter.clone() for parameter in model.parameters()]
    without_statistics = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Linear(2, 2))
    collectives = []
    all_reduce = dist.all_reduce

    def counted(*args, **kwargs):
        collectives.append(1)
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    average_batch_norm_statistics(model)
    average_batch_norm_statistics(without_statistics)
    assert len(collectives) == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_end_with_the_mean_of_their_statistics_after_one_collective(tmp_path):
    torch.multiprocessing.spawn(on_one_rank, args=(tmp_path,), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    expected = [build(), build()]
    for rank, model in enumerate(expected):
        fill(model, rank)
    statistics = [name for name, _ in build().named_buffers() if not name.endswith("num_batches_tracked")]
    assert len(statistics) == 6
    for name in statistics:
        mean = (expected[0].state_dict()[name] + expected[1].state_dict()[name]) / 2
        assert torch.equal(states[0][name], mean)
        assert torch.equal(states[1][name], mean)
    assert states[0]["1.num_batches_tracked"] == 7


def test_one_process_keeps_its_statistics():
    model = build()
    fill(model, rank=0)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    average_batch_norm_statistics(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_statistics_of_several_models_are_taken_and_put_back():
    models = [build(), build()]
    fill(models[0], rank=0)
    fill(models[1], rank=1)
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    statistics = batch_norm_statistics(models)
    assert len(statistics) == 2 * 2 * (4 + 4 + 6)
    for model in models:
        fill(model, rank=5)
    set_batch_norm_statistics(models, statistics)
    for model, state in zip(models, states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_model_without_statistics_has_none():
    assert len(batch_norm_statistics([nn.Linear(2, 2)])) == 0
    set_batch_norm_statistics([nn.Linear(2, 2)], torch.empty(0))


@pytest.mark.parametrize(("size", "image_size", "works"), [(1, 32, False), (1, 33, True), (2, 32, True)])
def test_what_batch_norm_cannot_train_on_is_refused_before_it_fails(size, image_size, works):
    config = TinyNetConfig.from_variant("tinynet_e", image_size=image_size, num_labels=2)
    network, images = TinyNetForImageClassification(config).train(), torch.zeros(size, 3, image_size, image_size)
    if works:
        network(images)
        check_batch_size(size, config, synchronized=False)
    else:
        with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
            network(images)
        with pytest.raises(ValueError, match="per_device_batch_size 2 or more, or image_size 33 or more"):
            check_batch_size(size, config, synchronized=False)
        check_batch_size(size, config, synchronized=True)
