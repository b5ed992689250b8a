"""A manager in a process of its own, spoken to over HTTPS."""

import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.request


class RunningManager:
    """A manager in a process of its own; `restart` kills it and starts it on the same state."""

    def __init__(self, directory):
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config = directory / "manager.toml"
        self.config.write_text(f'state_directory = "{directory}/state"\nport = {self.port}\nlog_level = "warning"\n')
        self.url = f"https://127.0.0.1:{self.port}"
        self.process = None
        self.start()
        self.ca = next((directory / "state").rglob("ca.pem")).read_text()
        self.context = ssl.create_default_context(cadata=self.ca)
        name, password = (directory / "state/first-password").read_text().split()
        answer, headers = self.call("POST", "/auth/sign-in", {"name": name, "password": password})
        cookie = headers["Set-Cookie"].split(";")[0]
        self.headers = {"Cookie": cookie, "X-Keibi-Csrf": answer["csrf_token"]}
        self.call("POST", "/auth/password", {"old": password, "new": "a long enough pass phrase 7"})
        answer, headers = self.call("POST", "/auth/sign-in", {"name": name, "password": "a long enough pass phrase 7"})
        self.headers = {"Cookie": headers["Set-Cookie"].split(";")[0], "X-Keibi-Csrf": answer["csrf_token"]}

    def start(self):
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keibi.manager.main", "--config", str(self.config)], stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def call(self, method, path, body=None, raw=False):
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}",
            data=json.dumps(body).encode() if body is not None else (b"" if method == "POST" else None),
            method=method,
            headers={"Content-Type": "application/json", **getattr(self, "headers", {})},
        )
        with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
            content = answer.read()
            return content if raw else (json.loads(content or b"null"), answer.headers)
