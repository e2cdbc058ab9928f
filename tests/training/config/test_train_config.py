import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from pydantic import ValidationError

from modeling_tinynet import TinyNetConfig
from training.command import run_command
from training.config.fields import FIELDS, GROUPS, one_sentence, skip_limit
from training.config.recipe import read_recipe
from training.config.rescaling import rescaled
from training.config.suggestion import OTHER_NAMES
from training.config.train_config import TrainConfig, parse_config
from training.system.cores import default_num_workers

ROOT = Path(__file__).parents[3]
RECIPES = ROOT / "configuration"
LAUNCH = RECIPES / "accelerate"

# arXiv 2010.14819 and the TinyNet trainer of the MindSpore model zoo.
PUBLISHED = {
    "epochs": 450,
    "global_batch_size": 1024,
    "per_device_batch_size": 128,
    "drop_last": True,
    "lr": 0.048,
    "schedule": "staircase",
    "warmup_epochs": 3,
    "warmup_lr": 1e-6,
    "decay_epochs": 2.4,
    "decay_rate": 0.97,
    "optimizer": "rmsprop",
    "rho": 0.9,
    "momentum": 0.9,
    "optimizer_eps": 1e-3,
    "weight_decay": 1e-5,
    "max_grad_norm": None,
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
    "crop_scale": (0.08, 1.0),
    "crop_ratio": (3 / 4, 4 / 3),
    "horizontal_flip": 0.5,
    "color_jitter": 0.4,
    "mixup_alpha": 0,
    "cutmix_alpha": 0,
    "rand_augment": 0,
    "random_erasing": 0,
}
# variant: image size, resize size, parameters, MACs in millions, published top-1
PUBLISHED_NETWORKS = {
    "tinynet_a": (192, 219, 6_187_972, "336.9 M", 76.8),
    "tinynet_b": (188, 214, 3_730_562, "200.7 M", 75.0),
    "tinynet_c": (184, 210, 2_457_234, "99.5 M", 71.2),
    "tinynet_d": (152, 173, 2_338_446, "51.6 M", 67.0),
    "tinynet_e": (106, 121, 2_042_972, "24.4 M", 59.9),
}
ORIGINAL_FLAGS = [
    "--model",
    "--drop",
    "--drop-connect",
    "--num-classes",
    "--opt-eps",
    "--lr",
    "--batch-size",
    "--decay-epochs",
    "--warmup-lr",
    "--warmup-epochs",
    "--decay-rate",
    "--ema-decay",
    "--weight-decay",
    "--epochs",
    "--ckpt_save_epoch",
    "--workers",
    "--amp_level",
    "--opt",
    "--momentum",
    "--smoothing",
    "--bn-tf",
    "--bn-momentum",
    "--bn-eps",
    "--data_path",
    "--GPU",
    "--dataset_sink",
    "--distributed",
    "--ckpt",
    "--loss_scale",
    "--per_print_times",
]


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def ends_with(argv):
    """The exit code of a command that reads this line and does nothing else."""
    try:
        return run_command(lambda argv: print(parse_config(argv)), argv, launched=True)
    except SystemExit as stop:  # argparse's
        return stop.code


