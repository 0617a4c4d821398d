"""A small Hugging Face Hub on 127.0.0.1: model repositories with branches, pull requests and large files, tokens, and failures on
demand. `huggingface_hub` and `transformers` talk to it through HTTP as to the real one; everything is kept in memory.

    with serve() as hub:
        HfApi(endpoint=hub.url, token="hf_tester").create_repo("tester/model")
        hub.files("tester/model")  # {path: bytes} of the main branch
"""

import base64
import hashlib
import io
import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

from huggingface_hub import constants
from transformers.utils import hub as transformers_hub

TOKENS = {"hf_tester": ("tester", "write"), "hf_reader": ("tester", "read"), "hf_other": ("other", "write")}
LARGE = (".safetensors", ".bin", ".png", ".jpg")  # what the Hub keeps outside git, beside files of more than 10 MB
REPO = r"([\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)  # branch or pull request -> commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # commit -> its files
    titles: list[str] = field(default_factory=list)

    def commit(self, ref, files, title):
        oid = hashlib.sha1(f"{title}{len(self.commits)}".encode()).hexdigest()
        self.commits[oid], self.refs[ref] = files, oid
        self.titles.append(title)
        return oid

    def resolve(self, revision):
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    requests: list[str] = field(default_factory=list)
    failures: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  # "METHOD pattern of the path" -> status, message
    other_files: dict[str, bytes] = field(default_factory=dict)  # outside repositories, by path
    cuts: list[int] = field(default_factory=list)  # the next downloads break off after so many bytes
    hang_up: Callable[[int], str | None] = lambda number: None  # by a request's number: "before" it is done, or "after"
    max_bytes: int = 10**9
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, repo_id, files):
        """A repository that is there already."""
        self.repositories[repo_id] = Repository()
        self.repositories[repo_id].commit("main", files, "files")

    def files(self, repo_id, revision="main"):
        repository = self.repositories[repo_id]
        return repository.commits[repository.refs[revision]]


