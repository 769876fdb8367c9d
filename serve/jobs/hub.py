"""`--push-to-hub`: upload an output with a data card to a dataset repository on the hub.

`open_repository` checks token and permissions before anything is scored, so that a job of hours
does not fail at its end. `DatasetRepository.push` makes one commit of data file and card, or none
if the repository has both already. Nothing of a push is kept on this machine: after a failure or a
kill, the same command compares digests and uploads what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.errors import HubError
from serve.jobs.dataset_card import CardSection, has_configs, list_sections, update_card
from serve.jobs.output import Output
from serve.jobs.storage import LocalFile

if TYPE_CHECKING:  # imported only by commands that push
    from huggingface_hub import HfApi

_CARD = "README.md"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Push:
    """Options of a push.

    Attributes:
        repo_id: ORG/NAME.
        private: whether the repository has to be private.
        command: the command line for the card.
    """

    repo_id: str
    private: bool
    command: str


@dataclass(frozen=True, slots=True)
class DatasetRepository:
    """A dataset repository that gets a data file.

    Attributes:
        repo_id: ORG/NAME.
        output: the data file on this machine.
    """

    repo_id: str
    output: Path
    _api: HfApi

    @property
    def path(self) -> str:
        """Name of the data file in the repository."""
        return f"data/{self.output.name}"

    def push(self, section: CardSection) -> str:
        """Upload the data file and its section of the card; return a line for the user.

        Raises:
            HubError: the upload failed; the repository is as before.
        """
        from huggingface_hub import CommitOperationAdd

        failed = (
            f"{self.output} is complete, and could not be pushed to {self.repo_id}",
            "run the same command again, without --overwrite, to push it",
        )
        with _translate_errors(*failed):
            head = self._api.dataset_info(self.repo_id).sha
            card = self._read_card(head)
            new_card = update_card(card, self.repo_id, section)
            operations = []
            if not self._has_output(head):
                operations.append(CommitOperationAdd(self.path, self.output))
            if new_card != card:
                content = new_card.encode("utf-8", "surrogateescape")
                operations.append(CommitOperationAdd(_CARD, content))
            if not operations:
                return f"{self.repo_id} has {self.path} and its card already; nothing was pushed"
            commit = self._api.create_commit(
                self.repo_id,
                operations,
                repo_type="dataset",
                commit_message=f"Upload {self.path} with skyreward",
                parent_commit=head,  # a card that somebody changes meanwhile is not overwritten
            )
        return f"pushed {self.path} to {commit.commit_url}"

    def require_compatible(self) -> None:
        """Check that the data file can be in the repository together with what is there.

        Raises:
            HubError: the card cannot be read; or the repository has a file of this name, files of
                another format, or files which `datasets` would not find any more.
        """
        info = self._api.dataset_info(self.repo_id)
        card = self._read_card(info.sha)
        update_card(card, self.repo_id, CardSection(self.path, 0, (), ""))
        own = list_sections(card)
        files = [file.rfilename for file in info.siblings or ()]
        if other := next((path for path in own if _is_table(path) != _is_table(self.path)), None):
            raise HubError(
                f"{self.repo_id} has {other}, and `datasets` reads files of one format in a "
                "repository; name an output of that format, or give another repository"
            )
        if self.path in files and self.path not in own:
            raise HubError(
                f"{self.repo_id} has a file {self.path} which its {_CARD} does not describe as "
                "written by skyreward; give another name for the output, or another repository"
            )
        if not has_configs(card) and (other := next(filter(_is_data, files), None)):
            raise HubError(
                f"{self.repo_id} has {other}, and its {_CARD} has no `configs`: with an entry for "
                f"{self.path} alone, `datasets` would not find it any more; add an entry for it, "
                "or give another repository"
            )

    def _find_file(self, revision: str | None) -> Any:
        files = self._api.get_paths_info(
            self.repo_id, [self.path], repo_type="dataset", revision=revision
        )
        return files[0] if files else None

    def _has_output(self, revision: str | None) -> bool:
        """Return whether the repository has the data file with this content."""
        file = self._find_file(revision)
        if file is None or file.size != self.output.stat().st_size:
            return False
        if file.lfs:
            return bool(file.lfs.sha256 == LocalFile(self.output).compute_sha256())
        return bool(file.blob_id == _compute_git_digest(self.output))

    def _read_card(self, revision: str | None) -> str:
        """Return the text of the card; empty if there is none."""
        from huggingface_hub.errors import EntryNotFoundError

        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EntryNotFoundError):
            path = self._api.hf_hub_download(
                self.repo_id, _CARD, repo_type="dataset", revision=revision, local_dir=folder
            )
            return Path(path).read_bytes().decode("utf-8", "surrogateescape")
        return ""


def _is_data(path: str) -> bool:
    """Return whether `datasets` may read a file of a repository without an entry in `configs`."""
    is_text = path.endswith((".md", ".py")) or path.startswith((".", "LICENSE"))
    return not is_text


def _is_table(path: str) -> bool:
    """Return whether a data file is Parquet, in contrast to JSON lines."""
    return path.endswith(".parquet")


def open_repository(push: Push, output: Output) -> DatasetRepository:
    """Check that an output can be pushed, and create the repository if there is none.

    Args:
        push: repository, and whether it has to be private.
        output: file that will be pushed.

    Raises:
        HubError: the hub is offline or cannot be reached, the token is missing, invalid or may not
            write, the repository is public or has a file of other origin under this name; or the
            output is not on this machine.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    repo_id, private, path = push.repo_id, push.private, output.location.local_path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id, re.ASCII):
        raise HubError(f"--push-to-hub {repo_id} is not a repository; give it as ORG/NAME")
    if path is None:
        raise HubError(
            f"--push-to-hub uploads a file of this machine, and the output {output} is at an "
            "address; give a path as the output, or leave --push-to-hub out"
        )
    if not re.fullmatch(r"[\w.-]+", path.name, re.ASCII):
        raise HubError(
            f"the output {path.name} would be a pattern or an unsafe name on the hub; give it a "
            "name of letters, digits, `.`, `-` and `_`"
        )
    if constants.HF_HUB_OFFLINE:
        raise HubError(
            "--push-to-hub needs the hub, and HF_HUB_OFFLINE forbids to reach it; unset the "
            "variable, or leave the option out"
        )
    token = get_token()
    if token is None:
        raise HubError(
            "--push-to-hub needs a token with write permission, and there is none; set HF_TOKEN, "
            "or run `hf auth login`"
        )
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(token=token)
    with _translate_errors(f"nothing can be pushed to {repo_id}", "nothing was scored"):
        api.whoami()
        try:
            api.dataset_info(repo_id)
        except RepositoryNotFoundError:
            api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
        api.auth_check(repo_id, repo_type="dataset", write=True)
        if private and not api.dataset_info(repo_id).private:
            raise HubError(
                f"--private was given, and {repo_id} exists and is public; make it private in its "
                "settings on the hub, give another name, or leave --private out"
            )
        repository = DatasetRepository(repo_id, path, api)
        repository.require_compatible()
    return repository


@contextlib.contextmanager
def _translate_errors(problem: str, advice: str) -> Iterator[None]:
    try:
        yield
    except HubError:
        raise
    # The hub's client raises errors of several libraries; all mean that the hub refused, or that
    # it could not be reached.
    except Exception as error:
        raise HubError(f"{problem}: {_explain(error)}; {advice}") from error


def _explain(error: Exception) -> str:
    root: BaseException = error
    while root.__cause__ is not None and not hasattr(root, "response"):
        root = root.__cause__
    status = getattr(getattr(root, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not accept the token (401); set HF_TOKEN or run `hf auth login`"
    if status == 403:
        return (
            "the token may not write there (403); use a token with write permission for this "
            "repository"
        )
    if status == 412:
        return "the repository was changed meanwhile (412)"
    lines = str(root).strip().splitlines()
    return f"{type(root).__name__}: {lines[0] if lines else 'no reason'}"


def _compute_git_digest(path: Path) -> str:
    """Return the id of the file's content in git."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