@pytest.fixture
def refusal(capsys):
    """The one sentence with which a command line is refused."""

    def refuse(*argv: str) -> str:
        assert ends_with(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1 and err.endswith("\n")
        assert "Traceback" not in err
        return err.strip()

    return refuse


def parsed(*argv: str) -> TrainConfig:
    return parse_config(argv)[0]


# Precedence


def test_defaults_are_the_published_recipe():
    config = parsed()
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED


def test_recipe_goes_before_defaults_and_flags_before_the_recipe(recipe):
    path = recipe("epochs: 7\nlr: 0.1\nseed: 3\n")
    config = parsed("--recipe", path, "--lr", "0.2")
    assert (config.epochs, config.lr, config.seed) == (7, 0.2, 3)
    assert dataclasses.replace(config, epochs=450, lr=0.048, seed=0) == TrainConfig()


def test_the_order_of_recipe_and_flags_does_not_matter(recipe):
    path = recipe("epochs: 7\n")
    assert parsed("--epochs", "8", "--recipe", path).epochs == parsed("--recipe", path, "--epochs", "8").epochs == 8


def test_a_flag_may_restate_the_default_against_the_recipe(recipe):
    assert parsed("--recipe", recipe("lr: 0.1\n"), "--lr", "0.048").lr == 0.048


def test_command_line_says_recipe_and_explain(recipe):
    path = recipe("epochs: 7\n")
    _, command_line = parse_config(["--recipe", path, "--explain"])
    assert (command_line.recipe, command_line.explain, command_line.rescaling) == (path, True, None)
    _, command_line = parse_config([])
    assert (command_line.recipe, command_line.explain) == (None, False)


# Reading values


@pytest.mark.parametrize("text", ["1e-6", "1.0e-06", "0.000001", "'1e-6'"])
def test_small_numbers_are_numbers_however_yaml_reads_them(recipe, text):
    assert isinstance(yaml.safe_load("1e-6"), str)  # YAML 1.1, which is why recipes are not read so
    assert parsed("--recipe", recipe(f"warmup_lr: {text}\n")).warmup_lr == 1e-6


def test_precision_no_is_a_word_and_not_false(recipe):
    assert yaml.safe_load("no") is False
    assert parsed("--recipe", recipe("precision: no\n")).precision == "no"


@pytest.mark.parametrize("word", ["null", "~", "", "none"])
def test_null_unsets_an_optional_value(recipe, word):
    assert parsed("--recipe", recipe(f"max_grad_norm: {word}\n")).max_grad_norm is None


def test_null_on_the_command_line_unsets_what_the_recipe_sets(recipe):
    assert parsed("--recipe", recipe("max_grad_norm: 1\n"), "--max_grad_norm", "null").max_grad_norm is None


def test_switches_turn_on_and_off(recipe):
    path = recipe("sync_batch_norm: true\nchannels_last: false\n")
    config = parsed("--recipe", path)
    assert (config.sync_batch_norm, config.channels_last) == (True, False)
    config = parsed("--recipe", path, "--no_sync_batch_norm", "--channels_last", "--no-drop-last")
    assert (config.sync_batch_norm, config.channels_last, config.drop_last) == (False, True, False)


def test_lists_are_two_numbers(recipe):
    assert parsed("--recipe", recipe("crop_scale: [0.3, 1]\n")).crop_scale == (0.3, 1.0)
    assert parsed("--crop_scale", "0.3", "0.9").crop_scale == (0.3, 0.9)


def test_hyphens_are_underscores():
    assert parsed("--weight-decay", "1e-4", "--warmup-lr=1e-5") == TrainConfig(weight_decay=1e-4, warmup_lr=1e-5)


# Refusals: each is one sentence on stderr and exit code 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: 5\nwarmup_epoch: 3\n", ":2: unknown key 'warmup_epoch'; did you mean warmup_epochs?"),
        ("drop_connect: 0.1\n", ":1: unknown key 'drop_connect'; did you mean drop_path_rate?"),
        ("xyzzy: 1\n", ":1: unknown key 'xyzzy'; --help lists all of them"),
        ("lr: fast\n", ":1: lr must be a valid number, got 'fast'"),
        ("lr: '0,048'\n", ":1: lr must be a valid number, got '0,048'"),
        ("lr: [0.1, 0.2]\n", ":1: lr must be a valid number, got ['0.1', '0.2']"),
        ("lr: nan\n", ":1: lr must be a finite number, got 'nan'"),
        ("lr:\n", ":1: lr must be a valid number, got ''"),
        ("epochs: 4.5\n", ":1: epochs must be a valid integer, got '4.5'"),
        ("epochs: true\n", ":1: epochs must be a valid integer, got 'true'"),
        ("drop_last: maybe\n", ":1: drop_last must be true or false, got 'maybe'"),
        ("crop_scale: 0.5\n", ":1: crop_scale must be two numbers, got '0.5'"),
        ("crop_scale: [0.5, 0.7, 1]\n", ":1: crop_scale must be two numbers, got ['0.5', '0.7', '1']"),
        ("optimizer: lamb\n", ":1: optimizer must be 'rmsprop', 'sgd' or 'adamw', got 'lamb'"),
        ("lr: 0.1\nlr: 0.2\n", ":2: lr is given twice"),
        ("lr: 0.1\nepochs: [\n", ":3: not valid YAML: "),
        ("model: {variant: a}\n", ":1: model must be a valid string, got {'variant': 'a'}"),
        ("? [lr, epochs]\n: 1\n", ":1: unknown key "),
        ("- lr\n", "must be lines of `key: value`"),
        ("", "must be lines of `key: value`"),
    ],
)
def test_wrong_recipes_are_refused_with_file_and_line(recipe, refusal, text, sentence):
    path = recipe(text)
    message = refusal("--recipe", path)
    assert path in message
    assert sentence in message


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--ema_decya", "0.9"], "unknown flag --ema_decya; did you mean --ema_decay?"),
        (["--ema_decya=0.9"], "unknown flag --ema_decya; did you mean --ema_decay?"),
        (["--no_chanels_last"], "unknown flag --no_chanels_last; did you mean --no_channels_last?"),
        (["--explian"], "unknown flag --explian; did you mean --explain?"),
        (["--batch-size", "128"], "unknown flag --batch_size; did you mean --per_device_batch_size?"),
        (["--learning_rate", "0.1"], "unknown flag --learning_rate; did you mean --lr?"),
        (["--epoch", "5"], "unknown flag --epoch; did you mean --epochs?"),  # no abbreviations
        (["imagenet"], "unexpected argument 'imagenet'; every value needs its flag before it"),
        (["--lr"], "argument --lr: expected one argument"),
        (["--crop_scale", "0.5"], "argument --crop_scale: expected 2 arguments"),
        (["--lr", "fast"], "lr must be a valid number, got 'fast'"),
        (["--lr", "-1"], "lr must be greater than 0, got '-1'"),
        (["--lr", "inf"], "lr must be a finite number, got 'inf'"),
        (["--ema_decay", "1"], "ema_decay must be less than 1, got '1'"),
        (["--ema_decay", "-0.1"], "ema_decay must be greater than or equal to 0, got '-0.1'"),
        (["--dropout_rate", "1"], "dropout_rate must be less than 1, got '1'"),
        (["--horizontal_flip", "1.5"], "horizontal_flip must be less than or equal to 1, got '1.5'"),
        (["--epochs", "0"], "epochs must be greater than or equal to 1, got '0'"),
        (["--keep", "1"], "keep must be greater than or equal to 2, got '1'"),
        (
            ["--crop_scale", "1", "0.5"],
            "crop_scale must be two shares of the area, 0 < low <= high <= 1, got ['1', '0.5']",
        ),
        (["--crop_scale", "0.5", "x"], "crop_scale must be two numbers, got 'x'"),
        (["--crop_ratio", "0", "1"], "crop_ratio must be two ratios, 0 < low <= high, got ['0', '1']"),
        (["--optimizer", "adam"], "optimizer must be 'rmsprop', 'sgd' or 'adamw', got 'adam'"),
        (["--precision", "fp8"], "precision must be 'no', 'fp16' or 'bf16', got 'fp8'"),
        (["--model", ""], "model must be a name, not empty, got ''"),
        (
            ["--per_device_batch_size", "100"],
            "global_batch_size must be a multiple of per_device_batch_size, got 1024 and 100",
        ),
        (["--on_bad_image", "skip"], "on_bad_image must be stop, or skip:N with a whole N, got 'skip'"),
        (["--on_nonfinite", "skip:0"], "on_nonfinite must be stop, or skip:N with a whole N, got 'skip:0'"),
        (["--save_every", "10"], "save_every must be an interval like 500steps or 10min, got '10'"),
        (["--timeout_s", "0"], "timeout_s must be greater than or equal to 1, got '0'"),
        (
            ["--backbone_lr_scale", "0"],
            "backbone_lr_scale must be above 0 (a factor like 1e-3 leaves the weights almost as they are), got '0'",
        ),
        (["--min_lr", "0.1"], "min_lr must not be above lr (0.048), got 0.1"),
        (
            ["--schedule", "cosine", "--epochs", "3"],
            "warmup_epochs must be below epochs (3) for the cosine, got 3",
        ),
    ],
)
def test_wrong_command_lines_are_refused(refusal, argv, sentence):
    assert refusal(*argv) == f"error: {sentence}"


