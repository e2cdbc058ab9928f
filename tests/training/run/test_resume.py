"""What a start may change of the run that it resumes, what is said about it, and what is refused."""

import contextlib
import copy
import json
import re
from pathlib import Path

import pytest
import torch

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification
from training.config.train_config import TrainConfig
from training.errors import RunError
from training.modeling.batch_norm import batch_norm_statistics
from training.modeling.ema import ExponentialMovingAverage
from training.optim.lr_schedule import lr_schedule
from training.optim.optimizer import build_optimizer
from training.run.checkpoint import CheckpointError, load_checkpoint, optimizer_tensors, save_checkpoint
from training.run.progress import Progress
from training.run.resume import read_checkpoint, restore

STEPS_PER_EPOCH = 5
# Two epochs, of which `written` has saved the end.
CONFIG = TrainConfig(epochs=2, lr=0.1, warmup_epochs=0, schedule="cosine", global_batch_size=256)
CLASSES = ["cat", "dog"]
DATA = {"num_train": 100, "num_validation": 20, "train_fingerprint": "a", "validation_fingerprint": "b"}


def settings_of(config, classes=CLASSES):
    return config.settings() | {"class_names": classes}


def write(folder, config=CONFIG, *, step=10, **changes):
    """A checkpoint of `config`; `changes` replace parts of its state."""
    state = {
        "progress": Progress(step=step).to_dict(),
        "settings": settings_of(config),
        "execution": config.execution() | {"num_processes": 2, "torch": "2.9.0"},
        "data": DATA,
    }
    state = {name: value for name, value in (state | changes).items() if value is not None}
    statistics = torch.zeros(2, 6)
    return save_checkpoint(folder / "checkpoints", step, {"local": {"batch_norm": statistics}}, state)


def read(path, run_folder, config, *, data=DATA, classes=CLASSES, allow_data_change=False, **machine):
    """The sentences of a start of `config`."""
    _, _, sentences = read_checkpoint(
        path,
        run_folder,
        settings=settings_of(config, classes),
        execution=config.execution() | {"num_processes": 2, "torch": "2.9.0"} | machine,
        data=data,
        allow_data_change=allow_data_change,
        steps_per_epoch=STEPS_PER_EPOCH,
    )
    return sentences


def but(config=CONFIG, **changes):
    return TrainConfig(**({name: getattr(config, name) for name in config.__dataclass_fields__} | changes))


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "one"


@pytest.fixture
def branch(tmp_path):
    return tmp_path / "runs" / "two"


def test_the_same_start_changes_nothing(run):
    path = write(run, step=9)
    assert read(path, run, CONFIG) == []


def test_a_finished_run_says_what_continues_it(run, branch):
    path = write(run)
    for folder in (run, branch):
        with pytest.raises(RunError, match=r"is finished after 10 steps.* more than --epochs 2 continues it"):
            read(path, folder, CONFIG)
    due = write(run, progress=Progress(step=10, epoch_end_due=True).to_dict())
    assert read(due, run, CONFIG) == []
    with pytest.raises(RunError, match=r"is finished after 10 steps.* more than --epochs 1 continues it"):
        read(due, branch, but(epochs=1))  # its end would be one of another epoch


def test_a_foreign_checkpoint_is_no_run(run):
    path = save_checkpoint(run / "checkpoints", 5, {}, {"step": 5})
    with pytest.raises(CheckpointError, match="is not a checkpoint of a training run"):
        read(path, run, CONFIG)


# One run

RESULT = {
    "lr": (0.2, "lr 0.1 -> 0.2"),
    "backbone_lr_scale": (0.1, "backbone_lr_scale 1 -> 0.1"),
    "optimizer": ("sgd", "optimizer rmsprop -> sgd"),
    "max_grad_norm": (1.0, "max_grad_norm unset -> 1"),
    "schedule": ("staircase", "schedule cosine -> staircase"),
    "crop_scale": ((0.5, 1.0), "crop_scale 0.08 1 -> 0.5 1"),
    "precision": ("bf16", "precision unset -> bf16"),
    "ema_decay": (0.99990001, "ema_decay 0.9999 -> 0.99990001"),
    "seed": (1, "seed 0 -> 1"),
    "dropout_rate": (0.1, "dropout_rate unset -> 0.1"),
}


@pytest.mark.parametrize("name", RESULT)
def test_a_setting_of_the_result_stays_in_a_run_and_may_change_in_a_branch(name, run, branch):
    path = write(run, step=4)
    config = but(**{name: RESULT[name][0]})
    with pytest.raises(RunError) as refusal:
        read(path, run, config)
    sentence = f"holds another run ({RESULT[name][1]}); choose another --run_name to train anew"
    assert sentence in str(refusal.value)
    assert f"--resume {path}" in str(refusal.value)
    sentences = read(path, branch, config)
    assert sentences[0].startswith(RESULT[name][1])
    assert len(sentences) == (2 if name in ("lr", "schedule") else 1)


