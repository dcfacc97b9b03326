"""A local hub: the requests of the Hugging Face hub's client to download and to upload a model."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_right"


class Hub(BaseHTTPRequestHandler):
    """`server.repos` maps owner/name to files by name, `server.asked` lists (method, path)."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.download(with_body=False)

    def do_GET(self):
        self.download(with_body=True)

    def download(self, with_body):
        self.server.asked.append((self.command, self.path))
        if self.path.endswith("/whoami-v2"):
            return self.json({"name": "somebody", "type": "user"})
        _, owner, name, *rest = self.path.split("/")
        files = self.server.repos.get(f"{owner}/{name}")
        if files is None or rest[:1] != ["resolve"]:
            return self.answer(404, with_body=with_body, **{"X-Error-Code": "RepoNotFound"})
        body, commit = files.get("/".join(rest[2:])), commit_of(files)
        if body is None:
            more = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self.answer(404, with_body=with_body, **more)
        etag = f'"{hashlib.sha1(body).hexdigest()}"'
        return self.answer(200, body, with_body=with_body, ETag=etag, **{"X-Repo-Commit": commit})

    def do_PUT(self):
        self.server.asked.append((self.command, self.path))
        body = self.body()
        assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        self.server.large[self.path.rpartition("/")[2]] = body
        self.answer(200)

    def do_POST(self):
        self.server.asked.append((self.command, self.path))
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, b'{"error": "Invalid credentials"}')
        if self.path.endswith("/validate-yaml"):
            return self.json(check_card(json.loads(body)["content"]))
        if self.path.endswith("/repos/create"):
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.created.append(asked)
            if repo in self.server.repos:
                return self.json({"url": f"{self.server.url}/{repo}"}, 409)
            self.server.repos[repo] = {}
            return self.json({"url": f"{self.server.url}/{repo}"})
        if self.path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/large/{entry['oid']}", "header": {}}}
            return self.json({"transfer": "basic", "objects": objects})
        _, _, _, owner, name, what, _ = self.path.split("/")
        if what == "preupload":
            files = [
                {
                    "path": file["path"], "shouldIgnore": False,
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                }
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self.json({"files": files})
        return self.commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])

    def commit(self, repo, operations):
        files = self.server.repos[repo]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                self.server.messages.append(value["summary"])
        sha = commit_of(files)
        return self.json({"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha})

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def json(self, value, status=200):
        self.answer(status, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def answer(self, status, body=b"", *, with_body=True, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def commit_of(files):
    return hashlib.sha1(
        repr(sorted((name, hashlib.sha1(body).digest()) for name, body in files.items())).encode()
    ).hexdigest()


def check_card(text):
    """The hub refuses a card whose front matter is no YAML or has an unknown task."""
    matter = yaml.safe_load(text.split("---\n")[1])
    good = matter["pipeline_tag"] == "audio-classification" and all(isinstance(tag, str) for tag in matter["tags"])
    return {"errors": [] if good else [{"message": "bad card"}], "warnings": []}


@contextmanager
def serve(repos):
    """Serve `repos` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos, server.asked, server.large, server.created, server.messages = repos, [], {}, [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def start(code, url, home, *arguments):
    """Start Python with the hub at `url` and its cache in `home`; the client reads both once, when it is imported."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    more = {
        "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env={**kept, **more}, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
