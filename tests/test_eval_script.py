import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from timm.models import create_model, save_for_hf
from torchvision.transforms.v2 import functional as tvF

from modeling_tinynet import TinyNetConfig, TinyNetForImageClassification, TinyNetImageProcessor
from tests import launcher
from tests.evaluation_runs import DIGITS, ROOT, digits_folder, load_script, run, run_json, save_model
from training.command import run_command
from training.data.sources import load_splits
from training.errors import ModelError


@pytest.fixture(scope="module")
def script():
    return load_script()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "first")


def plain_loop(folder, images, names):
    """Top-1 and top-5 of a saved model, one image after the other, without anything of the trainer's."""
    model = TinyNetForImageClassification.from_pretrained(folder).eval()
    config = model.config
    n = top_1 = top_5 = 0
    for label, name in enumerate(names):
        for file in sorted((images / name).iterdir()):
            pixels = torch.from_numpy(np.array(PIL.Image.open(file).convert("RGB"))).permute(2, 0, 1)
            pixels = tvF.resize(pixels, [config.resize_size], tvF.InterpolationMode.BICUBIC, antialias=True)
            pixels = tvF.center_crop(pixels, [config.image_size]) / 255
            pixels = tvF.normalize(pixels, list(config.image_mean), list(config.image_std))
            with torch.no_grad():
                order = model(pixels[None]).logits[0].argsort(descending=True).tolist()
            answers = [config.id2label[index] for index in order]
            n += 1
            top_1 += answers[0] == names[label]
            top_5 += names[label] in answers[:5]
    return {"n": n, "top_1_correct": top_1, "top_5_correct": top_5}


def counts(entry):
    return {key: entry[key] for key in ("n", "top_1_correct", "top_5_correct")}


def test_counts_of_several_models_equal_a_plain_loop(script, model, tmp_path, capsys):
    """A second model of the same input, and one of another size: two passes, three rows."""
    images = digits_folder(tmp_path / "images", per_class=5)
    second = save_model(tmp_path / "second", seed=1)
    larger = save_model(tmp_path / "larger", image_size=48)
    models = [model, second, larger]
    results = run_json(script, tmp_path, *models, "--dataset", images, "--split", "train", "--batch_size", 16)
    output = capsys.readouterr()
    assert [entry["model"] for entry in results["models"]] == [str(folder) for folder in models]
    for entry, folder in zip(results["models"], models, strict=True):
        assert counts(entry) == plain_loop(folder, images, DIGITS)
        k, n = entry["top_1_correct"], entry["n"]
        assert f"{k}/{n} = {100 * k / n:.3f} %" in output.out
        assert entry["parameters"] == TinyNetConfig.from_variant("tinynet_e", num_labels=10).parameter_count
        assert f"{entry['parameters']:,}" in output.out
    assert results["models"][0]["n"] == 50
    assert len({entry["top_5_correct"] for entry in results["models"]}) > 1
    assert results["data"] == f"{images}, train: 50 images, 10 classes"
    assert results["versions"]["torch"] == torch.__version__
    assert "2 models at 32 px" in output.err
    assert "images/s" in output.err


def test_default_split_is_the_one_that_training_holds_out(script, model, tmp_path):
    results = run_json(script, tmp_path, model, "--dataset", "digits")
    assert results["models"][0]["n"] == 359
    assert "20 % of each class is held out" in results["data"]


def test_a_folder_of_classes_is_evaluated_whole_unless_a_share_is_asked_for(script, model, tmp_path, capsys):
    """The share is what train.py holds out: `load_splits` as it calls it."""
    images = digits_folder(tmp_path / "images", per_class=5)
    assert run_json(script, tmp_path, model, "--dataset", images)["models"][0]["n"] == 50
    assert (
        f"{images}, all of it: 50 images, 10 classes; --validation_fraction 0.2 evaluates what train.py holds out"
        in capsys.readouterr().out
    )
    results = run_json(script, tmp_path, model, "--dataset", images, "--validation_fraction", 0.4)
    assert results["models"][0]["n"] == len(load_splits(str(images), validation_fraction=0.4).validation) == 20
    assert "40 % of each class is held out" in results["data"]


