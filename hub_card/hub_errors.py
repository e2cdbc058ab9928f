"""What the Hub or the line to it refuses, as one sentence that holds no secret."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_card.run_files import PublishError

LOG_IN = "run `hf auth login`, or set HF_TOKEN"
AGAIN = "nothing was published, and the same command tries again"
# A token; what signs the address of an upload; a line of a request's headers.
SECRETS = re.compile(r"\bhf_\w+|(?<=\?)\S+=\S+|(?<=Bearer )\S+")


def check_token() -> None:
    """Raises PublishError if the token holds what none can: the client's own message would repeat it."""
    token = get_token()
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise PublishError(f"the Hugging Face token holds a character that no token has, like a space; {LOG_IN} anew")


@contextmanager
def hub_errors(repository: str, api: HfApi, again: str = AGAIN) -> Iterator[None]:
    """Turns what the Hub's client raises inside into a PublishError.

    Args:
        again: what a failure leaves, and what to do about one that passes.
    """
    try:
        yield
    except PublishError:
        raise
    except LocalTokenNotFoundError:
        raise PublishError(f"there is no Hugging Face token; {LOG_IN}") from None
    except OfflineModeIsEnabled:
        raise PublishError("HF_HUB_OFFLINE is set; unset it to publish") from None
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError
        raise PublishError(
            f"{repository} is gated; accept its terms on {api.endpoint}/{repository}, with the account of the token"
        ) from error
    except RepositoryNotFoundError as error:
        raise PublishError(f"there is no repository {repository}, or you have no access to it") from error
    except RevisionNotFoundError as error:
        raise PublishError(f"the revision is not one of {repository}; name a branch") from error
    except (HTTPError, RuntimeError, OSError, ValueError) as error:
        raise PublishError(_without_secrets(_reason(error, repository, api, again))) from error


def _reason(error: BaseException, repository: str, api: HfApi, again: str) -> str:
    """An upload's error has another for its cause: the first one that the Hub or the network gave tells most."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            said = " ".join((cause.server_message or cause.response.reason_phrase).split())
            if status == 401:
                return f"the Hugging Face token is not valid; {LOG_IN} to another"
            if status == 403:
                return (
                    f"the Hugging Face token may not write to {repository} ({said}); take one that may, or propose "
                    "the files with --create_pr"
                )
            if status == 429:
                return f"{api.endpoint} asks to wait (429, too many requests); {again} later"
            return f"{api.endpoint} answered {status} ({said}); {again}"
    for cause in causes:
        if isinstance(cause, HTTPError):
            return f"{api.endpoint} cannot be reached ({cause or type(cause).__name__}); {again}"
    return f"the upload failed ({' '.join(str(error).split())}); {again}"


def _without_secrets(sentence: str) -> str:
    token = get_token()
    return SECRETS.sub("***", sentence.replace(token, "***") if token else sentence)
