"""A Hub on this machine: an HTTP server that speaks what the real clients of the Hub ask of it.

Models and data sets; commits, large files, tags, tokens, private repositories, and errors on demand. It keeps
everything in memory, and every commit whole: a repository is a list of them.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LARGE = (".safetensors", ".parquet", ".flac", ".wav", ".bin")
REPO = r"(?P<kind>models|datasets)/(?P<repo>[\w.-]+/[\w.-]+?)"
FILES = r"/(?P<data>datasets/)?(?P<repo>[\w.-]+/[\w.-]+?)"


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]
    large: frozenset[str] = frozenset()

    def blob(self, path: str) -> str:
        """The ETag of a file: sha256 of a large one, git's of any other."""
        content = self.files[path]
        if path in self.large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        if revision in ("main", "HEAD", "refs/heads/main"):
            return self.head
        oid = self.tags.get(revision, revision)
        for commit in self.commits:
            if commit.oid == oid:
                return commit
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str, message: str, **body):
        super().__init__(message)
        self.status, self.code, self.body = status, code, {"error": message, **body}


@dataclass(frozen=True)
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


@dataclass
class Failure:
    """The next `times` requests like this are answered with an error; `before` runs first."""

    method: str
    part: str
    status: int
    times: int
    before: Callable[[], None] | None = None


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves at `hub.url` until the block ends; `hub.token` may write to `user/`."""

    def __init__(self, user: str = "user", token: str = "hf_loopback_secret"):
        self.user, self.token = user, token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.requests: list[str] = []
        self._lock = threading.RLock()

    def __enter__(self) -> "LoopbackHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def environment(self, **more: str) -> dict[str, str]:
        """What a process needs in its environment to take this for the Hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}

    def fail(self, method: str, part: str, *, status: int = 500, times: int = 1, before=None):
        """Answers the next `times` requests whose path contains `part` with an error."""
        self.failures.append(Failure(method, part, status, times, before))

    def repository(self, repo: str, kind: str = "models") -> Repository:
        return self.repositories[kind, repo]

    def add(self, repo: str, files: dict[str, bytes], kind: str = "models", private: bool = False) -> Repository:
        """A repository with one commit, put here without any client."""
        self.repositories[kind, repo] = repository = Repository(private, [_commit({}, "initial commit", "")])
        self.write(repository, files, "files")
        return repository

    def write(self, repository: Repository, files: dict[str, bytes], title: str):
        large = frozenset(path for path in files if path.endswith(LARGE))
        repository.commits.append(_commit(files, title, repository.head.oid, large))

    def answer(self, method: str, url: str, headers, body: bytes) -> Answer:
        path = unquote(urlsplit(url).path)
        with self._lock:
            self.requests.append(f"{method} {path}")
            for failure in self.failures:
                if failure.times and failure.method == method and failure.part in path:
                    failure.times -= 1
                    if failure.before:
                        failure.before()
                    # as a careless server would say it
                    raise Refused(failure.status, "", f"an error on demand, {headers.get('authorization')}")
            for wanted, pattern, endpoint in ENDPOINTS:
                found = re.fullmatch(pattern, path)
                if method in wanted.split() and found:
                    return endpoint(self, Request(headers, body, found.groupdict(), parse_qs(urlsplit(url).query)))
        raise Refused(404, "", f"no such endpoint: {method} {path}")


@dataclass(frozen=True)
class Request:
    headers: dict
    body: bytes
    words: dict[str, str | None]
    query: dict[str, list[str]]

    @property
    def json(self) -> dict:
        return json.loads(self.body)

    @property
    def token(self) -> str:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ")


def _commit(files: dict[str, bytes], title: str, parent: str, large: frozenset[str] = frozenset()) -> Commit:
    described = [parent, title, *(f"{path} {hashlib.sha1(files[path]).hexdigest()}" for path in sorted(files))]
    return Commit(hashlib.sha1("\n".join(described).encode()).hexdigest(), title, dict(files), large)


