"""A Hub for each test, and this process as its client."""

import os
from collections.abc import Iterator

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from tests.hub.repositories import User
from tests.hub.server import Hub

TOKEN = "hf_canary_of_me"  # no file, log or traceback may hold it
READ_TOKEN = "hf_canary_that_reads"
OTHER_TOKEN = "hf_canary_of_another"


@pytest.fixture
def hub() -> Iterator[Hub]:
    users = {TOKEN: User("me", organizations=("team",)), READ_TOKEN: User("me", "read"), OTHER_TOKEN: User("another")}
    with Hub(users) as hub:
        yield hub


def sign_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub in this process as a client of `hub`, which HF_ENDPOINT would do before its import."""
    url_template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url_template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    sign_in(hub, monkeypatch)
    return HfApi()


@pytest.fixture(autouse=True)
def no_token_of_the_developer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")]:
        monkeypatch.delenv(name)
