"""What a push says where the Hub refuses it: one sentence about what to do, and never a token."""

import pytest
from huggingface_hub import HfApi

from hub_card.hub_errors import hub_errors
from hub_card.push import main, publish
from hub_card.run_files import PublishError
from tests.hub.conftest import TOKEN
from tests.hub.http_handler import Fault

FILES = {"README.md": b"---\nlicense: mit\n---\nA card", "config.json": b"{}", "curves.png": b"png"}
PAGES = [
    ("GET", "/whoami"),
    ("POST", "/repos/create"),
    ("POST", "/branch/"),
    ("HEAD", "/README.md"),
    ("POST", "/preupload/"),
    ("POST", "/validate-yaml"),
    ("POST", "/objects/batch"),
    ("PUT", "/lfs/"),
    ("POST", "/commit/"),
]
SAID = {
    401: "the Hugging Face token is not valid; run `hf auth login`, or set HF_TOKEN to another",
    403: "the Hugging Face token may not write to me/x (Storage is full; ask *** of ***); take one that may, or "
    "propose the files with --create_pr",
    404: "answered 404 (Storage is full; ask *** of ***); nothing was published, and the same command tries again",
}
LEAK = f"Storage is full; ask {TOKEN} of hf_abcdefgh"


def refusal(**options) -> str:
    with pytest.raises(PublishError) as error:
        publish(FILES, "me/x", **options)
    return str(error.value)


@pytest.mark.parametrize("status", SAID)
@pytest.mark.parametrize(("method", "page"), PAGES)
def test_a_page_that_refuses(hub, api, method, page, status):
    hub.inject(Fault(method, page, status=status, message=LEAK))
    sentence = refusal(revision="next")
    assert sentence.endswith(SAID[status])
    assert hub.faults == []
    if hub.repositories:
        assert hub.repository("me/x").files() == {}


def test_a_tag_that_is_refused_is_no_failed_upload(hub, api):
    hub.inject(Fault("POST", "/tag/", status=404))
    sentence = refusal(tag="v1")
    assert sentence.startswith("the model is published, but not tagged v1: ")
    assert sentence.endswith("answered 404 (injected); try again with another --tag")
    assert set(hub.repository("me/x").files()) == set(FILES)


@pytest.mark.parametrize(("status", "code"), [(403, "GatedRepo"), (401, "GatedRepo")])
def test_a_gated_repository(hub, api, status, code):
    hub.add_repository("another/x", {"config.json": b"{}"})
    hub.inject(Fault("HEAD", "README.md", status=status, code=code))
    with pytest.raises(PublishError) as error:
        publish(FILES, "another/x", create_pr=True)
    page = f"{hub.endpoint}/another/x"
    assert str(error.value) == f"another/x is gated; accept its terms on {page}, with the account of the token"


@pytest.mark.parametrize(("status", "code"), [(404, "RepoNotFound"), (401, "RepoNotFound")])
def test_a_repository_that_is_private_or_misspelled(hub, api, status, code):
    hub.inject(Fault("POST", "/preupload/", status=status, code=code))
    assert refusal() == "there is no repository me/x, or you have no access to it"


@pytest.mark.parametrize("token", ["hf_canary of\tme", "hf_canary\nof_me", "hf_canary_\u00e9", "hf_canary\u2028"])
def test_a_token_that_is_none(hub, api, monkeypatch, token):
    monkeypatch.setattr("hub_card.hub_errors.get_token", lambda: token)
    sentence = refusal()
    assert "holds a character that no token has" in sentence
    assert "canary" not in sentence and hub.requests == []


@pytest.mark.parametrize(
    "text",
    [
        f"Illegal header value b'Bearer {TOKEN}'",
        "403 for url https://s3.example.org/a?X-Amz-Credential=canary&X-Amz-Signature=canary",
        "Illegal header value b'Bearer canary'",
        "hf_canary12345 is not yours",
    ],
)
def test_a_message_of_the_client_is_scrubbed(api, text):
    with pytest.raises(PublishError) as error, hub_errors("me/x", HfApi()):
        raise RuntimeError(text)
    assert "canary" not in str(error.value) and "***" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--license", ""], "must be one of the Hub's licenses, got ''; take other for what"),
        (["--license", "Apache 2.0"], "got 'Apache 2.0'; did you mean apache-2.0?"),
        (["--license", "apache2"], "got 'apache2'; did you mean apache-2.0?"),
        (["--license", "proprietary"], "got 'proprietary'; take other for what has no identifier there"),
        (["--tag", ""], "must be a name for git, like v1.0, got ''"),
        (["--tag", "v 1"], "must be a name for git, like v1.0, got 'v 1'"),
        (["--revision", "a..b"], "must be a name for git, like v1.0, got 'a..b'"),
        (["--revision", "-x"], "expected one argument"),
        (["--repo", "me/x..y"], "must be like me/tinynet-flowers: letters, digits"),
        (["--repo", "me/x--y"], "must be like me/tinynet-flowers: letters, digits"),
    ],
)
def test_an_argument_that_the_hub_would_refuse(hub, api, capsys, arguments, said):
    with pytest.raises(SystemExit) as exit:
        main(["nowhere", "--repo", "me/x", "--yes", *arguments])
    assert exit.value.code == 2
    assert said in capsys.readouterr().err
    assert hub.requests == []