def _repository(hub: LoopbackHub, request: Request, *, write: bool = False) -> Repository:
    kind = request.words.get("kind") or ("datasets" if request.words.get("data") else "models")
    repository = hub.repositories.get((kind, request.words["repo"]))
    if repository is None or (repository.private and request.token != hub.token):
        # the real one does not tell a stranger which of both it is
        raise Refused(404 if request.token == hub.token else 401, "RepoNotFound", "Repository not found")
    if write and request.token != hub.token:
        raise Refused(401, "", "Invalid username or password.")
    if write and not request.words["repo"].startswith(f"{hub.user}/"):
        raise Refused(403, "", "You don't have write access to this repository.")
    return repository


def _whoami(hub: LoopbackHub, request: Request) -> Answer:
    if request.token != hub.token:
        raise Refused(401, "", "Invalid username or password.")
    return as_json({"type": "user", "name": hub.user, "orgs": []})


def _create(hub: LoopbackHub, request: Request) -> Answer:
    wanted = request.json
    owner = wanted.get("organization") or hub.user
    if request.token != hub.token:
        raise Refused(401, "", "Invalid username or password.")
    if owner != hub.user:
        raise Refused(403, "", f"You don't have the rights to create a repository under {owner!r}.")
    kind, repo = f"{wanted.get('type') or 'model'}s", f"{owner}/{wanted['name']}"
    url = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo}"
    if (kind, repo) in hub.repositories:
        raise Refused(409, "", "You already created this repo", url=url)
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    first = _commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit", repo)
    hub.repositories[kind, repo] = Repository(private, [first])
    return as_json({"url": url})


def _settings(hub: LoopbackHub, request: Request) -> Answer:
    repository, wanted = _repository(hub, request, write=True), request.json
    repository.private = wanted.get("private", wanted.get("visibility") == "private")
    return as_json({"private": repository.private})


