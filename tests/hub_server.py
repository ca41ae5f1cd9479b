"""A small Hugging Face Hub on this machine, for tests of `from_pretrained` and `push_to_hub`.

`LocalHub` serves repositories from memory: create, list, upload (in one commit; what a pack is made of by way of LFS),
download. Clients read the Hub's address when `huggingface_hub` is imported, so run them in a process of their own:

    with LocalHub() as hub:
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path), check=True)
        assert "config.json" in hub.files("user/model")
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "a" * 40
LFS_SUFFIXES = (".dat", ".npz", ".parquet", ".arrow")


class LocalHub:
    """Start with `with`; `endpoint` is its address while it runs."""

    def __init__(self):
        self.repositories = {}
        self.lfs_objects = {}
        self.requests = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home):
        """Variables for a process that uses this hub, with an empty cache in `home`."""
        return os.environ | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_test",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, repository):
        """Paths and contents of a repository."""
        return self.repositories[repository]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self._path()
        if path == "/api/whoami-v2":
            token = {"displayName": "test", "role": "write"}
            return self._send({"name": "user", "type": "user", "auth": {"accessToken": token}, "orgs": []})
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            return self._send_repository(match[1])
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/[^/]+", path):
            return self._send_tree(match[1])
        if match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._send_file(match[1], match[2])
        return self._not_found("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        path, body = self._path(), self._body()
        if path == "/api/repos/create":
            request = json.loads(body)
            name = (
                request["name"]
                if "/" in request["name"]
                else f"{request.get('organization') or 'user'}/{request['name']}"
            )
            self.hub.repositories.setdefault(name, {})
            return self._send({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if re.fullmatch(r"/api/(?:models|datasets)/[^/]+/[^/]+/preupload/.+", path):
            files = json.loads(body)["files"]
            plan = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in files
            ]
            return self._send({"files": plan})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._plan_lfs(json.loads(body)["objects"])
        if re.fullmatch(r"/api/(?:models|datasets)/[^/]+/[^/]+/branch/.+", path):
            return self._send({})
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/commit/.+", path):
            return self._commit(match[1], body)
        return self._not_found("EntryNotFound")

    def do_PUT(self):
        content, digest = self._body(), self._path().rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() != digest:
            return self._send({"error": "the bytes are not those announced"}, status=400)
        self.hub.lfs_objects[digest] = content
        return self._send({})

    def _plan_lfs(self, objects):
        plan = [
            {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}", "header": {}}}}
            for each in objects
        ]
        return self._send({"transfer": "basic", "objects": plan})

    def _commit(self, name, body):
        for line in body.decode().splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                content = base64.b64decode(operation["value"]["content"])
                self.hub.repositories[name][operation["value"]["path"]] = content
            elif operation["key"] == "lfsFile":
                file = operation["value"]
                self.hub.repositories[name][file["path"]] = self.hub.lfs_objects[file["oid"]]
        url = f"{self.hub.endpoint}/{name}/commit/{COMMIT}"
        return self._send({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _send_repository(self, name):
        if name not in self.hub.repositories:
            return self._not_found("RepoNotFound")
        siblings = [{"rfilename": path} for path in self.hub.repositories[name]]
        about = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": []}
        return self._send(about | {"siblings": siblings}, headers={"X-Repo-Commit": COMMIT})

    def _send_tree(self, name):
        if name not in self.hub.repositories:
            return self._not_found("RepoNotFound")
        files = self.hub.repositories[name].items()
        return self._send([{"type": "file", "path": p, "size": len(c), "oid": _object_id(c)} for p, c in files])

    def _send_file(self, name, path):
        if name not in self.hub.repositories:
            return self._not_found("RepoNotFound")
        content = self.hub.repositories[name].get(path)
        if content is None:
            return self._not_found("EntryNotFound")
        return self._send(content, headers={"ETag": f'"{_object_id(content)}"', "X-Repo-Commit": COMMIT})

    def _not_found(self, code):
        return self._send({"error": code}, status=404, headers={"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _send(self, content, status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _path(self):
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        return path

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def _object_id(content):
    return hashlib.sha1(content).hexdigest()
