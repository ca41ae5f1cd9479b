"""A small Hugging Face Hub on this machine, for tests of `from_pretrained` and `push_to_hub`.

`LocalHub` serves repositories from memory: create, list, upload (what is large by way of LFS, a commit at a time),
tag, download at any commit or tag. Writing needs a token. Clients read the Hub's address when `huggingface_hub` is
imported, so run them in a process of their own:

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
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

from huggingface_hub import ModelCard

COMMIT = "a" * 40  # of a repository that a test filled by hand
LFS_SUFFIXES = (".dat", ".npz", ".parquet", ".arrow", ".safetensors")


@dataclass
class Commit:
    """A commit on `main` and all files as of then."""

    id: str
    title: str
    description: str
    date: str
    files: dict


class LocalHub:
    """Start with `with`; `endpoint` is its address while it runs.

    `repositories` are the files of `main`, by repository; `commits` and `tags` (tag to commit id) what led there. What
    matches the regular expression `broken`, a method and a path such as `POST .*/commit/`, is answered with status 500.
    """

    def __init__(self):
        self.repositories = {}
        self.commits = defaultdict(list)
        self.tags = defaultdict(dict)
        self.lfs_objects = {}
        self.requests = []
        self.broken = None
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

    def files(self, repository, revision="main"):
        """Paths and contents of a repository; None where it has no such revision."""
        revision = self.tags[repository].get(revision, revision)
        if revision in ("main", self.head(repository)):
            return self.repositories[repository]
        return next((commit.files for commit in self.commits[repository] if commit.id == revision), None)

    def head(self, repository):
        """The id of the last commit."""
        return self.commits[repository][-1].id if self.commits[repository] else COMMIT


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self._path()
        if self._is_broken(path):
            return None
        if path == "/api/whoami-v2":
            token = {"displayName": "test", "role": "write"}
            return self._send({"name": "user", "type": "user", "auth": {"accessToken": token}, "orgs": []})
        if path == "/api/models":
            return self._send_models(parse_qs(urlparse(self.path).query))
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/(refs|commits/[^/]+)", path):
            return self._send_history(match[1], match[2])
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._send_repository(match[1], match[2] or "main")
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)", path):
            return self._send_tree(match[1], match[2])
        if match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._send_file(match[1], match[2], match[3])
        return self._not_found("EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        path, body = self._path(), self._body()
        if self._is_broken(path) or self._has_no_token():
            return None
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
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/preupload/.+", path):
            there = self.hub.repositories.get(match[1], {})
            plan = [_upload_plan(file["path"], there) for file in json.loads(body)["files"]]
            return self._send({"files": plan})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._plan_lfs(json.loads(body)["objects"])
        if re.fullmatch(r"/api/(?:models|datasets)/[^/]+/[^/]+/branch/.+", path):
            return self._send({})
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/commit/.+", path):
            return self._commit(match[1], body)
        if match := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tag/(.+)", path):
            return self._tag(match[1], match[2], json.loads(body)["tag"])
        return self._not_found("EntryNotFound")

    def do_DELETE(self):
        path = self._path()
        if self._is_broken(path) or self._has_no_token():
            return None
        match = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tag/(.+)", path)
        if match is None or self.hub.tags[match[1]].pop(match[2], None) is None:
            return self._not_found("RevisionNotFound")
        return self._send({})

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
        files, header = dict(self.hub.repositories[name]), {}
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                header = value
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs_objects[value["oid"]]
        commits = self.hub.commits[name]
        commit_id = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commits.append(Commit(commit_id, header["summary"], header.get("description", ""), date, files))
        self.hub.repositories[name] = files
        url = f"{self.hub.endpoint}/{name}/commit/{commit_id}"
        return self._send({"success": True, "commitOid": commit_id, "commitUrl": url, "hookOutput": ""})

    def _tag(self, name, revision, tag):
        if self.hub.files(name, revision) is None:
            return self._not_found("RevisionNotFound")
        if tag in self.hub.tags[name]:
            return self._send({"error": "Tag reference exists already"}, status=409)
        self.hub.tags[name][tag] = self._commit_id(name, revision)
        return self._send({})

    def _commit_id(self, name, revision):
        return self.hub.head(name) if revision == "main" else self.hub.tags[name].get(revision, revision)

    def _send_history(self, name, what):
        if name not in self.hub.repositories:
            return self._not_found("RepoNotFound")
        if what == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.hub.head(name)}
            tags = [
                {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit}
                for tag, commit in self.hub.tags[name].items()
            ]
            return self._send({"branches": [main], "converts": [], "tags": tags})
        return self._send(
            [
                {"id": each.id, "title": each.title, "message": each.description, "date": each.date, "authors": []}
                for each in reversed(self.hub.commits[name])
            ]
        )

    def _send_models(self, query):
        found = []
        for name, files in self.hub.repositories.items():
            card = ModelCard(files["README.md"].decode()).data if "README.md" in files else None
            tags = [*(card.tags or []), card.library_name] if card else []
            if name.split("/")[0] == query.get("author", name.split("/"))[0] and set(query.get("filter", [])) <= {
                *tags
            }:
                dates = [commit.date for commit in self.hub.commits[name]]
                about = {"_id": "1", "id": name, "modelId": name, "tags": tags, "downloads": 3, "likes": 1}
                found.append(about | ({"lastModified": dates[-1]} if dates else {}))
        return self._send(found)

    def _send_repository(self, name, revision):
        if (files := self._files(name, revision)) is None:
            return None
        commit = self._commit_id(name, revision)
        about = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": False, "tags": []}
        siblings = [{"rfilename": path} for path in files]
        return self._send(about | {"siblings": siblings}, headers={"X-Repo-Commit": commit})

    def _send_tree(self, name, revision):
        if (files := self._files(name, revision)) is None:
            return None
        return self._send([{"type": "file", "path": p, "size": len(c), "oid": _blob_id(c)} for p, c in files.items()])

    def _send_file(self, name, revision, path):
        if (files := self._files(name, revision)) is None:
            return None
        commit = self._commit_id(name, revision)
        if path not in files:
            return self._not_found("EntryNotFound", commit)
        return self._send(files[path], headers={"ETag": f'"{_blob_id(files[path])}"', "X-Repo-Commit": commit})

    def _files(self, name, revision):
        """The files of a revision, or None once it has been answered that there is no such one."""
        files = self.hub.files(name, revision) if name in self.hub.repositories else None
        if files is None:
            self._not_found("RevisionNotFound" if name in self.hub.repositories else "RepoNotFound")
        return files

    def _is_broken(self, path):
        if self.hub.broken is None or not re.fullmatch(self.hub.broken, f"{self.command} {path}"):
            return False
        self._send({"error": "Internal Server Error"}, status=500)
        return True

    def _has_no_token(self):
        if "Authorization" in self.headers:
            return False
        self._send({"error": "Invalid username or password."}, status=401)
        return True

    def _not_found(self, code, commit=COMMIT):
        return self._send({"error": code}, status=404, headers={"X-Error-Code": code, "X-Repo-Commit": commit})

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


def _upload_plan(path, there):
    """How a file is to be sent, and the id of the one that is there already: a client sends no file twice."""
    is_lfs = path.endswith(LFS_SUFFIXES)
    identify = (lambda content: hashlib.sha256(content).hexdigest()) if is_lfs else _blob_id
    oid = identify(there[path]) if path in there else None
    return {"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid}


def _blob_id(content):
    """As git counts it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
