"""A judge as a process of its own, so that it can be killed: `python gate_judge_program.py DIRECTORY MODULE [TERMS as JSON]`."""

import json
import sys
import threading

from tests.system.gate_judges import ContentJudge


def main() -> None:
    terms = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    with ContentJudge(sys.argv[1], sys.argv[2], **terms):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
