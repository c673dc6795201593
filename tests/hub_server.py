"""A server on this machine that speaks the Hub's protocol: what huggingface_hub, datasets and transformers ask of it.

Repositories live in memory as commits of files, large files in a store of their own; tokens, namespaces, branches,
visibility, validation of cards and the Hub's error headers are as on the Hub. Requests can be made to fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

LARGE_FILE = re.compile(r".*\.(parquet|safetensors|bin|gguf|arrow)|tokenizer\.json")
TOKEN = "hf_owner_writes"


@dataclass
class Account:
    name: str
    role: str = "write"
    orgs: dict[str, str] = field(default_factory=dict)

    def writes(self, namespace: str) -> bool:
        return self.role != "read" and (namespace == self.name or self.orgs.get(namespace) in ("write", "admin"))


@dataclass
class Blob:
    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        kept = f"pointer to {self.sha256}".encode() if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.oid


@dataclass
class Repo:
    kind: str
    repo_id: str
    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: dict[str, list[str]] = field(default_factory=dict)

    def add(self, branch: str, files: dict[str, Blob], message: str) -> str:
        number = str(len(self.commits))
        sha = hashlib.sha1(f"{self.kind} {self.repo_id} {number}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.setdefault(branch, []).append(message)
        return sha

    def sha(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


class Refusal(Exception):
    """An answer with an error status, as the Hub gives it."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict[str, Any] | None = None) -> None:
        self.status, self.message, self.code, self.body = status, message, code, body or {"error": message}


@dataclass
class Fault:
    """How the next requests that match fail: with a status, or, after they were served, by a dropped connection."""

    request: str
    times: int
    status: int | None


class HubServer:
    """See `tests/hub/conftest.py` for how a test uses it."""

    def __init__(self) -> None:
        self.accounts = {
            TOKEN: Account("me", orgs={"my-team": "write", "my-readers": "read"}),
            "hf_owner_reads": Account("me", role="read"),
        }
        self.token = TOKEN
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        for known in (
            "model:google-bert/bert-base-uncased",
            "model:FacebookAI/roberta-large",
            "dataset:stanfordnlp/imdb",
        ):
            self.add_repo(*known.split(":"))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a process that shall take this server for the Hub."""
        cleared = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
        return cleared | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(home),
            "PYTHONWARNINGS": "default",
        }

    def connect(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Makes the libraries of this process take this server for the Hub until the test ends."""
        for name, value in self.environment(home).items():
            if name.startswith("HF_"):
                monkeypatch.setenv(name, value)
        take_for_hub(monkeypatch.setattr, self.url, home)

    def add_repo(self, kind: str, repo_id: str, *, private: bool = False) -> Repo:
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private)
        repo.add("main", {".gitattributes": Blob(b"*.parquet filter=lfs\n", False)}, "initial commit")
        return repo

    def commits(self, kind: str, repo_id: str, branch: str = "main") -> list[str]:
        """Messages of the commits to a branch since it began, oldest first."""
        messages = self.repos[kind, repo_id].messages.get(branch, [])
        return messages[1:] if branch == "main" else messages

    def files(self, kind: str, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        repo = self.repos[kind, repo_id]
        return {path: blob.content for path, blob in repo.commits[repo.sha(branch)].items()}

    def readme(self, kind: str, repo_id: str, branch: str = "main") -> str:
        return self.files(kind, repo_id, branch)["README.md"].decode()

    def card_data(self, kind: str, repo_id: str, branch: str = "main") -> dict[str, Any]:
        """The YAML block of a README.md."""
        return yaml.safe_load(self.readme(kind, repo_id, branch).split("---\n")[1])

    def fail(self, request: str, *, times: int = 1, status: int | None = None) -> None:
        """Lets the next requests fail whose `METHOD path` matches; without a status, the answer is lost."""
        self.faults.append(Fault(request, times, status))

    def fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.request, request):
                fault.times -= 1
                return fault
        return None


