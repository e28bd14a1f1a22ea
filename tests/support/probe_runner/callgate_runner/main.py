"""Process 1 of a probe: each line of standard input is a Python program as a JSON string, run here.

What a program hands to `answer` goes back as one line of JSON. The end of the input ends the process.
"""

import json
import sys


def answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    for line in sys.stdin.buffer:
        exec(json.loads(line), {"answer": answer})  # noqa: S102  # this is all it is for
