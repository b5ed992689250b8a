"""Runs every benchmark of this folder, one after the other, and prints their tables. `make bench` calls it."""

import pathlib
import subprocess
import sys
import time


def main() -> int:
    """Return 0 when each benchmark ran to its end (not: when it was fast)."""
    folder = pathlib.Path(__file__).parent
    failed = []
    for path in sorted(folder.glob("*.py")):
        if path.name in ("run.py", "__init__.py") or path.name.startswith("_"):
            continue
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        print(f"\n## {path.stem}\n", flush=True)
        started = time.monotonic()
        if subprocess.run([sys.executable, str(path)], check=False).returncode:
            failed.append(path.stem)
        print(f"\n({path.stem} took {time.monotonic() - started:.0f} s)", flush=True)
    if failed:
        print(f"\ndid not finish: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
