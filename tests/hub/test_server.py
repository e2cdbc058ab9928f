"""The test Hub answers huggingface_hub's own client as that expects of the Hub."""

import hashlib
import os
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.conftest import OTHER_TOKEN, READ_TOKEN
from tests.hub.http_handler import Fault

WEIGHTS = os.urandom(300_000)
FILES = [
    CommitOperationAdd("model.safetensors", WEIGHTS),
    CommitOperationAdd("onnx/config.json", b"{}"),
    CommitOperationAdd("README.md", b"---\nlicense: apache-2.0\n---\n# A model\n"),
]


def fresh(operations: list[CommitOperationAdd] = FILES) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(one.path_in_repo, one.path_or_fileobj) for one in operations]


@pytest.fixture
def pushed(api: HfApi) -> HfApi:
    api.create_repo("me/model")
    api.create_commit("me/model", fresh(), commit_message="All files")
    return api


def test_what_was_pushed_comes_back(hub, pushed, tmp_path):
    folder = pushed.snapshot_download("me/model", cache_dir=tmp_path)
    assert Path(folder, "model.safetensors").read_bytes() == WEIGHTS
    assert Path(folder, "onnx/config.json").read_text() == "{}"
    assert [commit.title for commit in hub.repository("me/model").history()] == ["All files", "initial commit"]


def test_files_are_listed_with_size_and_checksum(pushed):
    tree = {entry.path: entry for entry in pushed.list_repo_tree("me/model", recursive=True)}
    assert set(tree) == {"model.safetensors", "onnx", "onnx/config.json", "README.md"}
    assert tree["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert tree["README.md"].lfs is None
    assert {entry.path for entry in pushed.list_repo_tree("me/model")} == {"model.safetensors", "onnx", "README.md"}
    (info,) = pushed.get_paths_info("me/model", "model.safetensors")
    assert info.size == len(WEIGHTS)
    assert {sibling.rfilename for sibling in pushed.model_info("me/model").siblings} == set(tree) - {"onnx"}


def test_a_file_that_did_not_change_is_sent_once(hub, pushed):
    pushed.create_commit("me/model", fresh(), commit_message="Again")
    assert len(hub.asked("PUT", "/lfs/")) == 1
    assert [commit.title for commit in hub.repository("me/model").history()] == ["All files", "initial commit"]


def test_branches_tags_and_pull_requests(hub, pushed, tmp_path):
    pushed.create_branch("me/model", branch="next")
    pushed.create_commit("me/model", [CommitOperationDelete("onnx/config.json")], commit_message="x", revision="next")
    pushed.create_tag("me/model", tag="v1")
    change = [CommitOperationAdd("new.txt", b"new")]
    info = pushed.create_commit("me/model", change, commit_message="Propose", create_pr=True)
    assert info.pr_revision == "refs/pr/1"
    assert "onnx/config.json" not in hub.repository("me/model").files("next")
    assert "new.txt" not in hub.repository("me/model").files("main")
    refs = pushed.list_repo_refs("me/model", include_pull_requests=True)
    assert {branch.name for branch in refs.branches} == {"main", "next"}
    assert [tag.name for tag in refs.tags] == ["v1"]
    path = pushed.hf_hub_download("me/model", "new.txt", revision="refs/pr/1", cache_dir=tmp_path)
    assert Path(path).read_text() == "new"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"repo_id": "me/nothing", "filename": "x"}, RepositoryNotFoundError),
        ({"repo_id": "me/model", "filename": "nothing"}, EntryNotFoundError),
        ({"repo_id": "me/model", "filename": "README.md", "revision": "v9"}, RevisionNotFoundError),
    ],
)
def test_what_is_missing_is_said(pushed, tmp_path, arguments, error):
    with pytest.raises(error):
        pushed.hf_hub_download(**arguments, cache_dir=tmp_path)


@pytest.mark.parametrize(("token", "status"), [("hf_wrong", 401), (False, 401), (READ_TOKEN, 403), (OTHER_TOKEN, 403)])
def test_only_who_may_write_commits(hub, pushed, token, status):
    with pytest.raises(HfHubHTTPError) as error:
        pushed.create_commit("me/model", [CommitOperationAdd("x.txt", b"x")], commit_message="x", token=token)
    assert error.value.response.status_code == status
    assert "x.txt" not in hub.repository("me/model").files()


def test_private_repositories_are_hidden_from_others(api):
    api.create_repo("me/secret", private=True)
    assert api.model_info("me/secret").private
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/secret", token=OTHER_TOKEN)


def test_a_card_with_invalid_metadata_is_refused(hub, pushed):
    card = CommitOperationAdd("README.md", b"---\nlicense: my own\n---\n")
    with pytest.raises(ValueError, match="license"):
        pushed.create_commit("me/model", [card], commit_message="Bad card")
    assert b"apache-2.0" in hub.repository("me/model").files()["README.md"]


def test_a_part_of_a_file_can_be_asked_for(hub, pushed):
    url = f"{hub.endpoint}/me/model/resolve/main/model.safetensors"
    with urlopen(Request(url, headers={"Range": "bytes=100-199"})) as answer:
        assert (answer.status, answer.read()) == (206, WEIGHTS[100:200])


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "/lfs/", cut_after=100_000),
        Fault("PUT", "/lfs/", status=500),
        Fault("PUT", "/lfs/", status=429, retry_after=1),
        Fault("PUT", "/lfs/", delay_s=1.0),
    ],
    ids=["cut", "500", "429", "slow"],
)
def test_the_client_survives_one_fault_of_an_upload(hub, api, fault):
    api.create_repo("me/model")
    hub.inject(fault)
    api.create_commit("me/model", fresh(), commit_message="All files")
    assert hub.repository("me/model").files()["model.safetensors"] == WEIGHTS
    assert hub.faults == []


def test_a_commit_that_fails_leaves_nothing(hub, api):
    api.create_repo("me/model")
    hub.inject(Fault("POST", "/commit/", status=500), times=10)
    with pytest.raises(HfHubHTTPError):
        api.create_commit("me/model", fresh(), commit_message="All files")
    assert hub.repository("me/model").files() == {}
