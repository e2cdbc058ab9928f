"""What hub_card.push publishes, how often it can be repeated, and what it says where it cannot."""

import json
import logging
import os
import runpy
import shutil
import signal
import sys
import traceback
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import yaml
from huggingface_hub import ModelCard, ModelCardData

from hub_card.collect import collect
from hub_card.push import main, publish, publish_run
from hub_card.run import PublishError, read_run
from tests import launcher
from tests.hub.conftest import OTHER_TOKEN, READ_TOKEN, TOKEN
from tests.hub.http_handler import Fault, Hold
from tests.hub.runs import write_run
from tests.modeling_tinynet.test_remote_code import AUTO_MAP
from training.command import run_command

ROOT = Path(__file__).parents[2]
PUBLISHED = {
    "README.md",
    "adapters_tinynet.py",
    "config.json",
    "configuration_tinynet.py",
    "curves.png",
    "field_checks_tinynet.py",
    "image_processing_tinynet.py",
    "metrics.jsonl",
    "model.safetensors",
    "modeling_tinynet.py",
    "preprocessor_config.json",
    "recipe.yaml",
    "stem_conversion_tinynet.py",
    "timm_config_tinynet.py",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run, with what else lies in such folders."""
    folder = shutil.copytree(finished, tmp_path / "runs" / "digits")
    for private in ("checkpoints/step-000552/model.safetensors", "log.txt", "best/pytorch_model.bin", ".env"):
        (folder / private).parent.mkdir(parents=True, exist_ok=True)
        (folder / private).write_text("not for others")
    return folder


def refusal(arguments: list, capsys: pytest.CaptureFixture) -> str:
    """The one sentence of a command that fails as a user's mistake should."""
    with pytest.raises(SystemExit) as exit:
        sys.exit(run_command(main, [str(argument) for argument in arguments]))
    assert exit.value.code == 2
    errors = capsys.readouterr().err
    sentence = errors.splitlines()[-1]  # behind the bars of an upload
    assert sentence.startswith("error: ") and "Traceback" not in errors
    assert "canary" not in errors
    return errors


def change_json(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_without_yes_nothing_is_asked_of_the_hub(hub, api, run, capsys):
    main([str(run), "--repo", "me/tinynet-digits"])
    shown = capsys.readouterr().out
    assert hub.requests == []
    assert "# tinynet-digits" in shown
    assert all(f"{path} " in shown for path in PUBLISHED)
    assert f"{(run / 'best' / 'model.safetensors').stat().st_size:,}" in shown


def test_one_commit_holds_these_files_and_no_other(hub, api, run, capsys):
    main([str(run), "--repo", "me/tinynet-digits", "--yes"])
    repository = hub.repository("me/tinynet-digits")
    files = repository.files()
    assert set(files) == PUBLISHED
    assert [commit.title for commit in repository.history()] == ["Publish a TinyNet", "initial commit"]
    assert files["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    assert files["metrics.jsonl"] == (run / "metrics.jsonl").read_bytes()
    assert files["modeling_tinynet.py"] == (ROOT / "modeling_tinynet" / "modeling_tinynet.py").read_bytes()
    assert json.loads(files["config.json"])["auto_map"] == AUTO_MAP
    assert not repository.private
    assert f"{hub.endpoint}/me/tinynet-digits/commit/{repository.history()[0].sha}" in capsys.readouterr().out


def test_nothing_published_names_a_place_on_this_machine(hub, api, run, tmp_path):
    private = tmp_path / "private"
    places = {"model": str(private / "flowers" / "best"), "dataset": str(private / "photos")}
    change_json(run / "summary.json", **places, is_local={"model": True, "dataset": True})
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) | places | {"output_dir": str(tmp_path)}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    change_json(run / "best" / "config.json", _name_or_path=places["model"])
    main([str(run), "--repo", "me/x", "--yes"])
    files = hub.repository("me/x").files()
    assert [path for path, data in files.items() if str(tmp_path).encode() in data or b"private" in data] == []
    published = yaml.safe_load(files["recipe.yaml"])
    assert (published["model"], published["dataset"]) == ("flowers", "photos")
    assert "output_dir" not in published


@pytest.mark.parametrize(
    ("place", "said"),
    [("/" + "home/me/images", "config.json names a place on this machine"), ("hf_" + "x" * 34, "looks like a Hug")],
)
def test_what_is_private_is_refused(api, run, capsys, place, said):
    change_json(run / "best" / "config.json", comment=place)
    assert said in refusal([run, "--repo", "me/x"], capsys)


def test_private_branch_and_tag(hub, api, run):
    main([str(run), "--repo", "me/x", "--yes", "--private", "--revision", "next", "--tag", "v1"])
    repository = hub.repository("me/x")
    assert repository.private
    assert repository.files("main") == {}
    assert repository.refs["v1"] == repository.refs["next"]
    assert set(repository.files("v1")) == PUBLISHED


def test_a_public_repository_is_not_taken_for_a_private_one(hub, api, run, capsys):
    hub.add_repository("me/x", {})
    assert "me/x exists and is public" in refusal([run, "--repo", "me/x", "--yes", "--private"], capsys)
    assert hub.repository("me/x").files() == {}


def test_ctrl_c(hub, tmp_path, finished):
    """In the middle of an upload, which is held until the signal has been sent; nothing of it shows, and the command
    says what to do."""
    held = Hold()
    hub.inject(Fault("PUT", "/lfs/", hold=held), times=2)
    environment = os.environ | hub.environment(TOKEN, tmp_path / "home")
    process = launcher.Run(["-m", "hub_card.push", finished, "--repo", "me/x", "--yes"], env=environment)
    assert held.began.wait(120)
    process.send_signal(signal.SIGINT)
    held.over.set()  # the threads that upload are waited for
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command tries again"
    assert hub.repository("me/x").files() == {}


def test_a_pull_request_to_the_repository_of_somebody_else(hub, api, run, capsys):
    hub.add_repository("another/x", {"config.json": b"{}"})
    main([str(run), "--repo", "another/x", "--yes", "--create_pr"])
    repository = hub.repository("another/x")
    assert set(repository.files("main")) == {"config.json"}
    assert set(repository.files("refs/pr/1")) == PUBLISHED
    assert f"{hub.endpoint}/another/x/discussions/1" in capsys.readouterr().out


def test_published_twice_is_published_once(hub, api, run):
    for _ in range(2):
        main([str(run), "--repo", "me/x", "--yes"])
    assert len(hub.repository("me/x").history()) == 2
    assert len(hub.asked("PUT", "/lfs/")) == 2  # weights and curves, once each


def test_a_card_written_by_hand_is_kept(hub, api, run, capsys):
    hub.add_repository("me/x", {"README.md": b"---\nlicense: mit\n---\nMy own words"})
    main([str(run), "--repo", "me/x", "--yes"])
    assert hub.repository("me/x").files()["README.md"].endswith(b"My own words")
    assert set(hub.repository("me/x").files()) == PUBLISHED
    assert "written by hand, and is kept" in capsys.readouterr().out


def test_a_card_of_transformers_template_is_replaced(hub, api, run):
    data = ModelCardData(library_name="transformers")
    template = str(ModelCard.from_template(data, model_description="As transformers writes it."))
    hub.add_repository("me/x", {"README.md": template.encode()})
    main([str(run), "--repo", "me/x", "--yes"])
    assert hub.repository("me/x").files()["README.md"].startswith(b"---\nlibrary_name: transformers\nlicense: apache")

    begun = template.replace("[More Information Needed]", "My own words", 3).encode()
    hub.add_repository("me/y", {"README.md": begun})
    main([str(run), "--repo", "me/y", "--yes"])
    assert hub.repository("me/y").files()["README.md"] == begun


def test_a_card_that_cannot_be_seen_now_is_not_replaced(hub, api, run, capsys):
    hub.add_repository("me/x", {"README.md": b"My own words"})
    hub.inject(Fault("HEAD", "README.md", status=500), times=20)
    refusal([run, "--repo", "me/x", "--yes"], capsys)
    assert hub.repository("me/x").files() == {"README.md": b"My own words"}


def test_the_end_of_training_publishes_too(hub, api, run):
    assert publish_run(run, "me/x").startswith(f"Published: {hub.endpoint}/me/x/commit/")
    assert set(hub.repository("me/x").files()) == PUBLISHED


def test_offline(api, run, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal([run, "--repo", "me/x", "--yes"], capsys)


def test_no_token(api, run, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no Hugging Face token; run `hf auth login`" in refusal([run, "--repo", "me/x", "--yes"], capsys)


@pytest.mark.parametrize(
    ("token", "repository", "said"),
    [
        ("hf_canary_that_is_wrong", "me/x", "is not valid"),
        (READ_TOKEN, "me/x", "is read-only"),
        (OTHER_TOKEN, "me/x", "the Hugging Face token of another may not write to me/x"),
        (TOKEN, "nobody/x", "choose a repository of me or team"),
    ],
)
def test_no_rights(hub, api, run, capsys, monkeypatch, token, repository, said):
    monkeypatch.setenv("HF_TOKEN", token)
    assert said in refusal([run, "--repo", repository, "--yes"], capsys)
    assert hub.repositories == {}


def test_no_network(hub, api, run, capsys):
    hub.shutdown()
    hub.server_close()
    assert "cannot be reached" in refusal([run, "--repo", "me/x", "--yes"], capsys)


def test_no_such_pull_request(api, run, capsys):
    assert "there is no repository nobody/x" in refusal([run, "--repo", "nobody/x", "--yes", "--create_pr"], capsys)


@pytest.mark.parametrize("status", [500, 429])
def test_a_hub_that_fails_leaves_no_half_of_a_commit(hub, api, run, capsys, status):
    hub.inject(Fault("POST", "/commit/", status=status))
    assert f"{status}" in refusal([run, "--repo", "me/x", "--yes"], capsys)
    assert hub.repository("me/x").files() == {}
    main([str(run), "--repo", "me/x", "--yes"])
    assert set(hub.repository("me/x").files()) == PUBLISHED


def test_a_tag_that_exists_is_said_after_the_commit(hub, api, run, capsys):
    hub.add_repository("me/x", {}).add_ref("v1", "main", is_tag=True)
    assert "published, but not tagged v1" in refusal([run, "--repo", "me/x", "--yes", "--tag", "v1"], capsys)
    assert set(hub.repository("me/x").files()) == PUBLISHED


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("summary.json", "is not finished; start it again"),
        ("best/model.safetensors", "is not complete"),
        ("curves.png", "curves.png is missing"),
        ("metrics.jsonl", "metrics.jsonl is missing"),
    ],
)
def test_an_unfinished_run(run, capsys, missing, said):
    (run / missing).unlink()
    assert said in refusal([run, "--repo", "me/x"], capsys)


def test_damaged_weights(run, capsys):
    weights = run / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged" in refusal([run, "--repo", "me/x"], capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{runs}/digist", "--repo", "me/x"], "did you mean"),
        (["{runs}/digits/best", "--repo", "me/x"], "give the run's own folder"),
        (["{runs}", "--repo", "me/x"], "holds no run of train.py"),
        (["{runs}/digits", "--repo", "tinynet"], "must be like me/tinynet-flowers"),
        (["{runs}/digits", "--repo", "me/x", "--create_pr", "--tag", "v1"], "--tag needs a commit on a branch"),
    ],
)
def test_a_command_that_was_mistyped(run, capsys, arguments, said):
    assert said in refusal([argument.format(runs=run.parent) for argument in arguments], capsys)