def test_one_process_of_many_says_what_is_wrong(monkeypatch, capsys):
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert ends_with(["--epochs", "0"]) == 2
        said.append(capsys.readouterr().err)
    assert said == ["error: epochs must be greater than or equal to 1, got '0'\n", ""]


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path, refusal):
    missing = tmp_path / "missing.yaml"
    assert refusal("--recipe", str(missing)) == f"error: recipe {missing} cannot be read: No such file or directory"
    assert refusal("--recipe", str(tmp_path)) == f"error: recipe {tmp_path} cannot be read: Is a directory"
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    assert "cannot be read: not UTF-8 text" in refusal("--recipe", str(tmp_path / "image.yaml"))
    (tmp_path / "control.yaml").write_bytes(b"lr: \x00\n")
    assert "is not valid YAML" in refusal("--recipe", str(tmp_path / "control.yaml"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lr": "fast"}, "lr must be a valid number, got 'fast'"),
        ({"lr": None}, "lr must be a valid number, got None"),
        ({"lr": True}, "lr must be a valid number, got True"),
        ({"epochs": 4.5}, "epochs must be a valid integer, got 4.5"),
        ({"epochs": True}, "epochs must be a valid integer, got True"),
        ({"epochs": 4.0}, "epochs must be a valid integer, got 4.0"),
        ({"epochs": "4.0"}, "epochs must be a valid integer, got '4.0'"),
        ({"epochs": "1" * 5000}, f"epochs must be an integer of fewer digits, got {'1' * 5000!r}"),
        ({"streaming": "y"}, "streaming must be true or false, got 'y'"),
        ({"streaming": 1}, "streaming must be true or false, got 1"),
        ({"crop_scale": {0.5, 1.0}}, "crop_scale must be two numbers, got {0.5, 1.0}"),
        ({"model": b"tinynet_e"}, "model must be a valid string, got b'tinynet_e'"),
        ({"model": 3}, "model must be a valid string, got 3"),
        (
            {"model": "caf\udce9"},
            r"model must be UTF-8 text, got 'caf\udce9'",
        ),
        ({"crop_scale": (0.5,)}, "crop_scale must be two numbers, got (0.5,)"),
        ({"push_to_hub": "me/x..y"}, "push_to_hub must be a repository like me/tinynet-flowers, got 'me/x..y'"),
        ({"push_to_hub": "tinynet"}, "push_to_hub must be a repository like me/tinynet-flowers, got 'tinynet'"),
        ({"min_lr": 0.1}, "min_lr must not be above lr (0.048), got 0.1"),
    ],
)
def test_construction_is_checked_as_the_command_line_is(values, sentence):
    with pytest.raises(ValidationError) as refusal:
        TrainConfig(**values)
    assert one_sentence(refusal.value) == sentence