def test_a_folder_of_classes_has_no_split_but_train(script, model, tmp_path, capsys):
    """It was evaluated whole by the name of any split, also of one that sounds held out."""
    images = digits_folder(tmp_path / "images", per_class=2)
    assert run_json(script, tmp_path, model, "--dataset", images, "--split", "train")["models"][0]["n"] == 20
    sentence = mistake(script, capsys, model, "--dataset", images, "--split", "validation")
    assert sentence.startswith(f"error: {images} has no split 'validation', for it holds class folders: leave out")


def test_a_train_folder_without_another_is_not_evaluated_whole(script, model, tmp_path):
    digits_folder(tmp_path / "images" / "train", per_class=5)
    assert run_json(script, tmp_path, model, "--dataset", tmp_path / "images")["models"][0]["n"] == 10


@pytest.mark.parametrize("names", [["3"], ["3", "7"]], ids=["one class", "one image in each"])
def test_a_folder_too_small_to_train_on_is_evaluated(script, model, tmp_path, names):
    images = digits_folder(tmp_path / "images", names=names, per_class=4 if len(names) == 1 else 1)
    entry = run_json(script, tmp_path, model, "--dataset", images, "--per_class")["models"][0]
    assert [row["class"] for row in entry["per_class"]] == names
    assert entry["top_1_correct"] == plain_loop(model, images, names)["top_1_correct"]


def test_a_named_split_is_evaluated_as_a_whole(script, model, tmp_path):
    for split, per_class in (("train", 5), ("val", 3)):
        digits_folder(tmp_path / "images" / split, per_class=per_class)
    for options, n in (([], 30), (["--split", "val"], 30), (["--split", "train"], 50)):
        assert run_json(script, tmp_path, model, "--dataset", tmp_path / "images", *options)["models"][0]["n"] == n


@pytest.mark.parametrize(("split", "n"), [("train", 150), ("test", 90)])
def test_a_streamed_split_gives_the_counts_of_the_stored_one(script, model, tmp_path, split, n):
    """Parquet files with a dataset card that states the sizes, as the Hub has them."""
    digits = load_splits("digits")
    parts = {"train": digits.train.select(range(150)), "test": digits.validation.select(range(90))}
    for name, part in parts.items():
        part.to_parquet(tmp_path / "digits" / f"{name}.parquet")
    splits = [{"name": name, "num_examples": len(part), "num_bytes": 1} for name, part in parts.items()]
    features = [
        {"name": "image", "dtype": "image"},
        {"name": "label", "dtype": {"class_label": {"names": dict(zip(DIGITS, DIGITS, strict=True))}}},
    ]
    card = json.dumps({"dataset_info": {"features": features, "splits": splits}})
    (tmp_path / "digits" / "README.md").write_text(f"---\n{card}\n---\n")
    arguments = [model, "--dataset", tmp_path / "digits", "--split", split]
    stored = run_json(script, tmp_path, *arguments)["models"][0]
    streamed = run_json(script, tmp_path, *arguments, "--streaming")["models"][0]
    assert counts(streamed) == counts(stored)
    assert streamed["n"] == n


def test_a_timm_folder_gives_timms_counts(script, tmp_path):
    """Written by timm, without label names: classes go by position."""
    torch.manual_seed(0)
    timm_model = create_model("tinynet_e", num_classes=10).eval()
    save_for_hf(timm_model, tmp_path / "timm", model_config={"num_classes": 10}, safe_serialization=True)
    images = digits_folder(tmp_path / "images")
    entry = run_json(script, tmp_path, tmp_path / "timm", "--dataset", images, "--split", "train")["models"][0]

    processor = TinyNetImageProcessor.from_pretrained(tmp_path / "timm")
    top_1 = 0
    for label, name in enumerate(DIGITS):
        pictures = [np.array(PIL.Image.open(file).convert("RGB")) for file in sorted((images / name).iterdir())]
        with torch.no_grad():
            logits = timm_model(processor(pictures, return_tensors="pt")["pixel_values"])
        top_1 += int((logits.argmax(1) == label).sum())
    assert entry["image_size"] == 106
    assert entry["parameters"] == sum(parameter.numel() for parameter in timm_model.parameters())
    assert entry["top_1_correct"] == top_1


