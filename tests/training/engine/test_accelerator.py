"""What the environment may say about a run, and what only the recipe says."""

from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from training.config.train_config import TrainConfig
from training.engine.accelerator import build_accelerator, check_environment
from training.errors import RunError

pytestmark = pytest.mark.fault("38 accelerate's environment cannot change the recipe")


def forget() -> None:
    """Accelerate keeps in its classes what it was told first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def nothing_remembered():
    forget()
    yield
    forget()


def gradient(accelerator: accelerate.Accelerator) -> float:
    weight = torch.tensor(1.0, requires_grad=True)
    accelerator.backward(weight * 3)
    return weight.grad.item()


def test_accumulation_is_the_recipes_alone(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert gradient(accelerate.Accelerator(cpu=True)) == 0.75  # the witness: so Accelerate reads it by itself
    forget()
    assert gradient(build_accelerator(TrainConfig(), Path("runs/one"))) == 3.0


@pytest.mark.parametrize("variable", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_another_way_to_train_is_refused_in_words(variable):
    with pytest.raises(RunError, match=rf"asks for .* \(ACCELERATE_USE_{variable}\): launch it with one of"):
        check_environment({f"ACCELERATE_USE_{variable}": "true"}, "no")
    check_environment({f"ACCELERATE_USE_{variable}": "false"}, "no")


def test_a_launcher_that_compiles_is_refused():
    with pytest.raises(RunError, match=r"ACCELERATE_DYNAMO_BACKEND inductor.* give train.py --compile"):
        check_environment({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, None)
    check_environment({"ACCELERATE_DYNAMO_BACKEND": "NO"}, None)  # what accelerate launch always sets


def test_the_launchers_precision_must_be_one_of_ours_unless_the_recipe_decides():
    with pytest.raises(RunError, match=r"mixed precision fp8 .* give it one of them as --precision"):
        check_environment({"ACCELERATE_MIXED_PRECISION": "fp8"}, None)
    check_environment({"ACCELERATE_MIXED_PRECISION": "fp8"}, "bf16")
    check_environment({"ACCELERATE_MIXED_PRECISION": "bf16"}, None)


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch):
    """As a Kubernetes PyTorchJob starts `python train.py`: on GPUs each would train the whole recipe alone."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RunError, match="WORLD_SIZE says 4 processes, but this one trains by itself"):
        build_accelerator(TrainConfig(), Path("runs/one"))