EXECUTION = {
    "per_device_batch_size": (64, "per_device_batch_size 128 -> 64: BatchNorm sees batches of another size"),
    "channels_last": (False, "channels_last true -> false: sums are rounded in another order"),
    "compile": (True, "compile false -> true: sums are rounded in another order"),
    "streaming": (True, "streaming false -> true: the images of an epoch come in another order"),
    "eval_every_epochs": (2, "eval_every_epochs 1 -> 2: best/ is chosen among other epochs"),
    "on_nonfinite": ("skip:3", "on_nonfinite stop -> skip:3"),
    "on_bad_image": ("skip:3", "on_bad_image stop -> skip:3"),
}


@pytest.mark.parametrize("name", EXECUTION)
def test_a_setting_of_execution_may_change_and_is_said(name, run, branch):
    path = write(run, step=4)
    data = DATA if name != "streaming" else {name: count for name, count in DATA.items() if name.startswith("num")}
    for folder in (run, branch):
        (sentence,) = read(path, folder, but(**{name: EXECUTION[name][0]}), data=data)
        assert sentence.startswith(EXECUTION[name][1])


def test_every_setting_is_of_one_kind_and_known(run):
    """A field that decides about the numbers of a run must not be forgotten when it is added."""
    settings, execution = CONFIG.settings(), CONFIG.execution()
    assert not settings.keys() & execution.keys()
    elsewhere = {"dataset", "dataset_name", "train_split", "validation_split", "image_column", "label_column"}
    elsewhere |= {"class_names", "rescale"}  # what they lead to is compared, not they
    places = {"output_dir", "run_name", "resume", "allow_data_change", "save_every_epochs", "save_every", "keep"}
    places |= {"log_every_steps", "push_to_hub", "report_to", "num_workers", "timeout_s"}
    assert settings.keys() | execution.keys() | elsewhere | places == set(CONFIG.__dataclass_fields__)


def test_another_number_of_processes_is_said_also_of_an_old_checkpoint(run):
    sentence = "num_processes 2 -> 1: BatchNorm's statistics are those of other shares of a batch"
    assert read(write(run, step=4), run, CONFIG, num_processes=1) == [sentence]
    assert read(write(run, step=4, execution=None), run, CONFIG, num_processes=1) == [sentence]


def test_another_machine_is_said(run):
    present = {"torch": "2.10.0", "device": "GPU"}  # what device it was is not known
    sentences = read(write(run, step=4), run, CONFIG, **present)
    assert sentences == ["torch 2.9.0 -> 2.10.0: sums may be rounded in another order"]


def test_a_checkpoint_named_from_within_its_folder_is_of_its_run(run, branch):
    path = write(run)
    sentence = f"the run in {re.escape(str(run))} is finished"
    with contextlib.chdir(path.parent), pytest.raises(RunError, match=sentence):
        read(Path(path.name), branch, CONFIG)


def test_a_checkpoint_from_before_execution_was_recorded_is_resumed(run):
    old = settings_of(CONFIG) | {"on_nonfinite": "stop"}
    del old["random_erasing"], old["crop_scale"], old["backbone_lr_scale"]  # as if they were newer
    path = write(run, step=4, settings=old, execution=None)
    assert read(path, run, CONFIG) == []
    assert read(path, run, but(on_nonfinite="skip:3", channels_last=False)) == ["on_nonfinite stop -> skip:3"]
    with pytest.raises(RunError, match=r"random_erasing 0 -> 0\.1"):
        read(path, run, but(random_erasing=0.1))


# More epochs


def test_more_epochs_of_a_staircase_are_exact(run, branch):
    config = but(schedule="staircase")
    for folder in (run, branch):
        sentences = read(write(run, config), folder, but(config, epochs=3))
        assert sentences == ["epochs 2 -> 3", "the learning rates stay those of the checkpoint's run"]
    assert lr_schedule(config, STEPS_PER_EPOCH)(12) == lr_schedule(but(config, epochs=3), STEPS_PER_EPOCH)(12)


def test_more_epochs_of_a_cosine_say_what_the_learning_rate_becomes(run, branch):
    now = lr_schedule(but(epochs=3), STEPS_PER_EPOCH)(10)
    assert now == pytest.approx(0.1 * (1 + -0.5) / 2)  # two thirds down half a cosine: cos(2 pi / 3) = -1/2
    for folder in (run, branch):
        sentences = read(write(run), folder, but(epochs=3))
        assert sentences == [
            "epochs 2 -> 3",
            "the learning rate of step 11 is 0.025, where it would have been 0: "
            "the run is not the one that these settings give from the start",
        ]


def test_fewer_epochs_of_a_cosine_are_another_run_and_of_a_staircase_an_earlier_end(run, branch):
    path = write(run, but(epochs=4))
    with pytest.raises(RunError, match=r"holds another run \(epochs 4 -> 3\)"):
        read(path, run, but(epochs=3))
    assert read(path, branch, but(epochs=3))[0] == "epochs 4 -> 3"
    path = write(run, but(schedule="staircase", epochs=4))
    assert read(path, run, but(schedule="staircase", epochs=3))[0] == "epochs 4 -> 3"
    with pytest.raises(RunError, match="is finished after 10 steps"):
        read(path, run, but(schedule="staircase", epochs=1))


