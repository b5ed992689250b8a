"""What no file of the product may do, whatever the linters think."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile"} | {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "jsonpickle"}


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "?")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_nothing_received_can_become_code(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            assert name not in FORBIDDEN_CALLS, f"{path.name}:{node.lineno} calls {name}"
            for keyword in node.keywords:
                if keyword.arg == "shell":
                    assert isinstance(keyword.value, ast.Constant), f"{path.name}:{node.lineno} uses a shell"
                    assert keyword.value.value is False, f"{path.name}:{node.lineno} uses a shell"
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {name.partition(".")[0] for name in names} & FORBIDDEN_MODULES, f"{path.name}:{node.lineno} imports {names}"


def tracked_files() -> list[pathlib.Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name.decode() for name in listed.split(b"\0") if name]


def test_no_committed_file_names_a_registry_or_a_path_of_this_machine():
    # Split, so that this file does not trip over itself.
    hosts = "|".join(re.escape(name) for name in ("pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org"))
    pattern = re.compile(rf"{hosts}|deb\.deb" + r"ian\.org|(?<![A-Za-z0-9_.])/(?:wo" + r"rk|fa" + r"rm)/")
    found = []
    for path in tracked_files():
        if path.is_file() and path.stat().st_size < 2_000_000:
            for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
                if pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


def test_no_committed_file_is_large():
    large = [str(path.relative_to(ROOT)) for path in tracked_files() if path.is_file() and path.stat().st_size > 1_500_000]
    assert large == []
