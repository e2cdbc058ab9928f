"""Datasets of the Hub: what goes wrong on the way, in one sentence that says what to do."""

from pathlib import Path

import datasets
from huggingface_hub import HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # httpx's, whichever of its versions huggingface_hub works with
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from training.data.unicode_text import unicode_problem
from training.errors import DataError, listed

CONNECT_TIMEOUT_S = 10.0
LOADING_ERRORS = (OSError, ValueError, RuntimeError, HTTPError, datasets.exceptions.DatasetsError)


def load_hub_dataset(
    dataset: str, *, name: str | None, streaming: bool
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """Read a dataset of the Hub, or of the cache where the Hub cannot be reached.

    Args:
        dataset: its id.
        name: of its configuration, where it has several.
        streaming: read it while it is used instead of storing it.

    Raises:
        DataError: it is gated, private, misspelled or damaged, or the Hub cannot be reached. The message
            never holds a token.
    """
    _require_hub_or_cache(dataset)
    try:
        return datasets.load_dataset(dataset, name=name, streaming=streaming)
    except LOADING_ERRORS as error:
        refusal = None if _is_offline() else _refusal(dataset)
        raise DataError(refusal or loading_failure(dataset, name, error)) from error


def is_hub_id(dataset: str) -> bool:
    """Whether a name that is no folder here can be a dataset of the Hub; else it can only be a missing folder.

    `data/birds` is taken for a folder where a folder `data` exists: whoever has one does not mean a dataset of
    somebody called `data`.
    """
    path = Path(dataset)
    try:
        validate_repo_id(dataset)
    except HFValidationError:
        return False
    return len(path.parts) == 1 or not path.parent.is_dir()


def loading_failure(dataset: str, name: str | None, error: BaseException) -> str:
    """The sentence on a dataset that `datasets` cannot load, of the Hub or not."""
    try:
        names = datasets.get_dataset_config_names(dataset)
    except LOADING_ERRORS:
        names = []
    if names and name not in names and (name or len(names) > 1):
        problem = f"no configuration {name!r}" if name else "several configurations"
        return f"{dataset} has {problem}: choose one of {listed(names)} with dataset_name"
    return f"dataset {dataset} cannot be loaded: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """What an error of `datasets` says, in one line; it often wraps the one that tells more."""
    cause = error.__cause__ or error
    return " ".join((unicode_problem(cause) if isinstance(cause, UnicodeError) else str(cause)).split())


def _require_hub_or_cache(dataset: str) -> None:
    """One try to reach the Hub: its clients would repeat theirs for 23 seconds, also for a folder that is missing."""
    if _is_cached(dataset):
        return
    missing = f"there is no folder {dataset} here"
    if _is_offline():
        raise DataError(
            f"{missing}, and no dataset of the Hub with this name in the cache: HF_HUB_OFFLINE keeps it from being "
            "fetched"
        )
    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_TIMEOUT_S)
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise DataError(
            f"{missing}, and the Hub, which may have a dataset of this name, cannot be reached at "
            f"{constants.ENDPOINT}: {one_line(error) or type(error).__name__}"
        ) from error


def _is_offline() -> bool:
    return constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE


def _is_cached(dataset: str) -> bool:
    return Path(datasets.config.HF_DATASETS_CACHE, dataset.replace("/", "___")).is_dir()


def _refusal(dataset: str) -> str | None:
    """Why the Hub does not hand a dataset out; None where it does."""
    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    has_token = get_token() is not None
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        HfApi().auth_check(dataset, repo_type="dataset")
    except GatedRepoError:
        if has_token:
            return f"{dataset} is gated, and your token's account has no access: accept the terms on {page} with it"
        return f"{dataset} is gated: accept the terms on {page}, and {log_in}"
    except RepositoryNotFoundError:
        if has_token:
            return (
                f"{dataset} is not a folder here, and not a Hub dataset that your token can read: check the spelling, "
                "or whether the token has the right to read it"
            )
        return (
            f"{dataset} is not a folder here, and not a public Hub dataset: check the spelling; for a private one, "
            f"{log_in}"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401 and has_token:
            return f"the Hub does not know your token, which may have expired or been revoked: {log_in}"
        if status == 403 and has_token:
            said = error.response.headers.get("X-Error-Message") or "no reason given"
            return (
                f"your token may not read {dataset} ({said.rstrip('.')}): give it the right on "
                f"{constants.ENDPOINT}/settings/tokens, or take another"
            )
        if status == 429 or status >= 500:
            return f"the Hub cannot hand out {dataset} now (HTTP status {status}): try again later"
    except (HTTPError, OSError) as error:
        return f"the connection to the Hub broke while {dataset} was read ({type(error).__name__}): try again"
    return None