def take_for_hub(put: Callable[[Any, str, Any], None], url: str, home: Path) -> None:
    """Makes libraries that have read the environment take a server for the Hub, with a function like `setattr`."""
    from huggingface_hub import constants, hf_api
    from transformers.utils import hub as of_transformers

    put(constants, "ENDPOINT", url)
    put(hf_api.api, "endpoint", url)
    put(of_transformers, "_hf_api", None)  # made at its first use
    put(constants, "HF_HUB_DISABLE_XET", True)
    put(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    put(constants, "HF_HUB_CACHE", str(home / "hub"))
    put(constants, "HF_TOKEN_PATH", str(home / "token"))
    if "datasets" in sys.modules:
        put(sys.modules["datasets"].config, "HF_ENDPOINT", url)
        put(sys.modules["datasets"].config, "HF_DATASETS_CACHE", home / "datasets")


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    # An answer in one packet, at once: else each waits 40 ms for an acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read `hub.requests` instead."""

    def serve(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = b"".join(self.chunks())
        request = f"{self.command} {url.path}"
        with self.hub.lock:
            # What huggingface_hub asks on its own account, once a day and process.
            if "agent-harnesses" not in request:
                self.hub.requests.append(request)
            fault = self.hub.fault(request)
            try:
                if fault and fault.status:
                    raise Refusal(fault.status, "try again later")
                answer = self.answer(url.path)
            except Refusal as refusal:
                return self.refuse(refusal)
        if fault:
            self.close_connection = True
            return None
        status, content, headers = answer
        self.respond(status, content, headers)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip() or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()

    def refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": refusal.message, "Content-Type": "application/json"}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self.respond(refusal.status, json.dumps(refusal.body).encode(), headers)

    def respond(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), "X-Request-Id": "1", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def account(self) -> Account | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.accounts.get(token)

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        for method, pattern, route in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                result = route(self, **{name: unquote(value or "") for name, value in match.groupdict().items()})
                if isinstance(result, tuple):
                    return result
                return 200, json.dumps(result).encode(), {"Content-Type": "application/json"}
        raise Refusal(404, f"no such page: {path}")

    def repo(self, kind: str, repo_id: str, *, write: bool = False) -> Repo:
        kind = kind.removesuffix("/").removesuffix("s") or "model"
        account, repo = self.account(), self.hub.repos.get((kind, repo_id))
        namespace = repo_id.split("/")[0]
        if repo is None or (repo.private and not (account and (namespace in (account.name, *account.orgs)))):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        if write and not (account and account.writes(namespace)):
            raise Refusal(403, "Forbidden: you don't have the rights to write here")
        return repo

    def whoami(self) -> Any:
        account = self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": role} for name, role in account.orgs.items()]
        return {
            "type": "user",
            "name": account.name,
            "orgs": orgs,
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}},
        }

    def create(self) -> Any:
        wanted, account = json.loads(self.body), self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        namespace, kind = wanted.get("organization") or account.name, wanted.get("type", "model")
        if not account.writes(namespace):
            raise Refusal(403, f"You don't have the rights to create a {kind} under the namespace {namespace}")
        repo_id = f"{namespace}/{wanted['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            raise Refusal(
                409, "You already created this repo", body={"error": "You already created this repo", "url": url}
            )
        self.hub.add_repo(kind, repo_id, private=wanted.get("visibility") == "private" or wanted.get("private", False))
        return {"url": url, "name": repo_id}

    def validate(self) -> Any:
        wanted = json.loads(self.body)
        errors = card_errors(wanted["content"])
        if errors:
            raise Refusal(
                400, "Invalid metadata", body={"errors": [{"message": error} for error in errors], "warnings": []}
            )
        return {"errors": [], "warnings": []}

    def search(self, kind: str) -> Any:
        wanted = self.query.get("search", [""])[0]
        found = [(len(repo.commits), name) for (of, name), repo in self.hub.repos.items() if kind == f"{of}s"]
        listed = [{"_id": name, "id": name, "tags": [], "downloads": many} for many, name in found if wanted in name]
        return sorted(listed, key=lambda each: -each["downloads"])[: int(self.query.get("limit", [20])[0])]

    def info(self, kind: str, repo_id: str, revision: str = "main") -> Any:
        repo = self.repo(kind, repo_id)
        sha = repo.sha(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        return {"_id": "1", "id": repo_id, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}

    def refs(self, kind: str, repo_id: str) -> Any:
        branches = self.repo(kind, repo_id).branches.items()
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in branches]
        return {"branches": listed, "tags": [], "converts": []}

    def branch(self, kind: str, repo_id: str, name: str) -> Any:
        repo = self.repo(kind, repo_id, write=True)
        if name.startswith("refs/") or re.search(r"[\s~^:?*\[\\]|\.\.", name):
            raise Refusal(400, f"Invalid reference for a branch: {name}")
        if name in repo.branches:
            raise Refusal(409, f"Reference already exists: {name}")
        repo.branches[name] = repo.branches["main"]
        return {}

    def tree(self, kind: str, repo_id: str, revision: str, folder: str = "") -> Any:
        repo = self.repo(kind, repo_id)
        files = repo.commits[repo.sha(revision)]
        start = f"{folder}/" if folder else ""
        if start and not any(path.startswith(start) for path in files):
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        inside = {path: blob for path, blob in files.items() if path.startswith(start)}
        folders = {start + part for path in inside for part in parents(path.removeprefix(start), recursive)}
        shown = {path: blob for path, blob in inside.items() if recursive or "/" not in path.removeprefix(start)}
        return [entry(path, None) for path in sorted(folders)] + [entry(*item) for item in sorted(shown.items())]

    def paths_info(self, kind: str, repo_id: str, revision: str) -> Any:
        repo = self.repo(kind, repo_id)
        files = repo.commits[repo.sha(revision)]
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        folders = {part for path in files for part in parents(path, recursive=True)}
        known = [path for path in paths if path in files or path in folders]
        return [entry(path, files.get(path)) for path in known]

    def preupload(self, kind: str, repo_id: str, revision: str) -> Any:
        repo = self.repo(kind, repo_id, write=True)
        files = repo.commits[repo.sha(revision)]
        answers = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            mode = "lfs" if LARGE_FILE.fullmatch(path) else "regular"
            oid = files[path].etag if path in files else None
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def batch(self, kind: str, repo_id: str) -> Any:
        self.repo(kind, repo_id, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid = wanted["oid"]
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{oid}"}}}
            objects.append(wanted | ({} if oid in self.hub.large_files else upload))
        return {"transfer": "basic", "objects": objects}

    def put(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content is not that of its name")
        self.hub.large_files[oid] = self.body
        return {}

    def commit(self, kind: str, repo_id: str, revision: str) -> Any:
        repo = self.repo(kind, repo_id, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        header = lines[0]["value"]
        head = repo.sha(revision)
        if header.get("parentCommit") not in (None, head):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head])
        for line in lines[1:]:
            value = line["value"]
            path = value["path"]
            if line["key"] == "file":
                files[path] = Blob(base64.b64decode(value["content"]), large=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise Refusal(400, f"{path} was not uploaded")
                files[path] = Blob(self.hub.large_files[value["oid"]], large=True)
            elif path not in files:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                del files[path]
        if "README.md" in files and (errors := card_errors(files["README.md"].content.decode())):
            raise Refusal(400, "; ".join(errors))
        sha = repo.add(revision, files, header["summary"])
        return {"commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "success": True}

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self.repo(kind, repo_id)
        sha = repo.sha(revision)
        blob = repo.commits[sha].get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            size = len(blob.content)
            start = int(part[1]) if part[1] else size - int(part[2])
            stop = min(size, int(part[2]) + 1) if part[1] and part[2] else size
            if start >= size:
                return 416, b"", headers | {"Content-Range": f"bytes */{size}"}
            return 206, blob.content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return 200, blob.content, headers


REPO = r"(?P<repo_id>[^/]+/[^/]+?)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"
PLAIN = rf"/(?P<kind>datasets/)?{REPO}"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", r"/api/(?P<kind>models|datasets)", Handler.search),
    ("GET", API, Handler.info),
    ("GET", rf"{API}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", rf"{API}/refs", Handler.refs),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", Handler.tree),
    ("POST", rf"{API}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("POST", rf"{API}/branch/(?P<name>[^/]+)", Handler.branch),
    ("POST", rf"{PLAIN}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)", Handler.put),
    ("GET HEAD", rf"{PLAIN}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]


def parents(path: str, recursive: bool) -> list[str]:
    """The folders above a path: all of them, or the topmost."""
    parts = path.split("/")[:-1]
    folders = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    return folders if recursive else folders[:1]


def entry(path: str, blob: Blob | None) -> dict[str, Any]:
    if blob is None:
        return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
    found = {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content)}
    if blob.large:
        found["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
    return found


HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
CARD_RULES = {
    "license": r"(apache-2\.0|mit|cc0-1\.0|cc-by(-sa|-nc)?-4\.0|bsd-3-clause|llama3\.1|gemma|unknown|other)",
    "language": r"([a-z]{2,3}|code|multilingual)",
    "base_model": HUB_ID,
    "base_model_relation": r"(adapter|finetune|merge|quantized)",
    "datasets": HUB_ID,
    "source_datasets": HUB_ID,
    "pipeline_tag": r"[a-z0-9]+(-[a-z0-9]+)*",
    "task_categories": r"[a-z0-9]+(-[a-z0-9]+)*",
    "size_categories": r"(n<1K|1K<n<10K|10K<n<100K|100K<n<1M|1M<n<10M)",
    "library_name": r"[a-z-]+",
    "tags": r".{1,100}",
}


def card_errors(readme: str) -> list[str]:
    """What the Hub says against a README.md: no YAML, or values that its search cannot use."""
    block = re.match(r"---\n(.*?)\n---\s", readme, re.DOTALL)
    if block is None:
        return ["the metadata block is missing"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"the metadata block is not YAML: {error}"]
    errors = []
    for key, rule in CARD_RULES.items():
        values = data.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            if not (isinstance(value, str) and re.fullmatch(rule, value)):
                errors.append(f'"{key}" with value "{value}" is not valid')
    for config in data.get("configs", []):
        if not config.get("config_name") or not all({"split", "path"} == set(f) for f in config["data_files"]):
            errors.append('"configs" must name the config, its splits and their files')
    return errors


def pytest_configure(config: pytest.Config) -> None:
    # huggingface_hub uploads large files this way, where Xet is off.
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def hub_server() -> Iterator[HubServer]:
    """A fresh, empty Hub; see `tests/hub/conftest.py`."""
    server = HubServer()
    yield server
    server.close()
