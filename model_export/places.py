"""`hf://OWNER/NAME` or any URL in, a place to read a model folder from, and to put one to, out.

hf://OWNER/NAME[@REVISION]     a repository on the Hugging Face hub, or at HF_ENDPOINT; each push is a commit
file:///models/NAME            a folder of this machine, put in place in one step
s3://, gs://, memory://, ...   through fsspec: card.json is written last and taken away first, so that
                               whoever reads meanwhile finds a whole folder or none
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from model_export.errors import ExportError
from model_export.folder import new_folder
from service.bulk.errors import CommandError
from service.bulk.inputs import filesystem_of

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    CommitOperation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete

CARD = "card.json"  # a folder without it is none
HUB = "hf://"
REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
SENTENCE = 300  # characters of another library's error that are shown


class Place(Protocol):
    """A folder elsewhere. All of it raises ExportError."""

    def read_card(self) -> bytes | None:
        """card.json; None where there is none. What is read afterwards is of the same state, where the place
        can tell."""

    def read(self, name: str, target: Path) -> None:
        """A file of the folder into a new file of this machine."""

    def put(self, files: Mapping[str, Path], *, gone: Sequence[str], force: bool, message: str) -> str:
        """The files by their names, card.json among them, in place of the folder that is there; gone: names
        that it has no longer. Where they are now."""


def place_of(url: str, *, private: bool = False) -> Place:
    """private: whether a repository that is made is shown to its owners alone. Raises ExportError."""
    if url.startswith(HUB):
        return Repository.of(url.removeprefix(HUB), private=private)
    if "://" not in url:
        raise ExportError(f"{url} is no URL: name hf://OWNER/NAME, or a folder such as s3://bucket/NAME.")
    try:
        filesystem, root = filesystem_of(url)
    except CommandError as error:
        raise ExportError(f"{error}.") from error
    protocol = filesystem.protocol
    if "file" in ((protocol,) if isinstance(protocol, str) else protocol):
        return LocalFolder(Path(root))
    return RemoteFolder(url.rstrip("/"), filesystem, root.rstrip("/"))


@dataclass(frozen=True)
class LocalFolder:
    folder: Path

    def read_card(self) -> bytes | None:
        path = self.folder / CARD
        return path.read_bytes() if path.is_file() else None

    def read(self, name: str, target: Path) -> None:
        with _told(f"{self.folder / name} cannot be read"):
            shutil.copyfile(self.folder / name, target)

    def put(self, files: Mapping[str, Path], *, gone: Sequence[str], force: bool, message: str) -> str:
        with new_folder(self.folder, force=force) as new:
            for name, path in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, new / name)
        return str(self.folder)


@dataclass(frozen=True)
class RemoteFolder:
    url: str
    filesystem: "AbstractFileSystem"
    root: str

    def read_card(self) -> bytes | None:
        with _told(f"{self.url}/{CARD} cannot be read"):
            self.filesystem.invalidate_cache()  # others write there, too
            try:
                card: bytes = self.filesystem.cat_file(self._path(CARD))
            except FileNotFoundError:
                return None
        return card

    def read(self, name: str, target: Path) -> None:
        with _told(f"{self.url}/{name} cannot be read"):
            self.filesystem.get_file(self._path(name), str(target))

    def put(self, files: Mapping[str, Path], *, gone: Sequence[str], force: bool, message: str) -> str:
        was_there = self.read_card() is not None
        if was_there and not force:
            raise ExportError(f"{self.url} is a model folder already: replace it with --force.")
        with _told(f"{self.url} cannot be written; it is no model folder until it is pushed again"):
            if was_there:
                self.filesystem.rm_file(self._path(CARD))
            for name in sorted(files, key=lambda name: name == CARD):  # the card last
                self.filesystem.put_file(str(files[name]), self._path(name))
            for name in gone:
                if self.filesystem.exists(self._path(name)):
                    self.filesystem.rm_file(self._path(name))
        return self.url

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"


class Repository:
    """On the hub. What is read is of one commit: the one that was the last when the card was asked for."""

    def __init__(self, api: "HfApi", name: str, revision: str | None, *, private: bool) -> None:
        self._api, self._name, self._revision, self._private = api, name, revision, private
        self._commit: str | None = None

    @classmethod
    def of(cls, text: str, *, private: bool) -> "Repository":
        """`OWNER/NAME` or `OWNER/NAME@REVISION`."""
        match = REPOSITORY.fullmatch(text)
        if match is None:
            raise ExportError(
                f"{HUB}{text} names no repository: it is hf://OWNER/NAME or hf://OWNER/NAME@REVISION."
            )
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise ExportError("hf:// needs huggingface_hub: pip install '.[hub]'") from error
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        return cls(api, match["name"], match["revision"], private=private)

    def read_card(self) -> bytes | None:
        from huggingface_hub.errors import RepositoryNotFoundError

        with _told(f"{self} cannot be read"):
            try:
                info = self._api.model_info(self._name, revision=self._revision)
            except RepositoryNotFoundError:
                return None
            self._commit = info.sha
            if CARD not in [file.rfilename for file in info.siblings or []]:
                return None
            with tempfile.TemporaryDirectory() as folder:
                return self._downloaded(CARD, Path(folder)).read_bytes()

    def read(self, name: str, target: Path) -> None:
        # On the same disk, so that a large file is moved and not copied.
        beside = tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent)
        with _told(f"{self}, {name} cannot be read"), beside as folder:
            self._downloaded(name, Path(folder)).replace(target)

    def put(self, files: Mapping[str, Path], *, gone: Sequence[str], force: bool, message: str) -> str:
        """One commit. Nothing of the history is lost, so that `force` is not asked for."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        with _told(f"{self} cannot be written"):
            self._api.create_repo(self._name, private=self._private or None, exist_ok=True)
            there = {
                file.rfilename
                for file in self._api.model_info(self._name, revision=self._revision).siblings or []
            }
            operations: list[CommitOperation] = [
                *(
                    CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
                    for name, path in files.items()
                ),
                *(CommitOperationDelete(path_in_repo=name) for name in gone if name in there),
            ]
            commit = self._api.create_commit(
                self._name, operations, commit_message=message, revision=self._revision
            )
        return str(commit.commit_url)

    def __str__(self) -> str:
        return f"{HUB}{self._name}" + (f"@{self._revision}" if self._revision else "")

    def _downloaded(self, name: str, folder: Path) -> Path:
        path = self._api.hf_hub_download(
            self._name, name, revision=self._commit or self._revision, local_dir=folder
        )
        return Path(path)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Whatever goes wrong elsewhere as a sentence: `what`, and the reason."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # those of fsspec's many file systems and of the hub share no class but this
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ExportError(f"{what}: {reason[:SENTENCE]}") from error
