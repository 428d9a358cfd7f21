"""One commit with everything in it, and a tag on it; visible to nobody before it is whole."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

logger = logging.getLogger(__name__)

ATTEMPTS = 5
OF_THE_HUB = (".gitattributes",)


class PublishingError(RuntimeError):
    """A publication did not go up, or its commit without the tag; the message says which, and why."""


@dataclass(frozen=True)
class Publication:
    """What goes up: the files by their path in the repository, from the disk or made here."""

    repo_id: str
    files: dict[str, Path | bytes]
    tag: str
    private: bool
    message: str

    @property
    def model_type(self) -> str | None:
        return json.loads(Path(self.files["config.json"]).read_text()).get("model_type")


@dataclass(frozen=True)
class Published:
    """Where the commit is, and whether others can see it."""

    url: str
    private: bool


def publish(publication: Publication, api: HfApi, *, wait_seconds: float = 1.0) -> Published:
    """Sends a publication.

    A new repository is private until commit and tag are in place; one that was private stays so. In one that is there,
    the files of the publication take the place of all others in a single commit, or nothing changes. Whatever a server
    or the line gets wrong is tried again, after `wait_seconds` at first and twice as long each time.

    Raises:
        PublishingError: the name is taken, the tag exists, the token may not write, the repository moved in the
            meantime, or the server did not recover.
    """
    repo_id, done = publication.repo_id, "was not published"

    def insist(action: Callable[[], Any]) -> Any:
        return _insist(action, wait_seconds)

    try:
        is_new = not insist(lambda: api.repo_exists(repo_id))
        if is_new:
            insist(lambda: api.create_repo(repo_id, private=True, exist_ok=True))
        else:
            insist(lambda: _refuse_taken(publication, api))
        parent = insist(lambda: api.model_info(repo_id)).sha
        commit = insist(lambda: _commit(publication, api, parent))
        done = f"has the commit {commit.oid[:7]} and not all of the rest (tag, visibility)"
        insist(lambda: api.create_tag(repo_id, tag=publication.tag, revision=commit.oid, exist_ok=True))
        if is_new and not publication.private:
            insist(lambda: api.update_repo_settings(repo_id, private=False))
        return Published(commit.commit_url, bool(insist(lambda: api.model_info(repo_id)).private))
    except PublishingError:
        raise
    except Exception as error:
        reason = _without_token(_reason(error), api)
        raise PublishingError(f"{repo_id} {done}: {reason}") from None  # requests carry the token


def _commit(publication: Publication, api: HfApi, parent: str):
    there = set(api.list_repo_files(publication.repo_id, revision=parent))
    stale = sorted(there - set(publication.files) - set(OF_THE_HUB))
    return api.create_commit(
        publication.repo_id,
        [
            *(CommitOperationAdd(path, content) for path, content in publication.files.items()),
            *(CommitOperationDelete(path, is_folder=False) for path in stale),
        ],
        commit_message=publication.message,
        parent_commit=parent,
    )


def _refuse_taken(publication: Publication, api: HfApi):
    """PublishingError for a repository that holds something else, would show what is private, or has the tag."""
    repo_id = publication.repo_id
    info = api.model_info(repo_id)
    if publication.private and not info.private:
        raise PublishingError(f"{repo_id} exists and is public, so that --private cannot hold.")
    files = {sibling.rfilename for sibling in info.siblings} - {*OF_THE_HUB, "README.md"}
    found = None
    if "config.json" in files:
        path = hf_hub_download(repo_id, "config.json", revision=info.sha, endpoint=api.endpoint, token=api.token)
        found = json.loads(Path(path).read_text()).get("model_type")
    if files and found != publication.model_type:
        what = f"a model of type {found!r}" if found else f"other files ({', '.join(sorted(files)[:3])})"
        raise PublishingError(f"{repo_id} is taken: it holds {what}, not {publication.model_type!r}; choose a name.")
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    if publication.tag in tags:
        raise PublishingError(
            f"{repo_id} has {publication.tag} already, at {tags[publication.tag][:7]}; a tag does not move: give"
            " --tag another."
        )


def _insist(action: Callable[[], Any], wait_seconds: float) -> Any:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:
            if _is_final(error) or attempt == ATTEMPTS:
                raise
            logger.warning("attempt %d of %d failed, trying again", attempt, ATTEMPTS)
            time.sleep(wait_seconds * 2 ** (attempt - 1))


def _is_final(error: BaseException) -> bool:
    """Whether trying again is in vain: the server said no, rather than nothing or that it is in trouble."""
    status = _status(error)
    if status is None:
        return isinstance(error, PublishingError | ValueError | TypeError)
    return status < 500 and status != 429


def _status(error: BaseException | None) -> int | None:
    """The HTTP status in an error or what caused it."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code
        error = error.__cause__
    return None


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status == 412:
        return "the repository has moved since this began; look at what is there now and run it again."
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return f"the token in use may not write there, or there is none ({status}): see `hf auth login`."
    return f"{type(error).__name__}: {str(error).strip() or status}"


def _without_token(text: str, api: HfApi) -> str:
    token = api.token if isinstance(api.token, str) else get_token()
    return text.replace(token, "***") if token else text
