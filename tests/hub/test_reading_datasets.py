"""Datasets that the Hub does not hand out: one sentence that says what to do, from unmodified clients."""

import io
import json
import os
from pathlib import Path

import datasets
import PIL.Image
import pytest

from tests import launcher
from tests.hub.conftest import OTHER_TOKEN, READ_TOKEN, TOKEN
from tests.hub.http_handler import Fault
from tests.hub.repositories import User
from tests.hub.server import Hub
from tests.training_jobs import RECIPE

ROOT = Path(__file__).parents[2]
NARROW_TOKEN, WRONG_TOKEN = "hf_canary_without_gated", "hf_canary_of_nobody"

# Reads datasets one after the other, (token, id), and answers with what each was or what was wrong, and seconds.
READ = """
import json, os, sys, time
from training.errors import DataError
from training.data.sources import load_splits

answers = []
for token, dataset in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    started_at = time.perf_counter()
    try:
        said = load_splits(dataset).description
    except DataError as error:
        said = str(error)
    answers.append([said, time.perf_counter() - started_at])
print("SAID " + json.dumps(answers))
"""


def parquet() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(file, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = {"image": [{"bytes": file.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    stored = io.BytesIO()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(stored)
    return stored.getvalue()


@pytest.fixture
def gated_hub(hub: Hub) -> Hub:
    """A gated dataset whose terms `another` accepted, a private one of `me`, and one in two configurations."""
    files = {"data/train-00000-of-00001.parquet": parquet(), "README.md": b"# Images\n"}
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("first", "second")
    )
    parts = {f"{name}/train.parquet": files["data/train-00000-of-00001.parquet"] for name in ("first", "second")}
    hub.add_repository("me/parts", parts | {"README.md": f"{card}---\n".encode()}, "dataset")
    hub.add_repository("me/trouble", files, "dataset")
    hub.users[NARROW_TOKEN] = User("another", "read", may_read_gated=False)
    hub.add_repository("owner/gated", files, "dataset").accepted_by = frozenset({"another"})
    hub.add_repository("me/secret", files, "dataset").private = True
    return hub


def client(hub: Hub, home: Path) -> dict[str, str]:
    return os.environ | hub.environment(None, home) | {"PYTHONPATH": str(ROOT)}


def read(hub: Hub, home: Path, *asked: tuple[str | None, str], **environment: str) -> list[tuple[str, float]]:
    """What `load_splits` says, and seconds, of each (token, dataset), read in the folder `home`; prints no token."""
    process = launcher.run(["-c", READ, json.dumps(asked)], cwd=home, env=client(hub, home) | environment)
    assert process.returncode == 0, process.stderr
    assert "hf_canary" not in process.stdout + process.stderr
    return json.loads(process.stdout.splitlines()[-1].removeprefix("SAID "))


def test_what_the_hub_refuses_says_what_to_do(gated_hub, tmp_path):
    page = f"{gated_hub.endpoint}/datasets/owner/gated"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    misspelled = "is not a folder here, and not a public Hub dataset: check the spelling; for a private one, "
    gated_hub.inject(Fault("HEAD", "/me/trouble/resolve/", status=403), times=9)
    gated_hub.inject(Fault("GET", "/me/trouble/auth-check", status=503))
    expected = {
        (None, "owner/gated"): f"owner/gated is gated: accept the terms on {page}, and {log_in}",
        (TOKEN, "owner/gated"): (
            f"owner/gated is gated, and your token's account has no access: accept the terms on {page} with it"
        ),
        (NARROW_TOKEN, "owner/gated"): (
            "your token may not read owner/gated (Please enable access to public gated repositories in your "
            f"fine-grained token settings): give it the right on {gated_hub.endpoint}/settings/tokens, or take another"
        ),
        (WRONG_TOKEN, "owner/gated"): (
            f"the Hub does not know your token, which may have expired or been revoked: {log_in}"
        ),
        (None, "me/secret"): f"me/secret {misspelled}{log_in}",
        (None, "owner/gatde"): f"owner/gatde {misspelled}{log_in}",
        (OTHER_TOKEN, "me/secret"): (
            "me/secret is not a folder here, and not a Hub dataset that your token can read: check the spelling, or "
            "whether the token has the right to read it"
        ),
        (None, "me/parts"): "me/parts has several configurations: choose one of first, second with dataset_name",
        (None, "me/trouble"): "the Hub cannot hand out me/trouble now (HTTP status 503): try again later",
    }
    readable = [(READ_TOKEN, "me/secret"), (OTHER_TOKEN, "owner/gated")]
    said = [sentence for sentence, _ in read(gated_hub, tmp_path, *expected, *readable)]
    assert dict(zip(expected, said, strict=False)) == expected
    assert all("2 training and 2 validation images" in sentence for sentence in said[-2:])


def test_train_ends_with_that_sentence(gated_hub, tmp_path):
    process = launcher.run(
        ["train.py", *RECIPE, "--dataset", "owner/gated", "--output_dir", tmp_path],
        env=client(gated_hub, tmp_path) | {"HF_TOKEN": TOKEN},
    )
    assert process.returncode == 2
    assert "Traceback" not in process.stderr and TOKEN not in process.stdout + process.stderr
    assert process.stderr.splitlines()[-1] == (
        "error: owner/gated is gated, and your token's account has no access: accept the terms on "
        f"{gated_hub.endpoint}/datasets/owner/gated with it"
    )


def test_without_a_hub_a_missing_folder_is_told_at_once_and_the_cache_is_used(gated_hub, tmp_path):
    """The witness is the clock: the Hub's client tries for 23 seconds."""
    (tmp_path / "there").mkdir()
    read(gated_hub, tmp_path, (TOKEN, "me/secret"))
    gated_hub.shutdown()
    gated_hub.server_close()
    names = ("missing", "not/there")
    *answers, (sentence, _) = read(gated_hub, tmp_path, *((None, name) for name in names), (None, "there/not"))
    assert sentence == "folder there/not does not exist"
    for name, (sentence, seconds) in zip(names, answers, strict=True):
        assert seconds < 15
        assert sentence.startswith(
            f"there is no folder {name} here, and the Hub, which may have a dataset of this name, cannot be "
            f"reached at {gated_hub.endpoint}: "
        )
    asked = [(None, "me/secret"), (None, "me/other")]
    (cached, _), (missing, _) = read(gated_hub, tmp_path, *asked, HF_HUB_OFFLINE="1")
    assert "2 training and 2 validation images" in cached
    assert missing == (
        "there is no folder me/other here, and no dataset of the Hub with this name in the cache: HF_HUB_OFFLINE "
        "keeps it from being fetched"
    )