def test_labels_are_matched_by_name(script, model, tmp_path):
    """The same model with its classes in another order, which it states: the same answers."""
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    shuffled = tmp_path / "shuffled"
    original = TinyNetForImageClassification.from_pretrained(model)
    original.classifier.weight.data = original.classifier.weight.data[order]
    original.classifier.bias.data = original.classifier.bias.data[order]
    original.config.id2label = {index: DIGITS[digit] for index, digit in enumerate(order)}
    original.save_pretrained(shuffled)

    results = run_json(script, tmp_path, model, shuffled, "--dataset", "digits", "--per_class")
    first, second = results["models"]
    assert counts(first) == counts(second)
    assert first["per_class"] == second["per_class"]
    assert [row["class"] for row in first["per_class"]] == DIGITS


def test_classes_that_are_matched_by_position_are_said_so(script, model, tmp_path, capsys):
    unnamed = tmp_path / "unnamed"
    shutil.copytree(model, unnamed)
    config = json.loads((unnamed / "config.json").read_text())
    config["id2label"] = {str(index): f"LABEL_{index}" for index in range(10)}
    del config["label2id"]
    (unnamed / "config.json").write_text(json.dumps(config))
    results = run_json(script, tmp_path, model, unnamed, "--dataset", "digits")
    assert [entry["classes"] for entry in results["models"]] == ["by name", "by position"]
    notes = [line for line in capsys.readouterr().out.splitlines() if "by position" in line]
    assert notes == [f"{unnamed}: classes by position ('LABEL_0' is '0', and so on)"]


def test_the_example_of_classes_by_position_shows_folders_that_are_numbered_otherwise(script):
    class_names = sorted(str(number) for number in range(12))  # 0, 1, 10, 11, 2, ...
    model = script.Model("unnamed", torch.nn.Linear(4, 12), [f"LABEL_{index}" for index in range(12)], None)
    assert script.with_classes_of(class_names, model).by_position == "'LABEL_2' is '10', and so on"


def test_a_name_of_two_classes_is_not_taken_for_either(script):
    """The last of them was, so that half of its images could count as wrong."""
    model = script.Model("twins", torch.nn.Linear(4, 3), ["crane", "ant", "crane"], None)
    assert script.with_classes_of(["ant"], model).labels == ["ant", "crane", "crane"]
    with pytest.raises(ModelError, match="twins has 2 classes called 'crane': tell them apart"):
        script.with_classes_of(["ant", "crane"], model)


def test_a_data_set_may_lack_classes_of_the_model(script, model, tmp_path):
    images = digits_folder(tmp_path / "images", names=DIGITS[:3])
    results = run_json(script, tmp_path, model, "--dataset", images, "--split", "train", "--per_class")
    assert counts(results["models"][0]) == plain_loop(model, images, DIGITS[:3])
    assert [row["class"] for row in results["models"][0]["per_class"]] == ["0", "1", "2"]


def test_worst_classes_come_first_and_add_up(script, model, tmp_path, capsys):
    results = run_json(script, tmp_path, model, "--dataset", "digits", "--per_class")
    rows = results["models"][0]["per_class"]
    assert sum(row["n"] for row in rows) == 359
    assert sum(row["top_1_correct"] for row in rows) == results["models"][0]["top_1_correct"]
    _, headings, *lines = capsys.readouterr().out.partition("\nby class")[2].splitlines()
    assert headings.split() == ["class", "recall", "precision", "F1"]
    by_name = {row["class"]: row for row in rows}
    shown = [line.split() for line in lines]
    recalls = [100 * by_name[cells[0]]["recall"] for cells in shown]
    assert len(recalls) == 10
    assert recalls == sorted(recalls)
    for name, *cells in shown:
        row, text = by_name[name], " ".join(cells)
        assert text.startswith(f"{row['top_1_correct']}/{row['n']} = {100 * row['recall']:.1f} % ")
        precision = f"{row['top_1_correct']}/{row['predicted']} = {100 * (row['precision'] or 0):.1f} %"
        assert text.endswith(f" {precision if row['predicted'] else '-'} {100 * row['f1']:.1f} %")
    assert sum(row["predicted"] for row in rows) == 359


