"""A small hub: what `huggingface_hub` asks for when models are pushed and pulled, over HTTP, in memory.

It speaks plain files and LFS, and no Xet storage, which the real hub prefers.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Hub:
    """commits: of each repository, the files after each commit; large: uploaded objects by their SHA-256."""

    def __init__(self) -> None:
        self.url = ""
        self.commits: dict[str, list[Files]] = {}
        self.messages: list[str] = []
        self.private: dict[str, object] = {}
        self.large: Files = {}
        self.damages = ""  # the name of a file that is sent with a bit turned

    def files(self, name: str) -> Files:
        return self.commits[name][-1]


def oid_of(name: str, number: int) -> str:
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.commits:
                said = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
                self._answer(said, status=409)
                return
            self.hub.commits[name] = [{".gitattributes": b""}]
            self.hub.private[name] = asked.get("visibility")
            self._answer({"url": f"{self.hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}"}}
            self._answer({"transfer": "basic", "objects": objects})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(".onnx") else "regular" for file in files}
            answers = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
            self._answer({"files": answers})
        else:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(name, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._answer({})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/") and "/tree/" in path:
            name, _, revision = path.removeprefix("/api/models/").partition("/tree/")
            number = self._number(name, revision)
            if number is not None:
                files = self.hub.commits[name][number].items()
                oids = {file: hashlib.sha1(content).hexdigest() for file, content in files}
                rows = [
                    {"type": "file", "path": f, "oid": oids[f], "size": len(content)} for f, content in files
                ]
                self._answer(rows)
            return
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            number = self._number(name, revision or "main")
            if number is not None:
                siblings = [{"rfilename": file} for file in self.hub.commits[name][number]]
                self._answer({"id": name, "sha": oid_of(name, number), "siblings": siblings})
            return
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        number = self._number(name, revision)
        if number is None:
            return
        content = self.hub.commits[name][number].get(file)
        if content is None:
            self._answer({}, status=404, headers={"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": oid_of(name, number)}
        if file == self.hub.damages:
            content = bytes([content[0] ^ 1]) + content[1:]
        self._send(content, headers=headers)

    def _number(self, name: str, revision: str) -> int | None:
        """Of the commit; where there is none, that is answered."""
        commits = self.hub.commits.get(name)
        if commits is None:
            self._answer({}, status=404, headers={"X-Error-Code": "RepoNotFound"})
            return None
        known = {oid_of(name, number): number for number in range(len(commits))}
        if revision != "main" and revision not in known:
            self._answer({}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
            return None
        return known.get(revision, len(commits) - 1)

    def _commit(self, name: str, lines: list[dict[str, dict[str, str]]]) -> None:
        files = dict(self.hub.files(name))
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.hub.commits[name].append(files)
        oid = oid_of(name, len(self.hub.commits[name]) - 1)
        self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json"} | (headers or {})
        self._send(json.dumps(content).encode(), status=status, headers=headers)

    def _send(self, content: bytes, *, status: int = 200, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("OfThisHub", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