@pytest.mark.parametrize("name", FIELDS)
def test_no_setting_takes_what_it_is_not_made_for(name):
    """A setting without a check would take this."""
    with pytest.raises(ValidationError) as refusal:
        TrainConfig(**{name: [["x"]]})
    assert one_sentence(refusal.value).startswith(f"{name} must be ")


def test_an_unknown_setting_is_an_error():
    with pytest.raises(ValidationError, match="learning_rate"):
        TrainConfig(learning_rate=0.1)


def test_stop_tolerates_nothing_and_skip_its_number():
    assert (skip_limit("stop"), skip_limit("skip:12")) == (0, 12)


def test_names_of_other_trainers_lead_to_fields():
    assert set(OTHER_NAMES.values()) <= set(FIELDS)
    assert not set(OTHER_NAMES) & set(FIELDS)


# Another global batch


def test_another_batch_on_the_command_line_needs_rescale_or_lr(refusal, recipe):
    for_recipe = ["--recipe", recipe("global_batch_size: 256\n")]
    assert parsed(*for_recipe).lr == 0.048  # a recipe's learning rate is meant for the batch it names
    message = refusal(*for_recipe, "--global_batch_size", "512")
    assert message.startswith("error: global_batch_size 512 is not the recipe's 256")
    assert "--rescale" in message and "--lr" in message
    assert "not the recipe's 1024" in refusal("--global_batch_size", "512")
    assert parsed("--global_batch_size", "512", "--lr", "0.01").lr == 0.01
    assert parsed(*for_recipe, "--global_batch_size", "256").global_batch_size == 256