def test_confusion_matrix_is_drawn_whatever_the_classes_are_called(script, tmp_path):
    r"""`$\foo$` is no formula that matplotlib knows, and `$x$` must not become one."""
    names = [r"$\foo$", "$x$", "_hidden", "100 %", "a^b", "{", "\\", "ü", "e", "f"]
    model = save_model(tmp_path / r"$\alpha", labels=names)
    images = digits_folder(tmp_path / "images", names=names)
    run(script, model, "--dataset", images, "--confusion", tmp_path / "confusion.png")
    with PIL.Image.open(tmp_path / "confusion.png") as image:
        assert image.format == "PNG"


def test_two_processes_count_what_one_counts_and_write_once(script, model, tmp_path):
    """359 images, an odd number, and two models at different sizes."""
    larger = save_model(tmp_path / "larger", image_size=48)
    arguments = [model, larger, "--dataset", "digits", "--per_class", "--batch_size", 16]
    one = run_json(script, tmp_path, *arguments)
    command = [ROOT / "eval.py", *arguments, "--num_workers", 1, "--json", tmp_path / "two.json"]
    done = launcher.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, num_ranks=2)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two.json").read_text())
    assert (one["processes"], two["processes"]) == (1, 2)
    for alone, shared in zip(one["models"], two["models"], strict=True):
        assert counts(shared) == counts(alone)
        assert shared["per_class"] == alone["per_class"]
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert shared["n"] == 359
    assert done.stdout.count("images/s") == 1
    assert done.stdout.count("/359 = ") == 4  # top-1 and top-5 of two models
    assert done.stdout.count("20 % of each class is held out") == 1
    assert done.stdout.count("\nby class") == 2


# Mistakes: one sentence on stderr, exit code 2


def mistake(script, capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        sys.exit(run_command(lambda arguments: run(script, *arguments), arguments))
    assert exit.value.code == 2
    error = capsys.readouterr().err
    sentence = [line for line in error.splitlines() if line.startswith("error: ")]
    assert error.splitlines()[-1:] == sentence
    assert "Traceback" not in error
    return sentence[0]


def test_classes_that_do_not_match_are_an_error(script, model, tmp_path, capsys):
    images = digits_folder(tmp_path / "images", names=["0", "one", "two"])
    sentence = mistake(script, capsys, model, "--dataset", images, "--split", "train")
    assert sentence == (
        f"error: the dataset's classes are not those of {model}: 2 of 3, such as 'one', are not among the model's 10, "
        "such as '0'"
    )


def test_a_missing_folder_is_an_error(script, tmp_path, capsys):
    sentence = mistake(script, capsys, tmp_path / "missing", "--dataset", "digits")
    assert sentence == f"error: folder {tmp_path / 'missing'} does not exist"


def test_an_unknown_hub_id_is_an_error(script, capsys):
    assert mistake(script, capsys, "nobody/nothing", "--dataset", "digits").startswith(
        "error: model nobody/nothing cannot be loaded: "
    )


def test_a_folder_without_a_model_is_an_error(script, tmp_path, capsys):
    sentence = mistake(script, capsys, tmp_path, "--dataset", "digits")
    assert sentence == f"error: folder {tmp_path} has no config.json"


def test_the_folder_of_a_run_is_an_error_that_names_its_models(script, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "run" / "best")
    sentence = mistake(script, capsys, tmp_path / "run", "--dataset", "digits")
    assert sentence.endswith(f"it is the folder of a run: take {tmp_path / 'run' / 'best'}")


def test_another_architecture_is_an_error(script, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    sentence = mistake(script, capsys, tmp_path, "--dataset", "digits")
    assert sentence.endswith("its model_type is 'resnet', not 'tinynet'")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "num_classes": 10}')
    assert "'resnet18'" in mistake(script, capsys, tmp_path, "--dataset", "digits")


def test_a_damaged_weight_file_is_an_error(script, model, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"model {folder} cannot be loaded" in mistake(script, capsys, folder, "--dataset", "digits")


def test_missing_weights_are_an_error_and_not_random(script, model, tmp_path, capsys):
    folder = tmp_path / "incomplete"
    shutil.copytree(model, folder)
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["classifier.bias"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sentence = mistake(script, capsys, folder, "--dataset", "digits")
    assert sentence == (f"error: model {folder} has no classifier to evaluate: classifier.bias is missing in its file")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"image_std": [0, 0, 0]},
            "image_std must be a positive number, or one for each of 3 channels, got (0, 0, 0)",
        ),
        ({"size": {"longest_edge": 9}}, "size must have the key 'shortest_edge', or 'height' and 'width', got"),
        ({"image_processor_type": "ViTImageProcessor"}, "its image processor is a ViTImageProcessor, and only"),
    ],
    ids=str,
)
def test_an_image_processor_that_cannot_be_followed_is_an_error(script, model, tmp_path, capsys, settings, problem):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    sentence = mistake(script, capsys, folder, "--dataset", "digits")
    assert sentence.startswith(f"error: model {folder} cannot be loaded: {problem}")


