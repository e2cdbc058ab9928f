"""A Hub on the loopback interface for unmodified clients: huggingface_hub, transformers, datasets, timm.

    with Hub({"a-token": User("me")}) as hub:
        subprocess.run(..., env=os.environ | hub.environment("a-token", home))
        hub.repository("me/tinynet").files("main")

A fault waits for the requests it is meant for: `hub.inject(Fault("PUT", "/lfs/", cut_after=100_000), times=2)`.
"""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs

from tests.hub.card_rules import FRONT_MATTER, card_errors
from tests.hub.http_handler import Fault, HubHandler
from tests.hub.repositories import Blob, Commit, HubError, Repository, User, upload_mode

CREATED = "2026-01-01T00:00:00.000Z"


class Hub(ThreadingHTTPServer):
    """`requests` lists (method, path, status) of what was asked; status is None where the connection was cut."""

    daemon_threads = True

    def __init__(self, users: dict[str, User]) -> None:
        super().__init__(("127.0.0.1", 0), Pages)
        self.users = users  # by token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by sha256
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int | None]] = []
        self.lock = threading.RLock()

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error of the server's; anything else is a defect to see."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, token: str | None, home: Path) -> dict[str, str]:
        """For a process that is to know this Hub, with its caches under `home`."""
        settings = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
        }
        return settings | ({"HF_TOKEN": token} if token else {})

    def repository(self, id: str, kind: str = "model") -> Repository:
        return self.repositories[kind, id]

    def add_repository(self, id: str, files: dict[str, bytes], kind: str = "model") -> Repository:
        """A repository that is there already, with one commit."""
        repository = self.repositories[kind, id] = Repository(kind, id)
        blobs = {path: Blob(data, upload_mode(path, len(data)) == "lfs") for path, data in files.items()}
        repository.change("main", "first files", blobs, set())
        return repository

    def inject(self, fault: Fault, times: int = 1) -> None:
        self.faults += [fault] * times

    def asked(self, method: str, part: str) -> list[tuple[str, str, int | None]]:
        """The requests so far with this method whose path has this part."""
        return [request for request in self.requests if request[0] == method and part in request[1]]