def test_rescale_scales_the_learning_rates_and_keeps_the_half_life_in_images():
    config, command_line = parse_config(["--global_batch_size", "256", "--rescale", "--min_lr", "1e-5"])
    assert (config.lr, config.warmup_lr, config.min_lr) == (0.012, 2.5e-7, 2.5e-6)
    # 0.9999 after one update of 1024 images is the new decay after four of 256
    assert config.ema_decay**4 == pytest.approx(0.9999, abs=1e-12)
    assert command_line.rescaling == (
        "rescaled from a global batch of 1024 to 256: lr 0.048 -> 0.012, ema_decay 0.9999 -> 0.999975"
    )


def test_rescale_counts_from_the_batch_of_the_recipe(recipe):
    config = parsed("--recipe", recipe("global_batch_size: 256\nlr: 0.1\n"), "--global_batch_size", "512", "--rescale")
    assert config.lr == pytest.approx(0.2)


def test_rescale_without_another_batch_changes_nothing():
    assert parse_config(["--rescale"]) == parse_config([])
    assert rescaled(TrainConfig(rescale=True), 1024) == (TrainConfig(), None)
    assert rescaled(TrainConfig(global_batch_size=512), 1024) == (TrainConfig(global_batch_size=512), None)


def test_a_resolved_recipe_is_not_rescaled_twice(recipe):
    config = parsed("--global_batch_size", "256", "--rescale")
    assert parsed("--recipe", recipe(config.to_yaml("1.2.3"))) == config


# What a run saves


def test_a_resolved_recipe_reads_back_equal(recipe):
    config = TrainConfig(
        model="tinynet_e",
        image_size=64,
        run_name="1e-6",
        train_split="no",
        warmup_lr=1e-6,
        crop_ratio=(0.7, 1.3),
        precision="no",
        lr=0.1 + 0.2,
        channels_last=False,
    )
    text = config.to_yaml("1.2.3")
    assert "modeling-tinynet 1.2.3" in text.splitlines()[0]
    assert TrainConfig(**read_recipe(recipe(text))) == config


def test_a_resolved_recipe_names_every_field():
    assert set(yaml.safe_load(TrainConfig().to_yaml("1.2.3"))) == set(FIELDS)