def test_missing_data_is_an_error(script, model, tmp_path, capsys):
    assert "does not exist" in mistake(script, capsys, model, "--dataset", tmp_path / "missing")
    assert "has no split 'test'" in mistake(script, capsys, model, "--dataset", "digits", "--split", "test")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_image_is_one_sentence_from_a_loader_worker_too(script, model, tmp_path, capsys, workers):
    images = digits_folder(tmp_path / "images")
    (images / "3" / "1.png").write_bytes(b"no image")
    arguments = [str(model), "--dataset", str(images), "--split", "train", "--device", "cpu"]
    arguments += ["--num_workers", str(workers)]
    assert run_command(script.main, arguments) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith(f"error: {images / '3' / '1.png'} (sample 13): is not an image")


@pytest.mark.parametrize("option", ["--json", "--confusion"])
def test_a_result_that_cannot_be_written_is_an_error_before_the_work(script, model, tmp_path, capsys, option):
    for path in (tmp_path / "missing" / "results", tmp_path):
        sentence = mistake(script, capsys, model, "--dataset", "digits", option, path)
        assert sentence == f"error: argument {option}: {path} must be a file in a folder that can be written to"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch_size", "0"], "must be a whole number of at least 1, got '0'"),
        (["--batch_size", "many"], "must be a whole number of at least 1, got 'many'"),
        (["--num_workers", "-1"], "argument --num_workers: must be a whole number of at least 0, got '-1'"),
        (["--validation_fraction", "2"], "argument --validation_fraction: must be a number between 0 and 1, got '2'"),
        (["--validation_fraction", "nan"], "must be a number between 0 and 1, got 'nan'"),
        (["--validation_fraction", "0.2", "--split", "train"], "argument --split: not allowed with argument --valid"),
        (["--class_names", "missing.txt"], "argument --class_names: missing.txt must be a file that can be read"),
        (["--json", "x", "--confusion", "x"], "--json and --confusion must be two files, got x for both"),
        (["--split", ""], "argument --split: must not be empty"),
        (["--device", "abacus"], "must be auto, cpu or cuda, got 'abacus'"),
        (["--confusoin", "x.png"], "unrecognized arguments: --confusoin x.png"),
    ],
)
def test_a_wrong_option_is_an_error_before_a_model_is_loaded(script, monkeypatch, capsys, arguments, words):
    monkeypatch.delattr(script, "load_model")
    with pytest.raises(SystemExit) as exit:
        script.main(["model", "--dataset", "digits", *arguments])
    assert exit.value.code == 2
    assert words in capsys.readouterr().err


def test_the_command_line_works_from_anywhere(model, tmp_path):
    """As a process of its own: the table goes to stdout, progress to stderr."""
    command = [sys.executable, ROOT / "eval.py", model, "--dataset", "digits", "--num_workers", "1", "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0
    assert "/359 = " in done.stdout
    assert "images/s" in done.stderr
