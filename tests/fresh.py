"""Programs in an interpreter that has imported torch and nothing since: forks of one that waits."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_WAITING = """
import json, os, sys, tempfile, traceback, torch
for line in sys.stdin:
    written = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for descriptor, file in enumerate(written, 1):
                os.dup2(file.fileno(), descriptor)
            exec(json.loads(line), {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in written:
        file.seek(0)
    print(json.dumps([code, *(file.read() for file in written)]), flush=True)
"""


@functools.cache
def _waiting() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WAITING]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=_ROOT)
    atexit.register(server.communicate)  # closes its input, at which it ends
    return server


def run(program: str) -> subprocess.CompletedProcess[str]:
    """As ``python -c 'import torch; program'``, without the seconds that importing torch takes."""
    server = _waiting()
    assert server.stdin and server.stdout
    print(json.dumps(program), file=server.stdin, flush=True)
    code, out, error = json.loads(server.stdout.readline())
    return subprocess.CompletedProcess(program, code, out, error)