class _RefusedError(Exception):
    def __init__(self, status, message, code=""):
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def _handle(self):
        parsed = urlparse(self.path)
        self.route, self.query, self.body = unquote(parsed.path), parse_qs(parsed.query), self._read()
        self.hub.requests.append(f"{self.command} {self.route}")
        moment = self.hub.hang_up(len(self.hub.requests))
        if moment == "before":
            return self._hang_up()
        if moment == "after":
            self.wfile = io.BytesIO()  # the answer is lost
        self._answer()
        if moment == "after":
            self._hang_up()

    def _hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self):
        try:
            for pattern, (status, message) in self.hub.failures.items():
                method, path = pattern.split(" ", 1)
                if method == self.command and re.search(path, self.route):
                    raise _RefusedError(status, message)
            for method, pattern, answer in _ROUTES:
                match = re.fullmatch(pattern, self.route)
                if match and self.command in method.split("|"):
                    with self.hub.lock:
                        return answer(self, *match.groups())
            if self.command == "GET" and self.route in self.hub.other_files:
                return self._send_file(self.hub.other_files[self.route])
            raise _RefusedError(404, f"unknown route {self.command} {self.route}")
        except _RefusedError as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            return self._send({"error": str(refused)}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _read(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, content, status=200, headers=(), kind="application/json"):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who asks, and for what

    def _user(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        return TOKENS.get(token, (None, "read"))

    def _must_write(self, repo_id):
        user, role = self._user()
        if user is None:
            raise _RefusedError(401, "Invalid username or password.")
        if user != repo_id.split("/")[0] or role != "write":
            raise _RefusedError(403, f"You don't have the rights to create or change {repo_id}")

    def _repository(self, repo_id):
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self._user()[0] != repo_id.split("/")[0]):
            raise _RefusedError(404 if self._user()[0] else 401, "Repository not found", "RepoNotFound")
        return repository

    def _commit_of(self, repository, revision):
        oid = repository.resolve(unquote(revision))
        if oid is None:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # Answers

    def whoami(self):
        user, role = self._user()
        if user is None:
            raise _RefusedError(401, "Invalid credentials")
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self._send({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": token})

    def validate_yaml(self):
        self._send({"errors": [], "warnings": []})

    def create(self):
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self._user()[0]}/{asked['name']}"
        self._must_write(repo_id)
        if repo_id in self.hub.repositories:
            answer = {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo_id}"}
            return self._send(answer, 409)
        self.hub.repositories[repo_id] = Repository(bool(asked.get("private")) or asked.get("visibility") == "private")
        self.hub.repositories[repo_id].commit("main", {}, "initial commit")
        self._send({"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": "1"})

    def delete(self):
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or self._user()[0]}/{asked['name']}"
        self._must_write(repo_id)
        del self.hub.repositories[repo_id]
        self._send({})

    def describe(self, repo_id, revision="main"):
        repository = self._repository(repo_id)
        oid = self._commit_of(repository, revision)
        self._send(
            {
                **{"_id": "1", "id": repo_id, "modelId": repo_id, "sha": oid, "private": repository.private},
                **{"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False},
                "siblings": [{"rfilename": path} for path in repository.commits[oid]],
            }
        )

    def tree(self, repo_id, revision):
        repository = self._repository(repo_id)
        files = repository.commits[self._commit_of(repository, revision)]
        self._send([{"type": "file", "path": p, "size": len(c), "oid": _git_oid(c)} for p, c in files.items()])

    def folder(self, repo_id, revision, path):
        self._commit_of(self._repository(repo_id), revision)
        raise _RefusedError(
            404, f"{path} does not exist on {revision!r}", "EntryNotFound"
        )  # no repository here has folders

    def paths_info(self, repo_id, revision):
        repository = self._repository(repo_id)
        files = repository.commits[self._commit_of(repository, revision)]
        paths = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        found = [path for path in paths if path in files]
        self._send([{"type": "file", "path": p, "size": len(files[p]), "oid": _git_oid(files[p])} for p in found])

    def branch(self, repo_id, name):
        self._must_write(repo_id)
        repository = self._repository(repo_id)
        if self.command == "DELETE":
            del repository.refs[name]
        else:
            start = json.loads(self.body or b"{}").get("startingPoint") or "main"
            repository.refs[name] = self._commit_of(repository, start)
        self._send({})

    def preupload(self, repo_id, revision):
        self._must_write(repo_id)
        repository = self._repository(repo_id)
        there = repository.commits[self._commit_of(repository, revision)]
        files = [
            {"path": f["path"], "uploadMode": _mode(f), "shouldIgnore": False, "oid": _oid(f["path"], there)}
            for f in json.loads(self.body)["files"]
        ]
        self._send({"files": files})

    def large_file_batch(self, repo_id):
        self._must_write(repo_id)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["size"] > self.hub.max_bytes:
                message = f"You need to configure your repository to enable upload of files > {self.hub.max_bytes}"
                answer["error"] = {"code": 422, "message": f"{message}: file too large"}
            elif asked["oid"] not in self.hub.large_files:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/_large/{asked['oid']}", "header": {}}}
            answers.append(answer)
        self._send({"transfer": "basic", "objects": answers}, kind="application/vnd.git-lfs+json")

    def large_file(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400, "checksum differs")
        self.hub.large_files[oid] = self.body
        self._send({})

    def commit(self, repo_id, revision):
        self._must_write(repo_id)
        repository = self._repository(repo_id)
        files, title = dict(repository.commits[self._commit_of(repository, revision)]), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title = value["summary"]
            elif kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.large_files:
                    raise _RefusedError(400, f"{value['path']}: content was not uploaded")
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif kind == "deletedFile":
                files.pop(value["path"], None)
        answer = {"success": True, "hookOutput": ""}
        if "create_pr" in self.query:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        oid = repository.commit(unquote(revision), files, title)
        self._send({**answer, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"})

    def download(self, repo_id, revision, path):
        repository = self._repository(repo_id)
        oid = self._commit_of(repository, revision)
        content = repository.commits[oid].get(path)
        if content is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound")
        etag = _oid(path, {path: content})
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "X-Linked-Size": str(len(content))}
        self._send_file(content, headers)

    def _send_file(self, content, headers=()):
        start = int(re.sub(r"bytes=(\d+)-.*", r"\1", self.headers.get("Range") or "bytes=0-"))
        rest, headers = content[start:], {"Content-Length": str(len(content) - start), **dict(headers)}
        if self.hub.cuts and self.command == "GET":
            rest, self.close_connection = rest[: self.hub.cuts.pop(0)], True
        self._send(rest, 206 if start else 200, headers, kind="application/octet-stream")


def _git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(path, files):
    """By what the Hub knows the content of a file; None if it has no such file."""
    if path not in files:
        return None
    content = files[path]
    is_large = _mode({"path": path, "size": len(content)}) == "lfs"
    return hashlib.sha256(content).hexdigest() if is_large else _git_oid(content)


def _mode(file):
    return "lfs" if file.get("size", 0) > 10**7 or file["path"].endswith(LARGE) else "regular"


_ROUTES = (
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", r"/api/repos/create", _Handler.create),
    ("DELETE", r"/api/repos/delete", _Handler.delete),
    ("GET", rf"/api/models/{REPO}", _Handler.describe),
    ("GET", rf"/api/models/{REPO}/revision/(.+)", _Handler.describe),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)", _Handler.tree),
    ("GET", rf"/api/models/{REPO}/tree/([^/]+)/(.+)", _Handler.folder),
    ("POST", rf"/api/models/{REPO}/paths-info/(.+)", _Handler.paths_info),
    ("POST|DELETE", rf"/api/models/{REPO}/branch/(.+)", _Handler.branch),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.large_file_batch),
    ("PUT", r"/_large/([0-9a-f]{64})", _Handler.large_file),
    ("GET|HEAD", rf"/{REPO}/resolve/([^/]+)/(.+)", _Handler.download),
)


def talk_to(hub, monkeypatch):
    """Let this process talk to a Hub on this machine, and to no other."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # It is kept with the address that it was made with, which may be that of a Hub that is gone.
    monkeypatch.setattr(transformers_hub, "_hf_api", None)


@contextmanager
def serve():
    """The Hub, while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