def test_25_mb_over_a_line_that_is_cut_arrive_whole(hub, api, tmp_path):
    run = write_run(tmp_path / "runs" / "a", variant="tinynet_a")
    weights = (run / "best" / "model.safetensors").read_bytes()
    assert len(weights) > 24e6
    hub.inject(Fault("PUT", "/lfs/", cut_after=10_000_000), times=2)
    main([str(run), "--repo", "me/a", "--yes"])
    assert hub.repository("me/a").files()["model.safetensors"] == weights
    assert [status for _, _, status in hub.asked("PUT", "/lfs/")].count(None) == 2


def test_25_mb_over_a_line_that_never_holds_leave_nothing(hub, api, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's tries
    run = write_run(tmp_path / "runs" / "a", variant="tinynet_a")
    hub.inject(Fault("PUT", "/lfs/", cut_after=5_000_000), times=12)
    said = refusal([run, "--repo", "me/a", "--yes"], capsys)
    assert "cannot be reached" in said and "the same command tries again" in said
    assert hub.repository("me/a").files() == {}
    hub.faults.clear()
    main([str(run), "--repo", "me/a", "--yes"])
    assert safetensors.torch.load(hub.repository("me/a").files()["model.safetensors"])


def test_a_token_is_in_no_traceback_log_or_file(hub, api, run, tmp_path, caplog, capfd):
    hub.inject(Fault("POST", "/commit/", status=500))
    caplog.set_level(logging.DEBUG)
    with pytest.raises(PublishError) as error:
        publish(collect(read_run(run), "a card"), "me/x")
    output = "".join([*traceback.format_exception(error.value), caplog.text, *capfd.readouterr()])
    assert "/api/models/me/x/commit/main" in output
    assert TOKEN not in output
    assert [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []


def test_a_closed_standard_output_hides_no_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it after `>&-`
    monkeypatch.setattr(sys, "argv", ["hub_card.push", str(tmp_path / "none"), "--repo", "me/flowers"])
    monkeypatch.delitem(sys.modules, "hub_card.push")  # or runpy warns of running it twice
    with pytest.raises(SystemExit) as exit:
        runpy.run_module("hub_card.push", run_name="__main__")
    assert exit.value.code == 2
    assert capsys.readouterr().err == f"error: there is no folder {tmp_path / 'none'}; give the folder of a run\n"