def test_every_field_belongs_to_a_group_and_is_explained():
    for field in FIELDS.values():
        assert field.metadata["group"] in GROUPS
        assert field.metadata["help"]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_config(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in FIELDS:
        assert f"--{name} " in text or f"--{name}\n" in text
    for group in GROUPS:
        assert f"\n{group}:\n" in text
    examples = text[text.index("\nexamples:") :]
    assert examples.count("accelerate launch") == 3
    for path in re.findall(r"configuration/[\w/]+\.yaml", examples):
        assert (ROOT / path).is_file()


def test_the_configuration_does_not_import_torch():
    """It is read before anything that takes seconds to import, and where torch is not installed."""
    imported = "import sys, training.config.train_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", imported], cwd=ROOT, check=True)


# Recipes


@pytest.mark.parametrize("variant", PUBLISHED_NETWORKS)
def test_published_recipes_equal_the_publication(variant):
    config = parsed("--recipe", str(RECIPES / f"{variant}.yaml"))
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED
    assert config.model == variant
    assert config.drop_path_rate == (0.1 if variant == "tinynet_b" else None)
    assert (config.image_size, config.dropout_rate, config.batch_norm_momentum, config.batch_norm_eps) == (None,) * 4
    network = TinyNetConfig.from_variant(variant)
    assert network.image_size == PUBLISHED_NETWORKS[variant][0]
    assert (network.dropout_rate, network.drop_path_rate) == (0.2, 0)
    assert (network.batch_norm_momentum, network.batch_norm_eps) == (0.1, 1e-5)


@pytest.mark.parametrize("variant", PUBLISHED_NETWORKS)
def test_headers_of_published_recipes_state_the_published_numbers(variant):
    image_size, resize_size, parameters, macs, top_1 = PUBLISHED_NETWORKS[variant]
    header = (RECIPES / f"{variant}.yaml").read_text()
    assert f"{image_size} px (evaluated at {image_size} of {resize_size} px)" in header
    assert f"{parameters:,} parameters, {macs} MACs" in header
    assert f"Expected: {top_1} % top-1 (published)" in header
    images = 1_281_167 // 1024 * 1024
    cost = 3 * 450 * images * TinyNetConfig.from_variant(variant).macs
    assert f"450 epochs x {images:,} images = {450 * images // 10**6} million images" in header
    assert f"about {cost:.1e} MACs".replace("e+", "e") in header


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_parses_and_says_what_it_costs(path):
    TrainConfig(**read_recipe(path))
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Source:", "Cost:", "Hardware:", "Expected:"):
        assert any(line.startswith(f"# {word}") for line in comments)


def test_quick_start_is_tinynet_e_on_digits_in_one_process():
    config = TrainConfig(**read_recipe(RECIPES / "quickstart.yaml"))
    assert (config.model, config.dataset, config.image_size) == ("tinynet_e", "digits", 64)
    assert config.global_batch_size == config.per_device_batch_size
    assert config.horizontal_flip == 0  # a mirrored digit is no digit
    network = TinyNetConfig.from_variant("tinynet_e", num_labels=10, image_size=64)
    header = (RECIPES / "quickstart.yaml").read_text()
    assert f"{network.parameter_count:,} parameters, {network.macs / 1e6:.1f} M MACs" in header
    assert f"{config.epochs} epochs x 1,438 images" in header


def test_fine_tuning_starts_from_trained_weights():
    assert TrainConfig(**read_recipe(RECIPES / "finetune.yaml")).model.startswith("timm/")


# Loader workers


def test_workers_share_the_cores_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    cores = len(allowed)
    assert default_num_workers(1) == min(cores, 16)
    assert default_num_workers(cores) == 1
    assert default_num_workers(cores + 1) == 0
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert (default_num_workers(1), default_num_workers(2)) == (1, 0)
    finally:
        os.sched_setaffinity(0, allowed)


# Launch configurations