def _validate_yaml(hub: LoopbackHub, request: Request) -> Answer:
    header = re.match(r"---\n(.*?)\n---\n", request.json["content"], re.DOTALL)
    try:
        metadata = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError as error:
        return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    if not isinstance(metadata, dict | None):
        return as_json({"errors": [{"message": "the metadata is no mapping"}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


def _preupload(hub: LoopbackHub, request: Request) -> Answer:
    head, answers = _repository(hub, request, write=True).head, []
    for file in request.json["files"]:
        path = file["path"]
        mode = "lfs" if path.endswith(LARGE) else "regular"
        oid = head.blob(path) if path in head.files else None
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return as_json({"files": answers})


def _lfs_batch(hub: LoopbackHub, request: Request) -> Answer:
    _repository(hub, request, write=True)
    objects = []
    for wanted in request.json["objects"]:
        if wanted["oid"] not in hub.blobs:
            upload = {"href": f"{hub.url}/lfs/{wanted['oid']}"}
            wanted = {**wanted, "actions": {"upload": upload, "verify": {"href": f"{hub.url}/lfs/verify"}}}
        objects.append(wanted)
    return as_json({"transfer": "basic", "objects": objects})


def _lfs_put(hub: LoopbackHub, request: Request) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != request.words["oid"]:
        raise Refused(400, "", "the content is not what its name says")
    hub.blobs[request.words["oid"]] = request.body
    return Answer()


def _lfs_verify(hub: LoopbackHub, request: Request) -> Answer:
    if len(hub.blobs.get(request.json["oid"], b"")) != request.json["size"]:
        raise Refused(404, "", "no such object")
    return as_json({})


def _commit_files(hub: LoopbackHub, request: Request) -> Answer:
    repository = _repository(hub, request, write=True)
    files, large, title, parent = dict(repository.head.files), set(repository.head.large), "", None
    for line in map(json.loads, request.body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            title, parent = value["summary"], value.get("parentCommit")
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
            large.discard(value["path"])
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.blobs:
                raise Refused(400, "", f"{value['path']} was not uploaded")
            files[value["path"]] = hub.blobs[value["oid"]]
            large.add(value["path"])
        else:
            files.pop(value["path"])
            large.discard(value["path"])
    if parent is not None and parent != repository.head.oid:
        raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
    commit = _commit(files, title, repository.head.oid, frozenset(large))
    repository.commits.append(commit)
    return as_json({"commitOid": commit.oid, "commitUrl": f"{hub.url}/{request.words['repo']}/commit/{commit.oid}"})


def _tag(hub: LoopbackHub, request: Request) -> Answer:
    repository, name = _repository(hub, request, write=True), request.json["tag"]
    if name in repository.tags:
        raise Refused(409, "", f"Tag {name} already exists")
    repository.tags[name] = repository.at(request.words["revision"]).oid
    return as_json({})


def _refs(hub: LoopbackHub, request: Request) -> Answer:
    repository = _repository(hub, request)
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": oid} for n, oid in repository.tags.items()]
    main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head.oid}
    return as_json({"branches": [main], "tags": tags, "converts": []})


def _info(hub: LoopbackHub, request: Request) -> Answer:
    repository = _repository(hub, request)
    commit = repository.at(request.words.get("revision") or "main")
    siblings = [{"rfilename": path} for path in commit.files]
    known = {"id": request.words["repo"], "sha": commit.oid, "private": repository.private, "gated": False}
    return as_json({**known, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0, "disabled": False})


def _entry(commit: Commit, path: str) -> dict:
    size = len(commit.files[path])
    entry = {"type": "file", "path": path, "size": size, "oid": commit.blob(path)}
    if path in commit.large:
        entry["lfs"] = {"oid": commit.blob(path), "size": size, "pointerSize": 134}
    return entry


def _folders(commit: Commit) -> set[str]:
    return {path.rsplit("/", i)[0] for path in commit.files for i in range(1, path.count("/") + 1)}


def _tree(hub: LoopbackHub, request: Request) -> Answer:
    commit = _repository(hub, request).at(request.words["revision"])
    folder = (request.words.get("path") or "").strip("/")
    if folder and folder not in _folders(commit):
        raise Refused(404, "EntryNotFound", f"{folder} does not exist")
    folders = [{"type": "directory", "path": f, "size": 0, "oid": "0" * 40} for f in sorted(_folders(commit))]
    entries = [*folders, *(_entry(commit, path) for path in sorted(commit.files))]
    beneath = f"{folder}/" if folder else ""
    entries = [entry for entry in entries if entry["path"].startswith(beneath)]
    if request.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(beneath)]
    return as_json(entries)


def _paths_info(hub: LoopbackHub, request: Request) -> Answer:
    commit = _repository(hub, request).at(request.words["revision"])
    paths = request.json["paths"]
    return as_json([_entry(commit, path) for path in paths if path in commit.files])


def _resolve(hub: LoopbackHub, request: Request) -> Answer:
    commit = _repository(hub, request).at(request.words["revision"])
    path, headers = request.words["path"], {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if path not in commit.files:
        missing = {**headers, "X-Error-Code": "EntryNotFound"}
        return Answer(json.dumps({"error": "Entry not found"}).encode(), 404, missing)
    content = commit.files[path]
    headers["ETag"] = f'"{commit.blob(path)}"'
    if path in commit.large:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range") or "")
    if wanted is None:
        return Answer(content, 200, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Answer(content[first : last + 1], 206, headers)


REVISION = r"(?P<revision>[^/]+)"
ENDPOINTS = [
    ("GET", r"/api/whoami-v2", _whoami),
    ("POST", r"/api/repos/create", _create),
    ("POST", r"/api/validate-yaml", _validate_yaml),
    ("PUT", rf"/api/{REPO}/settings", _settings),
    ("POST", rf"/api/{REPO}/preupload/{REVISION}", _preupload),
    ("POST", rf"/api/{REPO}/commit/{REVISION}", _commit_files),
    ("POST", rf"/api/{REPO}/tag/{REVISION}", _tag),
    ("GET", rf"/api/{REPO}/refs", _refs),
    ("GET", rf"/api/{REPO}/tree/{REVISION}(?P<path>/.*)?", _tree),
    ("POST", rf"/api/{REPO}/paths-info/{REVISION}", _paths_info),
    ("GET", rf"/api/{REPO}(/revision/{REVISION})?", _info),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", _lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _lfs_put),
    ("POST", r"/lfs/verify", _lfs_verify),
    ("GET HEAD", rf"{FILES}/resolve/{REVISION}/(?P<path>.+)", _resolve),
]


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            answer = self.hub.answer(self.command, self.path, self.headers, body)
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            headers = {name: value for name, value in headers.items() if value}
            answer = Answer(json.dumps(refusal.body).encode(), refusal.status, headers)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *_):
        pass
