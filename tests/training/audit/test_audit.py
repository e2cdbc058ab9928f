import hashlib
import io
import json
import statistics
import struct
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest

from tests import launcher
from training.audit import audit
from training.audit import facts as audit_facts
from training.audit.duplicates import duplicates
from training.audit.facts import IMAGE, Audited, audit_split, image_facts, read_facts
from training.command import run_command
from training.config.arguments import DATA_FLAGS
from training.config.train_config import FIELDS
from training.data.decoding import ImageDecodeError, decode_rgb

ROOT = Path(__file__).parents[3]


def main(arguments):
    return run_command(audit.main, arguments)


def noise(width, height, mode="RGB", seed=0):
    pixels = np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def deep_gray(width, height):
    return encode(PIL.Image.fromarray(np.arange(width * height, dtype=np.uint16).reshape(height, width)), "PNG")


def deep_colour(width, height):
    """A PNG of 16 bit a channel, which Pillow reads but does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress((b"\0" + bytes(6 * width)) * height)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD, GRAY, COPIED = encode(noise(80, 64), "JPEG"), encode(noise(70, 70, "L"), "JPEG"), encode(noise(65, 64), "PNG")
JPEG, PNG = encode(noise(100, 100), "JPEG"), encode(noise(90, 90), "PNG")

# Each file with its (width, height, kind) as training sees it, or None where it cannot be decoded.
FILES = {
    "train/ant/a_good.jpg": (GOOD, (80, 64, "JPEG RGB")),
    "train/ant/b_copy.jpg": (GOOD, (80, 64, "JPEG RGB")),
    "train/ant/c_gray.jpg": (GRAY, (70, 70, "JPEG L")),
    "train/ant/d_cmyk.jpg": (encode(noise(64, 90, "CMYK"), "JPEG"), (64, 90, "JPEG CMYK")),
    "train/ant/e_palette.png": (
        encode(noise(30, 20).quantize(16), "PNG", transparency=bytes(range(16))),
        (30, 20, "PNG P"),
    ),
    "train/ant/f_deep.png": (deep_gray(48, 48), (48, 48, "PNG I;16")),
    "train/bee/a_turned.jpg": (encode(noise(100, 50), "JPEG", exif=turned(6)), (50, 100, "JPEG RGB")),
    "train/bee/b_moving.gif": (
        encode(noise(32, 40, "P"), "GIF", save_all=True, append_images=[noise(32, 40, "P", seed=1)]),
        (32, 40, "GIF P"),
    ),
    "train/bee/c_wrong.jpg": (GRAY, (70, 70, "JPEG L")),
    "train/bee/d_empty.jpg": (b"", None),
    "train/bee/e_garbage.jpg": (np.random.default_rng(0).bytes(1000), None),
    "train/bee/f_cut.jpg": (JPEG[: len(JPEG) // 2], None),
    "train/bee/g_page.jpg": (b"<!DOCTYPE html><title>404</title>", None),
    "train/bee/h_float.tif": (encode(PIL.Image.new("F", (9, 9)), "TIFF"), None),
    "train/cat/a.png": (encode(noise(64, 64, "RGBA"), "PNG"), (64, 64, "PNG RGBA")),
    "val/ant/a_leak.jpg": (GOOD, (80, 64, "JPEG RGB")),
    "val/ant/b.png": (COPIED, (65, 64, "PNG RGB")),
    "val/ant/c.png": (COPIED, (65, 64, "PNG RGB")),
    "val/bee/a.jpg": (JPEG, (100, 100, "JPEG RGB")),
    "val/bee/b_cut.png": (PNG[: len(PNG) // 2], None),
}
REASONS = {
    "train/bee/d_empty.jpg": "the file is empty",
    "train/bee/e_garbage.jpg": "is not an image",
    "train/bee/f_cut.jpg": "truncated",
    "train/bee/g_page.jpg": "is not an image",
    "train/bee/h_float.tif": "floating-point",
    "val/bee/b_cut.png": "damaged",
}
FOLDERS = {"train": "train", "validation": "val"}


def in_split(split):
    return {path: facts for path, (_, facts) in FILES.items() if path.startswith(FOLDERS[split])}


def write_files(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def place(root, path):
    """How the report names a file: its sample number counts the files of its split in order."""
    split = next(split for split in FOLDERS if path in in_split(split))
    return f"{root / path} (sample {list(in_split(split)).index(path)} of {split})"


def command(*arguments):
    return launcher.run(["-m", "training.audit", *arguments])


def words(line):
    return line.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("photos"), {path: data for path, (data, _) in FILES.items()})


@pytest.fixture(scope="module")
def answers(folder, tmp_path_factory):
    """What the command says about `folder` with 0 and with 2 workers: [(process, what --report wrote)]."""
    reports = tmp_path_factory.mktemp("reports")
    answers = []
    for workers in (0, 2):
        path = reports / f"{workers}.json"
        answer = command("--dataset", folder, "--num_workers", workers, "--report", path)
        answers.append((answer, json.loads(path.read_text())))
    return answers


@pytest.fixture(scope="module")
def text(answers):
    return answers[0][0].stdout


@pytest.fixture(scope="module")
def summary(answers):
    return answers[0][1]


# A folder of everything


def test_workers_change_nothing_and_bad_images_are_exit_code_1(answers):
    (alone, one), (together, other) = answers
    assert (alone.returncode, together.returncode) == (1, 1), alone.stderr + together.stderr
    assert alone.stdout == together.stdout
    assert one == other
    for answer in (alone, together):
        assert "images/s" in answer.stderr and f"{len(FILES)}/{len(FILES)}" in answer.stderr
        assert "Traceback" not in answer.stderr and "Warning" not in answer.stderr


def test_images_are_counted_by_split_and_class(summary, text):
    for split in FOLDERS:
        facts = in_split(split)
        assert summary["splits"][split]["images"] == len(facts)
        assert summary["splits"][split]["undecodable"] == sum(fact is None for fact in facts.values())
        by_class = Counter(path.split("/")[1] for path in facts)
        assert {row["class"]: row[split] for row in summary["classes"]} == {"ant": 0, "bee": 0, "cat": 0} | by_class
    lines = list(map(words, text.splitlines()))
    for line in (["good", "10", "4"], ["undecodable", "5", "1"], ["all", "15", "5"]):
        assert line in lines
    table = lines.index(words("Images of all 3 classes"))
    assert lines[table + 1 : table + 5] == [
        ["train", "validation"],
        ["bee", "8", "2"],
        ["ant", "6", "3"],
        ["cat", "1", "0"],
    ]
    assert "  absent from validation: cat\n" in text
    assert "absent from train" not in text


def test_class_order_is_stated(summary, text):
    assert [row["class"] for row in summary["classes"]] == ["ant", "bee", "cat"]
    assert summary["alphabetical"] is True
    assert "  0 is 'ant', 2 is 'cat'; the order is alphabetical\n" in text


def test_sizes_are_those_of_good_images_upright(summary, text):
    for split in FOLDERS:
        sizes = [fact[:2] for fact in in_split(split).values() if fact]
        for side, values in zip(("width", "height"), zip(*sizes, strict=True), strict=True):
            expected = {"min": min(values), "median": statistics.median(values), "max": max(values)}
            assert summary["splits"][split]["sizes"][side] == expected
        assert summary["splits"][split]["small"] == sum(min(size) < 64 for size in sizes)
    lines = list(map(words, text.splitlines()))
    assert words("train, width 30 64 80") in lines
    assert words("validation, height 64 64 100") in lines
    assert "  train, shorter side below 64: 4 of 10 = 40.0 %\n" in text
    assert "  validation, shorter side below 64: 0 of 4 = 0.0 %\n" in text


def test_formats_and_modes_are_counted(summary, text):
    for split in FOLDERS:
        kinds = Counter(fact[2] for fact in in_split(split).values() if fact)
        assert summary["splits"][split]["kinds"] == kinds
    lines = list(map(words, text.splitlines()))
    assert words("JPEG RGB 3 2") in lines
    assert words("JPEG CMYK 1 0") in lines


def test_odd_but_good_images_are_counted_and_named(summary, text, folder):
    expected = {
        "EXIF-rotated": ["train/bee/a_turned.jpg"],
        "several frames": ["train/bee/b_moving.gif"],
        "transparency": ["train/ant/e_palette.png", "train/cat/a.png"],
        "16 bit": ["train/ant/f_deep.png"],
    }
    assert summary["odd"] == {name: [place(folder, path) for path in paths] for name, paths in expected.items()}
    assert summary["splits"]["train"]["odd"] == {name: len(paths) for name, paths in expected.items()}
    assert set(summary["splits"]["validation"]["odd"].values()) == {0}
    lines = text.splitlines()
    line = next(number for number, line in enumerate(lines) if words(line)[:3] == ["transparency", "2", "0"])
    assert [line.strip() for line in lines[line + 1 : line + 3]] == summary["odd"]["transparency"]


def test_undecodable_images_are_named_with_the_trainers_reason(summary, text, folder):
    bad = [path for path, (_, facts) in FILES.items() if facts is None]
    assert len(summary["undecodable"]) == len(bad) == len(REASONS)
    for path, sentence in zip(bad, summary["undecodable"], strict=True):
        name = place(folder, path).partition(" (")[2].rstrip(")")
        with pytest.raises(ImageDecodeError) as error:
            decode_rgb({"bytes": None, "path": str(folder / path)}, name)
        assert sentence == str(error.value)
        assert sentence.startswith(f"{place(folder, path)}: ") and REASONS[path] in sentence
        assert f"    {sentence}\n" in text


def test_duplicates_are_named(summary, text, folder):
    found = summary["duplicates"]
    good, copy = place(folder, "train/ant/a_good.jpg"), place(folder, "train/ant/b_copy.jpg")
    gray, wrong = place(folder, "train/ant/c_gray.jpg"), place(folder, "train/bee/c_wrong.jpg")
    leak = place(folder, "val/ant/a_leak.jpg")
    twice = [place(folder, "val/ant/b.png"), place(folder, "val/ant/c.png")]
    assert found == {
        "train": {
            "count": 2,
            "groups": 2,
            "listed": [{"images": 2, "names": [good, copy]}, {"images": 2, "names": [gray, wrong]}],
        },
        "validation": {"count": 1, "groups": 1, "listed": [{"images": 2, "names": twice}]},
        "leaks": {"count": 1, "listed": [{"validation": leak, "train": good}]},
        "labels": {
            "count": 1,
            "listed": [{"images": 2, "names": [{"label": "ant", "name": gray}, {"label": "bee", "name": wrong}]}],
        },
    }
    assert f"leaks, validation images that are training images too: 1\n      {leak}\n        = {good}\n" in text
    assert f"same image under several labels: 1\n      'ant': {gray}\n        = 'bee': {wrong}\n" in text


def test_the_last_line_is_the_verdict(summary, text):
    assert text.splitlines()[-1] == summary["verdict"]
    assert summary["verdict"] == (
        "verdict: training would stop: 6 of 20 images cannot be decoded; warnings: in both splits (1), "
        "repeated within train (2), repeated within validation (1), under several labels (1), "
        "classes absent from validation (1), EXIF-rotated (1), several frames (1), transparency (2), 16 bit (1)"
    )


def test_names_are_as_many_as_list_allows(folder, tmp_path, capsys):
    assert main(["--dataset", str(folder), "--num_workers", "0", "--list", "1"]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    found = lines.index("6 in all")
    assert lines[found + 1].startswith(place(folder, "train/bee/d_empty.jpg"))
    assert lines[found + 2] == "... and 5 more"
    found = lines.index("repeated within train: 2, in groups of one image: 2")
    expected = [place(folder, "train/ant/a_good.jpg"), "= ... and 1 more", "... and 1 more"]
    assert lines[found + 1 : found + 4] == expected
    assert main(["--dataset", str(folder), "--num_workers", "0", "--list", "0"]) == 1
    assert str(folder / "train") not in capsys.readouterr().out


# Other datasets


def test_a_clean_folder_is_exit_code_0(tmp_path):
    files = {
        f"{split}/{name}/{number}.png": encode(
            noise(70, 70, seed=zlib.crc32(f"{split}{name}{number}".encode())), "PNG"
        )
        for split in ("train", "val")
        for name in ("ant", "bee")
        for number in range(3)
    }
    answer = command("--dataset", write_files(tmp_path, files), "--num_workers", 1)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == "verdict: nothing stops training: all 12 images can be decoded"


def test_warnings_alone_are_exit_code_0(tmp_path, capsys):
    good = {path: data for path, (data, facts) in FILES.items() if facts}
    assert main(["--dataset", str(write_files(tmp_path, good)), "--num_workers", "0"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("verdict: nothing stops training: all 14 images can be decoded; warnings: in both splits")


def test_files_that_are_no_images_are_a_warning(tmp_path, capsys):
    """Also a photograph that is hidden; one without an ending is read."""
    others = {"train/ant/.hidden.jpg": GOOD, "train/ant/notes.txt": b"six legs", "val/Thumbs.db": b"thumbs"}
    good = {path: data for path, (data, facts) in FILES.items() if facts}
    path = tmp_path / "audit.json"
    root = write_files(tmp_path / "photos", good | others | {"train/bee/photo": COPIED})
    assert main(["--dataset", str(root), "--num_workers", "0", "--report", str(path)]) == 0
    first, *_, last = capsys.readouterr().out.splitlines()
    named = "train/ant/.hidden.jpg, train/ant/notes.txt, val/Thumbs.db"
    assert first.endswith(f"; left out: 3 hidden or non-image files ({named})")
    assert "all 15 images can be decoded; warnings: hidden or non-image files (3), in both splits" in last
    assert json.loads(path.read_text())["other_files"] == 3


def test_held_out_digits_are_counted_as_scikit_learn_has_them(tmp_path, capsys):
    from sklearn.datasets import load_digits

    path = tmp_path / "digits.json"
    assert main(["--dataset", "digits", "--num_workers", "0", "--report", str(path)]) == 0
    summary, digits = json.loads(path.read_text()), load_digits()
    both = {row["class"]: row["train"] + row["validation"] for row in summary["classes"]}
    assert both == {str(digit): count for digit, count in Counter(digits.target.tolist()).items()}
    different = len({image.tobytes() for image in digits.images})
    copies = [summary["duplicates"][name]["count"] for name in ("train", "validation", "leaks")]
    assert different == len(digits.images) and copies == [0, 0, 0]
    assert "20 % of each class is held out" in capsys.readouterr().out


def test_rows_of_parquet_are_named_by_number(tmp_path, capsys):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["bee", "ant"])})
    pictures = [{"bytes": encode(noise(70, 70, seed=seed), "PNG"), "path": None} for seed in range(6)]
    train = [*pictures[:4], {"bytes": b"?", "path": None}, None]
    for split, images in (("train", train), ("test", [*pictures[3:], pictures[3]])):
        labels = [number % 2 for number in range(len(images))]
        data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        data.to_parquet(tmp_path / f"{split}.parquet")
    path = tmp_path / "report.json"
    assert main(["--dataset", str(tmp_path), "--num_workers", "0", "--report", str(path)]) == 1
    summary = json.loads(path.read_text())
    assert summary["undecodable"] == [
        "sample 4 of train: is not an image, or its format is unknown to Pillow",
        "sample 5 of train: holds no image",
    ]
    # Row 3 of train is labelled 1 (ant), rows 0 and 3 of test 0 and 1.
    leaks = [{"validation": f"sample {n} of validation", "train": "sample 3 of train"} for n in (0, 3)]
    assert summary["duplicates"]["leaks"] == {"count": 2, "listed": leaks}
    names = [{"label": "ant", "name": "sample 3 of train"}, {"label": "bee", "name": "sample 0 of validation"}]
    assert summary["duplicates"]["labels"] == {"count": 1, "listed": [{"images": 3, "names": names}]}
    assert summary["alphabetical"] is False
    assert "0 is 'bee', 1 is 'ant'; the order is not alphabetical" in capsys.readouterr().out


def test_of_many_classes_the_largest_and_smallest_are_shown(tmp_path, capsys):
    """Class 0 has 1 image, class 1 has 2, ... and class 20 has 21; the last image of each is for validation."""
    files = {}
    for number in range(21):
        for copy in range(number + 2):
            split = "val" if copy > number else "train"
            files[f"{split}/c{number:02}/{copy}.png"] = encode(PIL.Image.new("L", (1, 1), number), "PNG")
    assert main(["--dataset", str(write_files(tmp_path, files)), "--num_workers", "0", "--list", "0"]) == 0
    lines = list(map(words, capsys.readouterr().out.splitlines()))
    table = lines.index(words("Images of the 5 largest and 5 smallest of 21 classes"))
    shown = [20, 19, 18, 17, 16, 4, 3, 2, 1, 0]
    assert lines[table + 2 : table + 12] == [[f"c{number:02}", str(number + 1), "1"] for number in shown]
    assert lines[table + 12] == []


# Facts and groups


def test_groups_are_those_of_a_plain_dictionary():
    random = np.random.default_rng(0)
    files = [[hashlib.sha256(bytes([n])).digest() for n in random.integers(0, 40, count)] for count in (70, 30)]
    bad = [set(random.choice(count, 10, replace=False).tolist()) for count in (70, 30)]
    splits, members = [], defaultdict(list)
    for name, digests, undecodable in zip(("train", "validation"), files, bad, strict=True):
        pictures, labels = np.zeros(len(digests), IMAGE), random.integers(0, 3, len(digests))
        for index, digest in enumerate(digests):
            if index not in undecodable:
                pictures[index]["digest"], pictures[index]["kind"] = digest, 1
                members[digest].append((name, index, int(labels[index])))
        splits.append(Audited(labels, pictures, ["undecodable", "PNG L"], [], lambda i, name=name: f"{name} {i}"))

    found = duplicates(*splits, ["ant", "bee", "cat"], max_listed=1000)
    expected = {"train": [], "validation": []}
    leaks, contradictions = set(), {}
    for group in members.values():
        names = {split: [f"{split} {index}" for name, index, _ in group if name == split] for split in expected}
        for split in expected:
            if len(names[split]) > 1:
                expected[split].append(names[split])
        leaks |= {(name, names["train"][0]) for name in names["validation"] if names["train"]}
        if len({label for _, _, label in group}) > 1:
            contradictions[f"{group[0][0]} {group[0][1]}"] = (len(group), len({label for _, _, label in group}))
    assert leaks and contradictions and all(expected.values())
    for split, groups in expected.items():
        listed = [group["names"] for group in found[split]["listed"]]
        # The largest first, the earliest of one size first: a dictionary keeps the order in which they came.
        assert listed == sorted(groups, key=len, reverse=True)
        assert [group["images"] for group in found[split]["listed"]] == list(map(len, listed))
        assert found[split]["groups"] == len(groups)
        assert found[split]["count"] == sum(len(group) - 1 for group in groups)
    assert {(pair["validation"], pair["train"]) for pair in found["leaks"]["listed"]} == leaks
    assert found["leaks"]["count"] == len(leaks)
    assert found["labels"]["count"] == len(contradictions)
    assert {
        group["names"][0]["name"]: (group["images"], len(group["names"])) for group in found["labels"]["listed"]
    } == contradictions


@pytest.mark.parametrize("as_url", [False, True])
def test_facts_of_a_path_are_those_of_its_bytes(tmp_path, as_url):
    path = tmp_path / "image.jpg"
    path.write_bytes(GOOD)
    facts = read_facts({"bytes": None, "path": path.as_uri() if as_url else str(path)}, "sample 0")
    assert facts == read_facts({"bytes": GOOD, "path": None}, "sample 0")
    assert facts.digest == hashlib.sha256(GOOD).digest()


@pytest.mark.parametrize(
    ("data", "oddities"),
    [
        (PNG, set()),
        (deep_colour(4, 4), {"16 bit"}),
        (encode(noise(4, 4), "PNG", exif=turned(3)), {"EXIF-rotated"}),
        (encode(noise(4, 4), "PNG", exif=turned(1)), set()),
        (encode(noise(4, 4), "TIFF", save_all=True, append_images=[noise(4, 4)]), {"several frames"}),
        (encode(noise(4, 4, "LA"), "PNG"), {"transparency"}),
        (encode(noise(4, 4), "PNG", transparency=(1, 2, 3)), {"transparency"}),
    ],
)
def test_oddities_are_seen_in_every_format(data, oddities):
    assert read_facts({"bytes": data, "path": None}, "sample 0").oddities == oddities


def test_whatever_a_decoder_raises_is_a_finding(monkeypatch):
    def broken(image, name):
        raise AttributeError("no such\nthing")

    split = datasets.Dataset.from_dict({"image": [{"bytes": GOOD, "path": "a.jpg"}]}).cast_column(
        "image", datasets.Image(decode=False)
    )
    monkeypatch.setattr(audit_facts, "decode_rgb", broken)
    result = audit_split(image_facts(split, "image", "train"), np.array([0]), num_workers=0, max_listed=5)
    assert result.reasons == ["a.jpg (sample 0 of train): AttributeError: no such thing"]
    assert result.images["kind"].tolist() == [0]


# Command line


def test_a_missing_folder_is_one_sentence_and_exit_code_2(tmp_path):
    answer = command("--dataset", tmp_path / "nowhere")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == f"error: folder {tmp_path / 'nowhere'} does not exist\n"


@pytest.mark.parametrize(("label", "sentence"), [(None, "has no label"), (-2, "label -2 of sample 1")])
def test_labels_that_cannot_be_trained_on_are_exit_code_2(tmp_path, capsys, label, sentence):
    pictures = [{"bytes": GOOD, "path": None}] * 4
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": pictures, "label": [0, label, 1, 1]}, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    assert main(["--dataset", str(tmp_path / "train.parquet")]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.splitlines()[-1].startswith("error: ")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: --dataset"),
        (["--dataset", "digits", "--validation_fraction", "2"], "validation_fraction must be less than 1, got '2'"),
        (["--dataset", "digits", "--num_workers", "-1"], "must be a whole number of at least 0, got '-1'"),
        (["--dataset", "digits", "--list", "many"], "must be a whole number of at least 0, got 'many'"),
        (["--dataset", "digits", "--report", "nowhere/a.json"], "must be a file in a folder that can be written to"),
        (["--dataset", "digits", "--streaming"], "unrecognized arguments: --streaming"),
    ],
)
def test_a_wrong_flag_is_exit_code_2(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert sentence in capsys.readouterr().err


def test_flags_of_the_data_are_those_of_the_trainer(capsys):
    options = vars(audit.build_parser().parse_args(["--dataset", "digits"]))
    for name in DATA_FLAGS[1:]:
        assert options[name] == FIELDS[name].default
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in DATA_FLAGS:
        assert f"--{name}" in text and FIELDS[name].metadata["help"] in text
    assert "exit code:" in text and "(default: 0.2)" in text
