"""What the test Hub stores: repositories as git sees them, commits that happen whole or not at all, users."""

import hashlib
from dataclasses import dataclass, field

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".jpg", ".parquet", ".onnx", ".zip")
LFS_SIZE = 10_000_000  # the real Hub's: larger files are never stored in git


class HubError(Exception):
    """What a client is answered: an HTTP status, the Hub's error code, and a message."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True)
class User:
    """Who a token belongs to. `role` and `may_read_gated` are the token's: read or write, and fine-grained rights."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()
    may_read_gated: bool = True

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and namespace in (self.name, *self.organizations)


@dataclass(frozen=True)
class Blob:
    """One version of a file."""

    data: bytes
    is_lfs: bool

    @property
    def git_oid(self) -> str:
        """What git calls it; of a file in LFS, what it calls the pointer that stands for it."""
        content = self.data
        if self.is_lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
            content = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.git_oid

    def entry(self, path: str) -> dict[str, object]:
        """A file as the Hub lists it."""
        listed = {"type": "file", "oid": self.git_oid, "size": len(self.data), "path": path}
        if self.is_lfs:
            listed["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}
        return listed


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict[str, Blob]


@dataclass
class Repository:
    """`refs` are branches, tags and pull requests by the names a client asks for; a commit's sha works like them."""

    kind: str  # model or dataset
    id: str
    private: bool = False
    accepted_by: frozenset[str] | None = None  # whom the owner of a gated repository let in; None: not gated
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    pull_requests: int = 0

    def __post_init__(self) -> None:
        self.refs["main"] = self._add(None, "initial commit", {})

    def commit(self, revision: str) -> Commit:
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The contents of all files by path, for a test to look at."""
        return {path: blob.data for path, blob in self.commit(revision).files.items()}

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first."""
        commits, sha = [], self.commit(revision).sha
        while sha is not None:
            commits.append(self.commits[sha])
            sha = commits[-1].parent
        return commits

    def blob(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.commit(revision)
        if path not in commit.files:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return commit, commit.files[path]

    def change(
        self, revision: str, title: str, changed: dict[str, Blob], deleted: set[str], *, new_pull_request: bool = False
    ) -> tuple[Commit, str]:
        """One commit on a branch, or on a new pull request that starts there; returns it and the name of its ref."""
        ref = revision
        if new_pull_request:
            self.pull_requests += 1
            ref = f"refs/pr/{self.pull_requests}"
        elif revision not in self.refs or revision in self.tags:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        before = self.commit(revision)
        files = {path: blob for path, blob in before.files.items() if path not in deleted}
        self.refs[ref] = self._add(before.sha, title, files | changed)
        return self.commits[self.refs[ref]], ref

    def add_ref(self, name: str, revision: str, *, is_tag: bool) -> None:
        if name in self.refs:
            raise HubError(409, f"Reference {name} already exists")
        self.refs[name] = self.commit(revision).sha
        if is_tag:
            self.tags.add(name)

    def _add(self, parent: str | None, title: str, files: dict[str, Blob]) -> str:
        contents = sorted((path, blob.git_oid) for path, blob in files.items())
        described = f"{self.kind} {self.id} {len(self.commits)} {parent} {title} {contents}"
        sha = hashlib.sha1(described.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, files)
        return sha


def upload_mode(path: str, size: int) -> str:
    """Where the Hub wants a file: `lfs`, or `regular` for one inside the commit itself."""
    return "lfs" if size > LFS_SIZE or path.endswith(LFS_SUFFIXES) else "regular"