class Pages(HubHandler):
    server: Hub

    # Rights

    def readable(self, kind: str, id: str) -> Repository:
        repository = self.server.repositories.get((kind, id))
        namespace = id.partition("/")[0]
        members = (self.user.name, *self.user.organizations) if self.user else ()
        if repository is None or (repository.private and namespace not in members):
            # To somebody without a token, a repository that does not exist looks like a private one.
            raise HubError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repository

    def accessible(self, kind: str, id: str) -> Repository:
        """Whose files may be read: of a gated repository, whoever accepted its terms."""
        repository = self.readable(kind, id)
        if repository.accepted_by is None:
            return repository
        if self.user is None or self.user.name not in repository.accepted_by:
            raise HubError(403 if self.user else 401, f"Access to {kind} {id} is restricted.", "GatedRepo")
        if not self.user.may_read_gated:
            raise HubError(
                403, "Please enable access to public gated repositories in your fine-grained token settings"
            )
        return repository

    def writable(self, kind: str, id: str) -> Repository:
        repository = self.readable(kind, id)
        self.check_writer(id.partition("/")[0])
        return repository

    def check_writer(self, namespace: str) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        if not self.user.may_write(namespace):
            raise HubError(403, f"You don't have the rights to write under the namespace {namespace!r}")

    # Pages

    def whoami(self, body: bytes) -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        role = "write" if self.user.role == "write" else "read"
        organizations = [{"type": "org", "name": name, "roleInOrg": role} for name in self.user.organizations]
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": self.user.role}}
        self.send(200, {"type": "user", "name": self.user.name, "orgs": organizations, "auth": token})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        namespace = asked.get("organization") or (self.user.name if self.user else "")
        self.check_writer(namespace)
        kind, id = asked.get("type", "model"), f"{namespace}/{asked['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        page = {"url": f"{self.server.endpoint}/{prefix}{id}", "name": id}
        if (kind, id) in self.server.repositories:
            self.send(409, {"error": "You already created this repo", **page})
            return
        self.server.repositories[kind, id] = Repository(kind, id, asked.get("visibility") == "private")
        self.send(200, page)

    def validate_card(self, body: bytes) -> None:
        asked = json.loads(body)
        errors = [{"message": message} for message in card_errors(asked["content"])]
        has_metadata = FRONT_MATTER.match(asked["content"])
        warnings = [] if has_metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def preupload(self, body: bytes, kind: str, id: str, revision: str) -> None:
        files = self._commit_base(kind, id, revision).files
        answers = []
        for asked in json.loads(body)["files"]:
            path, known = asked["path"], files.get(asked["path"])
            mode = upload_mode(path, asked["size"])
            oid = known.etag if known else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send(200, {"files": answers})

    def _commit_base(self, kind: str, id: str, revision: str) -> Commit:
        return self._repository_to_commit(kind, id).commit(revision)

    def _repository_to_commit(self, kind: str, id: str) -> Repository:
        """Anybody with a token may open a pull request; only those with rights may commit."""
        if "create_pr" not in self.query:
            return self.writable(kind, id)
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.readable(kind, id)

    def lfs_batch(self, body: bytes, id: str, prefix: str = "") -> None:
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        objects = []
        for asked in json.loads(body)["objects"]:
            if asked["oid"] not in self.server.objects:
                asked["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}}
            objects.append(asked)
        self.send(200, {"transfer": "basic", "objects": objects})

    def put_object(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "the object is not what its name says")
        self.server.objects[oid] = body
        self.send(200, {})

    def commit(self, body: bytes, kind: str, id: str, revision: str) -> None:
        repository = self._repository_to_commit(kind, id)
        before, title, changed, deleted = repository.commit(revision), "", {}, set()
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    title = value["summary"]
                    if value.get("parentCommit", before.sha) != before.sha:
                        raise HubError(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    changed[value["path"]] = Blob(base64.b64decode(value["content"]), is_lfs=False)
                case "lfsFile":
                    if value["oid"] not in self.server.objects:
                        raise HubError(400, f"LFS object of {value['path']} is missing")
                    changed[value["path"]] = Blob(self.server.objects[value["oid"]], is_lfs=True)
                case "deletedFile":
                    deleted.add(value["path"])
                case "deletedFolder":
                    deleted |= {path for path in before.files if path.startswith(value["path"])}
                case unknown:
                    raise HubError(400, f"unknown operation {unknown}")
        if "README.md" in changed and (errors := card_errors(changed["README.md"].data.decode())):
            raise HubError(400, f"invalid metadata: {errors[0]}")
        is_new = "create_pr" in self.query
        made, ref = repository.change(revision, title, changed, deleted, new_pull_request=is_new)
        page = f"{self.server.endpoint}/{'' if kind == 'model' else kind + 's/'}{id}"
        answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{page}/commit/{made.sha}"}
        if is_new:
            answer["pullRequestUrl"] = f"{page}/discussions/{ref.rsplit('/', 1)[1]}"
        self.send(200, answer)

    def branch(self, body: bytes, kind: str, id: str, name: str) -> None:
        start = json.loads(body or b"{}").get("startingPoint", "main")
        self.writable(kind, id).add_ref(name, start, is_tag=False)
        self.send(200, {})

    def tag(self, body: bytes, kind: str, id: str, revision: str) -> None:
        self.writable(kind, id).add_ref(json.loads(body)["tag"], revision, is_tag=True)
        self.send(200, {})

    def refs(self, body: bytes, kind: str, id: str) -> None:
        repository = self.readable(kind, id)
        listed: dict[str, list] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for name, sha in repository.refs.items():
            is_pull_request, is_tag = name.startswith("refs/pr/"), name in repository.tags
            group = "pullRequests" if is_pull_request else "tags" if is_tag else "branches"
            ref = name if is_pull_request else f"refs/{'tags' if is_tag else 'heads'}/{name}"
            listed[group].append({"name": name, "ref": ref, "targetCommit": sha})
        self.send(200, listed)

    def info(self, body: bytes, kind: str, id: str, revision: str = "main") -> None:
        repository = self.readable(kind, id)
        commit = repository.commit(revision)
        facts = {
            "_id": "0",
            "id": id,
            f"{kind}Id": id,
            "author": id.partition("/")[0],
            "sha": commit.sha,
            "private": repository.private,
            "gated": "auto" if repository.accepted_by is not None else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": CREATED,
            "lastModified": CREATED,
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }
        if kind == "model" and "config.json" in commit.files:
            facts["library_name"], facts["pipeline_tag"] = "transformers", "image-classification"
        self.send(200, facts)

    def auth_check(self, body: bytes, kind: str, id: str) -> None:
        self.accessible(kind, id)
        self.send(200, {})

    def tree(self, body: bytes, kind: str, id: str, revision: str, folder: str = "") -> None:
        commit = self.readable(kind, id).commit(revision)
        folder = folder.strip("/")
        prefix = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in commit.files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        is_recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents}
        folders = {path for path in folders if path.startswith(prefix) and path not in (".", folder)}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in sorted(folders)]
        entries += [blob.entry(path) for path, blob in sorted(inside.items())]
        if not is_recursive:
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        self.send(200, entries)

    def paths_info(self, body: bytes, kind: str, id: str, revision: str) -> None:
        files = self.readable(kind, id).commit(revision).files
        asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
        entries = []
        for path in [asked] if isinstance(asked, str) else asked:
            if path in files:
                entries.append(files[path].entry(path))
            elif any(other.startswith(f"{path}/") for other in files):
                entries.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
        self.send(200, entries)

    def resolve(self, body: bytes, id: str, revision: str, path: str, prefix: str = "") -> None:
        kind = "dataset" if prefix else "model"
        commit, blob = self.accessible(kind, id).blob(revision, path)
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if blob.is_lfs:
            headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, blob.data, headers)
            return
        start, end = int(asked[1]), min(int(asked[2] or len(blob.data) - 1), len(blob.data) - 1)
        if start > end:
            raise HubError(416, "range not satisfiable")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(blob.data)}"
        self.send(206, blob.data[start : end + 1], headers)


