"""A small server that speaks as much of the Hub's protocol as its client asks for: real requests,
real files, no mocks."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMIT = "a" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files under `root` as one repository, at any revision."""

    root: Path
    kind = "models"
    repo = "someone/thing"
    gone = False
    address: str
    made: dict[str, dict[str, bytes]]  # what was uploaded: repositories, their files
    asked: list[dict[str, object]]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """What uploading asks for: a repository, how each file is to come, a commit of all."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, said = self.path.split("?")[0], dict[str, object]()
        if path == "/api/repos/create":
            wanted = json.loads(content)
            name = f"{wanted.get('organization', 'someone')}/{wanted['name']}"
            if name in self.made:
                self._send(409, json.dumps({"error": "exists already"}).encode(), {}, body=True)
                return
            self.made[name] = {}
            self.asked.append(wanted)
            said = {"url": f"{self.address}/{name}", "id": name, "name": name}
        elif path == "/api/validate-yaml":
            said = {"errors": [], "warnings": []}
        elif path.endswith("/preupload/main"):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(content)["files"]
            ]
            said = {"files": files}
        elif path.endswith("/commit/main"):
            name = "/".join(path.split("/")[3:5])
            repository = self.made[name]
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    repository[value["path"]] = base64.b64decode(value["content"])
            said = {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{self.address}/{name}/commit/{COMMIT}",
            }
        self._send(200, json.dumps(said).encode(), {"Content-Type": "application/json"}, body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        prefix = (
            f"/{self.repo}/resolve/"
            if self.kind == "models"
            else f"/{self.kind}/{self.repo}/resolve/"
        )
        if self.gone:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif path.startswith(f"/api/{self.kind}/{self.repo}"):
            files = [
                {"rfilename": str(file.relative_to(self.root))}
                for file in sorted(self.root.rglob("*"))
                if file.is_file()
            ]
            tree = [
                {
                    "type": "file",
                    "path": one["rfilename"],
                    "size": (self.root / one["rfilename"]).stat().st_size,
                    "oid": "b" * 40,
                }
                for one in files
            ]
            info = {
                "id": self.repo,
                "sha": COMMIT,
                "private": False,
                "siblings": files,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            self._send(
                200,
                json.dumps(tree if "/tree/" in path else info).encode(),
                {"Content-Type": "application/json"},
                body,
            )
        elif path.startswith(prefix):
            name = path.removeprefix(prefix).split("/", 1)[1]
            file = self.root / name
            if not file.exists():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            content = file.read_bytes()
            self._send(
                200,
                content,
                {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT},
                body,
            )
        else:
            self._send(404, b"", {}, body)

    def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@contextmanager
def serve(root: Path, kind: str, repo: str) -> Iterator[type[Hub]]:
    """A running server; its address is `served.address`."""
    given = {"root": root, "kind": kind, "repo": repo, "gone": False, "made": {}, "asked": []}
    handler = type("Served", (Hub,), given)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield handler
    finally:
        server.shutdown()
        server.server_close()