# Branches


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"global_batch_size": 512}, "global_batch_size 256 -> 512, because its steps are counted in global batches"),
        ({"drop_last": False}, "drop_last true -> false, because its steps are counted in global batches"),
    ],
)
def test_what_counts_the_steps_cannot_change(changes, words, run, branch):
    with pytest.raises(RunError) as refusal:
        read(write(run, step=4), branch, but(**changes))
    assert words in str(refusal.value) and f"--model {run / 'last'}" in str(refusal.value)


@pytest.mark.parametrize(
    ("classes", "words"), [(["cat", "cow"], "class 1 'dog' -> 'cow'"), (["cat"] * 1000, "2 -> 1000 classes")]
)
def test_other_classes_are_refused_in_a_short_sentence(classes, words, run, branch):
    path = write(run, step=4)
    for folder in (run, branch):
        with pytest.raises(RunError) as refusal:
            read(path, folder, CONFIG, classes=classes)
        assert words in str(refusal.value) and len(str(refusal.value)) < 500


def test_other_data_are_refused_or_said(run):
    path, data = write(run, step=4), DATA | {"num_train": 99, "train_fingerprint": "c"}
    with pytest.raises(RunError, match=r"not the one that .* was trained on \(num_train 100 -> 99, train_fingerprint"):
        read(path, run, CONFIG, data=data)
    sentences = read(path, run, CONFIG, data=data, allow_data_change=True)
    assert [sentence.partition(":")[0] for sentence in sentences] == [
        "num_train 100 -> 99",
        "train_fingerprint a -> c",
    ]


# Tensors


def parts(optimizer="rmsprop", ema=True, seed=0, num_classes=3):
    torch.manual_seed(seed)
    labels = {index: str(index) for index in range(num_classes)}
    network = TinyNetForImageClassification(TinyNetConfig.from_variant("tinynet_e", image_size=32, id2label=labels))
    average = ExponentialMovingAverage(network, 0.9) if ema else None
    names = {"lr": 0.01, "momentum": 0.9, "eps": 1e-3, "weight_decay": 0.0}
    return network, build_optimizer(network, optimizer, **names), average


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of one step of two ranks: with an EMA, and without one."""
    paths = {}
    for with_ema in (True, False):
        network, optimizer, ema = parts(ema=with_ema)
        network.train()(torch.randn(4, 3, 32, 32)).logits.square().sum().backward()
        optimizer.step()
        if ema:
            ema.update(network)
        followed = [network, ema.model] if ema else [network]
        statistics = batch_norm_statistics(followed)
        tensors = {
            "model": network.state_dict(),
            "optimizer": optimizer_tensors(optimizer, network),
            "local": {"batch_norm": torch.stack([statistics, statistics + 1])},
        } | ({"ema": ema.model.state_dict()} if ema else {})
        paths[with_ema] = save_checkpoint(tmp_path_factory.mktemp("run"), 1, tensors, {})
    return paths


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("before", [True, False], ids=["EMA before", "no EMA before"])
@pytest.mark.parametrize("now", [True, False], ids=["EMA now", "no EMA now"])
def test_an_ema_may_begin_and_end_with_a_branch(before, now, trained):
    tensors, _ = load_checkpoint(trained[before])
    saved = copy.deepcopy(tensors)
    network, optimizer, ema = parts(ema=now, seed=1)
    restore(trained[before], tensors, network, optimizer, ema, same_optimizer=True)
    assert equal(network.state_dict(), saved["model"])
    assert equal(optimizer_tensors(optimizer, network), saved["optimizer"])
    size = len(batch_norm_statistics([network]))
    statistics = tensors["local"]["batch_norm"]
    assert torch.equal(statistics[:, :size], saved["local"]["batch_norm"][:, :size])
    assert len(batch_norm_statistics([network, ema.model] if ema else [network])) == statistics.shape[1]
    if now:
        assert equal(ema.model.state_dict(), saved["ema" if before else "model"])
        expected = saved["local"]["batch_norm"][:, -size:]
        assert torch.equal(statistics[:, size:], expected)


def test_an_optimizer_of_another_kind_begins_anew(trained):
    tensors, _ = load_checkpoint(trained[True])
    network, optimizer, ema = parts(optimizer="adamw", seed=1)
    restore(trained[True], tensors, network, optimizer, ema, same_optimizer=False)
    assert equal(network.state_dict(), tensors["model"])
    assert optimizer_tensors(optimizer, network) == {}


def test_another_network_is_refused_before_anything_is_loaded(trained):
    tensors, _ = load_checkpoint(trained[True])
    network, optimizer, ema = parts(num_classes=5)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(
        RunError, match=r"another network: classifier.weight is \(3, 1280\) there and \(5, 1280\) here"
    ):
        restore(trained[True], tensors, network, optimizer, ema, same_optimizer=True)
    assert equal(network.state_dict(), before)


def test_sentences_are_json(run):
    """They are kept in the checkpoints that follow."""
    assert json.loads(json.dumps(read(write(run, step=4), run, but(channels_last=False))))
