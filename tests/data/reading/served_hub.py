"""A folder served on this machine as the Hub is: so much as `datasets`, a model's tokenizer and an upload ask for."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef" * 2 + "01234567"


@contextmanager
def served(root: Path, gated: str = "", sent: list[tuple[str, int]] | None = None) -> Iterator[str]:
    """The address, for HF_ENDPOINT, under which `root/OWNER/NAME` is that dataset or model; `gated` names one.

    Each answer's path and bytes are added to `sent`.
    """

    private: set[Path] = set()

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            is_api = parts[0] == "api"
            if len(parts) < 3:  # the client asks for more than datasets and models
                return self.answer(b"", 404)
            owner, name, *rest = parts[2:] if is_api else parts[parts[0] == "datasets" :]
            folder = root / owner / name
            if not folder.is_dir():
                return self.answer(b"", 401, X_Error_Code="RepoNotFound")
            if is_api:
                return self.answer_about(folder, rest)
            if f"{owner}/{name}" == gated:
                return self.answer(b"", 401, X_Error_Code="GatedRepo")
            return self.answer_file(folder.joinpath(*rest[2:]), COMMIT if rest[1] == "main" else rest[1])

        do_HEAD = do_GET

        @property
        def datasets(self) -> str:
            return f"http://{self.headers['Host']}/datasets"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "Authorization" not in self.headers:
                return self.answer(b"", 401)
            if self.path == "/api/repos/create":
                return self.create(json.loads(body))
            if self.path == "/api/validate-yaml":
                return self.answer_json({"errors": [], "warnings": []})
            _, _, owner, name, action, _ = self.path.strip("/").split("/")
            if action == "preupload":
                paths = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
                return self.answer_json({"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    path = root / owner / name / line["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
                elif line["key"] == "deletedFile":
                    (root / owner / name / line["value"]["path"]).unlink()
            return self.answer_json(
                {"commitUrl": f"{self.datasets}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT}
            )

        def create(self, asked: dict) -> None:
            folder = root / asked["organization"] / asked["name"]
            made = {"url": f"{self.datasets}/{asked['organization']}/{asked['name']}"}
            if folder.exists():
                return self.answer_json(made, 409)
            folder.mkdir(parents=True)
            if asked["visibility"] == "private":
                private.add(folder)
            return self.answer_json(made)

        def answer_about(self, folder: Path, rest: list[str]) -> None:
            if rest[:1] == ["tree"]:
                inside = folder.joinpath(*rest[2:])
                if not inside.is_dir():
                    return self.answer(b"", 404, X_Error_Code="EntryNotFound")
                return self.answer_json([entry(path, folder) for path in sorted(inside.iterdir())])
            if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
                return self.answer(b"", 404, X_Error_Code="RevisionNotFound")
            files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
            siblings = [{"rfilename": name} for name in files]
            about = {"id": f"{folder.parent.name}/{folder.name}", "private": folder in private}
            return self.answer_json({**about, "sha": COMMIT, "siblings": siblings})

        def answer_file(self, path: Path, commit: str) -> None:
            if not path.is_file():
                return self.answer(b"", 404, X_Error_Code="EntryNotFound")
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()}"'  # caches know a file by it
            headers = {"ETag": tag, "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            if "Range" not in self.headers:
                return self.answer(data, 200, **headers)
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = data[int(first) : int(last or len(data)) + 1]
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self.answer(part, 206, **headers)

        def answer_json(self, value: object, status: int = 200) -> None:
            self.answer(json.dumps(value).encode(), status, Content_Type="application/json")

        def answer(self, body: bytes, status: int, **headers: str) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content_Length": str(len(body))}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                if sent is not None:
                    sent.append((self.path, len(body)))
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


def entry(path: Path, folder: Path) -> dict[str, object]:
    """What the Hub's listing says of a file or a folder."""
    kind = {"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size}
    return {**kind, "path": str(path.relative_to(folder)), "oid": COMMIT}
