"""Publish a finished run on the Hugging Face Hub, in one commit with a model card.

    python -m hub_card.push runs/my-run --repo me/tinynet-flowers          # shows what would be uploaded
    python -m hub_card.push runs/my-run --repo me/tinynet-flowers --yes    # uploads it

An upload that was interrupted is repeated with the same command: what the Hub has already is not sent again, and it
shows nothing of it before all is there. A card that was edited by hand on the Hub is kept.
"""

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from hub_card.card import MARK, model_card
from hub_card.collect import collect
from hub_card.hub_errors import check_token, hub_errors
from hub_card.run import is_repository_id, read_run
from hub_card.run_files import PublishError
from training.command import CommandParser, run_command

# The Hub's identifiers, from its documentation (hub/repositories-licenses).
LICENSES = Path(__file__).with_name("licenses.txt").read_text(encoding="utf-8").split()
# "[More Information Needed]" stands 39 times in transformers' template: with some filled in, it is somebody's card.
UNTOUCHED = 39


def publish(
    files: dict[str, bytes | Path],
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
) -> list[str]:
    """Uploads the files in one commit.

    Args:
        files: from `hub_card.collect.collect`.
        repository: `name/repository` of the Hub; made where it does not exist.
        private: of a new repository; None is the account's default.
        revision: branch, made where it does not exist; None is main.
        create_pr: propose the commit in a pull request instead.
        tag: set on the commit.

    Returns:
        Sentences about what was done, the first with the address of the commit.

    Raises:
        PublishError: it was not published, or only the tag failed; the sentence says which.
    """
    api = HfApi()
    check_rights(repository, to_propose=create_pr)
    with hub_errors(repository, api):
        if not create_pr:
            api.create_repo(repository, private=private, exist_ok=True)
            if private and not api.model_info(repository).private:
                raise PublishError(f"{repository} exists and is public; make it private in its settings first")
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        said = []
        if "README.md" in files and not _is_generated(api, repository, revision):
            files = {path: content for path, content in files.items() if path != "README.md"}
            said.append(f"The README.md of {repository} was written by hand, and is kept.")
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        commit = api.create_commit(
            repository,
            operations,
            commit_message="Publish a TinyNet",
            revision=revision,
            create_pr=create_pr,
        )
    said.insert(0, f"Published: {commit.pr_url or commit.commit_url}")
    if tag:
        try:
            with hub_errors(repository, api, again="try again with another --tag"):
                api.create_tag(repository, tag=tag, revision=commit.oid)
        except PublishError as error:
            raise PublishError(f"the model is published, but not tagged {tag}: {error}") from error
    return said


def publish_run(folder: Path, repository: str) -> str:
    """For the end of a training run: publishes it; returns what to print, its address or a warning."""
    try:
        run = read_run(folder)
        return "\n".join(publish(collect(run, model_card(run, repository)), repository))
    except PublishError as error:
        again = f"python -m hub_card.push {shlex.quote(str(folder))} --repo {repository} --yes"
        return f"warning: the run is complete but not published: {error}; publish it with: {again}"


def check_rights(repository: str, to_propose: bool = False) -> None:
    """That there is a token, and that it may write to `repository`: by its account, not by trying.

    A fine-grained token is taken: what it may do shows in the upload.

    Raises:
        PublishError: there is none, it is not valid, or it has no such right; there can be no such repository; or the
            Hub cannot be reached.
    """
    api = HfApi()
    if not is_repository_id(repository):
        raise PublishError(f"{repository!r} is not a Hub repository; it must look like me/tinynet-flowers")
    check_token()
    with hub_errors(repository, api):
        account = api.whoami()
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PublishError("the Hugging Face token is read-only; make one that can write, and run `hf auth login`")
    organizations = [organization["name"] for organization in account.get("orgs", [])]
    mine = [account["name"], *organizations]
    if repository.partition("/")[0] not in mine and not to_propose:
        raise PublishError(
            f"the Hugging Face token of {account['name']} may not write to {repository}; "
            f"choose a repository of {' or '.join(mine)}, or propose the files with --create_pr"
        )


def _is_generated(api: HfApi, repository: str, revision: str | None) -> bool:
    """Whether the card on the Hub may be replaced: there is none, or one that `model_card` or transformers wrote."""
    if not api.file_exists(repository, "README.md", revision=revision):
        return True
    path = api.hf_hub_download(repository, "README.md", revision=revision, force_download=True)
    text = Path(path).read_text(encoding="utf-8")
    return MARK in text or text.count("[More Information Needed]") >= UNTOUCHED


# Command line


def repository_id(text: str) -> str:
    if not is_repository_id(text):
        raise argparse.ArgumentTypeError(
            f"must be like me/tinynet-flowers: letters, digits, single - . _ between them, at most 96; got {text!r}"
        )
    return text


def license_id(text: str) -> str:
    if text not in LICENSES:
        near = difflib.get_close_matches(text.lower(), LICENSES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "take other for what has no identifier there"
        raise argparse.ArgumentTypeError(f"must be one of the Hub's licenses, got {text!r}; {hint}")
    return text


def ref_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", text, re.ASCII) or ".." in text or text.endswith((".", ".lock")):
        raise argparse.ArgumentTypeError(f"must be a name for git, like v1.0, got {text!r}")
    return text


def build_parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m hub_card.push",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code 2: something is wrong with the run, the token, the rights or the network.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, like runs/my-run")
    parser.add_argument("--repo", required=True, type=repository_id, metavar="ID", help="like me/tinynet-flowers")
    parser.add_argument("--yes", action="store_true", help="upload; without it, only show what would be")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--revision", type=ref_name, metavar="BRANCH", help="commit to this branch (default: main)")
    where.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--tag", type=ref_name, help="tag the commit, like v1.0")
    parser.add_argument(
        "--license",
        type=license_id,
        default="apache-2.0",
        help="of the weights (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.create_pr and options.tag:
        parser.error("--tag needs a commit on a branch, which --create_pr does not make")
    run = read_run(options.run)
    card = model_card(run, options.repo, options.license)
    files = collect(run, card)
    if options.yes:
        said = publish(
            files,
            options.repo,
            private=options.private,
            revision=options.revision,
            create_pr=options.create_pr,
            tag=options.tag,
        )
    else:
        said = [card, tree(files), f"Nothing was uploaded: --yes uploads this to {options.repo}."]
    print("\n".join(said))


def tree(files: dict[str, bytes | Path]) -> str:
    """Paths and sizes in bytes, one a line."""
    sizes = {path: len(c) if isinstance(c, bytes) else c.stat().st_size for path, c in files.items()}
    rows = [*sizes.items(), (f"{len(files)} files", sum(sizes.values()))]
    width = max(len(path) for path, _ in rows)
    return "\n".join(f"{path:<{width}}  {size:>12,}" for path, size in rows)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], interrupted="interrupted; the same command tries again"))