def launched(path: Path, *flags: str) -> dict[str, str]:
    """The environment accelerate's own launcher would start train.py in."""
    args = launch_command_parser().parse_args(
        ["--config_file", str(path), "--num_cpu_threads_per_process", "1", *flags, "train.py"]
    )
    args, defaults, _ = _validate_launch_command(args)
    assert defaults == load_config_from_file(str(path))
    if args.multi_gpu:
        return prepare_multi_gpu_env(args) | {"nnodes": str(args.num_machines), "nproc": args.nproc_per_node}
    return prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_configurations_are_accelerates_and_compute_in_float32_as_published(path):
    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no"
    assert path.name in path.read_text().split("compute_environment")[0]  # its header shows how to use it


def test_cpu_and_one_gpu_launch_one_process():
    assert launched(LAUNCH / "cpu.yaml")["ACCELERATE_USE_CPU"] == "True"
    assert launched(LAUNCH / "one_gpu.yaml")["ACCELERATE_USE_CPU"] == "False"
    for name in ("cpu", "one_gpu"):
        config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
        assert (config.num_processes, config.distributed_type) == (1, "NO")


def test_eight_gpus_are_the_published_batch():
    environment = launched(LAUNCH / "eight_gpus.yaml")
    assert (environment["nnodes"], environment["nproc"]) == ("1", "8")
    assert 8 * PUBLISHED["per_device_batch_size"] == PUBLISHED["global_batch_size"]


def test_several_nodes_launch_eight_processes_on_each():
    environment = launched(LAUNCH / "several_nodes.yaml", "--main_process_ip", "127.0.0.1", "--machine_rank", "1")
    assert (environment["nnodes"], environment["nproc"]) == ("2", "8")
    (batch,) = re.findall(r"train\.py --per_device_batch_size (\d+)", (LAUNCH / "several_nodes.yaml").read_text())
    assert 2 * 8 * int(batch) == PUBLISHED["global_batch_size"]


# The table for people who come from the MindSpore trainer


DOCUMENT = (ROOT / "docs" / "mindspore.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:4] for line in DOCUMENT.splitlines() if line.startswith("| `")]
LAUNCHER_FLAGS = {option for action in launch_command_parser()._actions for option in action.option_strings}


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"--[A-Za-z][\w-]*", text))


def test_every_flag_of_the_original_has_a_row():
    assert set(ORIGINAL_FLAGS) <= set().union(*(flags_in(there) for there, _, _ in ROWS))


@pytest.mark.parametrize("script", ["eval.sh", "train_1p_gpu.sh", "train_distributed_gpu.sh -n 8"])
def test_every_script_of_the_original_has_a_line(script):
    section = DOCUMENT[DOCUMENT.index(f"`{script}`") :]
    assert re.search(r"```\n(python eval\.py|accelerate launch .*train\.py) .+\n```", section)


def test_every_flag_named_as_ours_exists():
    ours = {f"--{name}" for name in FIELDS} | {"--recipe", "--explain"}
    for there, here, remark in ROWS:
        assert flags_in(here + remark) <= ours | LAUNCHER_FLAGS, there
    assert flags_in(" ".join(re.findall(r"```\n(.+)\n```", DOCUMENT))) <= ours | LAUNCHER_FLAGS


def test_flags_in_the_table_are_accepted_with_their_values():
    for _, here, _ in ROWS:
        for command in re.findall(r"`(--[^`]+)`", here):
            argv = [str(ROOT) if word.isupper() else word for word in command.split()]
            parsed(*argv)


def test_training_lines_in_the_document_are_command_lines():
    lines = [line for line in DOCUMENT.splitlines() if line.startswith("accelerate launch")]
    assert len(lines) == 3
    for line in lines:
        launcher, arguments = line.removeprefix("accelerate launch ").split(" train.py ")
        launch_command_parser().parse_args([*launcher.split(), "train.py"])
        argv = [str(ROOT / word) if word.startswith("configuration/") else word for word in arguments.split()]
        assert parsed(*argv).model == "tinynet_c"


def test_files_named_in_the_document_exist():
    for path in re.findall(r"configuration/[\w/]+\.yaml", DOCUMENT):
        assert (ROOT / path).is_file()