REPO = r"(?P<id>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset)s/{REPO}"
REVISION = r"(?P<revision>[^/]+)"
Pages.routes = (
    (("GET",), "/api/whoami-v2", Pages.whoami),
    (("POST",), "/api/repos/create", Pages.create),
    (("POST",), "/api/validate-yaml", Pages.validate_card),
    (("POST",), rf"{API}/preupload/{REVISION}", Pages.preupload),
    (("POST",), rf"/(?P<prefix>datasets/)?{REPO}\.git/info/lfs/objects/batch", Pages.lfs_batch),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", Pages.put_object),
    (("POST",), rf"{API}/commit/{REVISION}", Pages.commit),
    (("POST",), rf"{API}/branch/(?P<name>[^/]+)", Pages.branch),
    (("POST",), rf"{API}/tag/{REVISION}", Pages.tag),
    (("GET",), rf"{API}/refs", Pages.refs),
    (("GET",), rf"{API}/auth-check", Pages.auth_check),
    (("GET",), rf"{API}(?:/revision/{REVISION})?", Pages.info),
    (("GET",), rf"{API}/tree/{REVISION}(?P<folder>/.*)?", Pages.tree),
    (("POST",), rf"{API}/paths-info/{REVISION}", Pages.paths_info),
    (("GET", "HEAD"), rf"/(?P<prefix>datasets/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", Pages.resolve),
)
