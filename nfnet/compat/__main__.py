"""``python -m nfnet.compat script.py arguments ...``."""

from __future__ import annotations

import sys

from .._printable import printable
from ..errors import NfnetError
from ._run import run

_USAGE = """\
usage: python -m nfnet.compat SCRIPT [ARGUMENT ...]
       python -m nfnet.compat -m MODULE [ARGUMENT ...]
       python -m nfnet.compat -c CODE [ARGUMENT ...]

Runs a Python program in which "import netfilterqueue" and "import nflogr" import
nfnet's modules of these names. Everything else is as if Python had run it.
"""


def main() -> int:
    """Replace this process by the script, or print the usage."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="", file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    # Python's own options come before our "-m nfnet.compat".
    options = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    if options and options[-1] == __package__:
        options.pop()
    if options:
        options[-1] = options[-1].removesuffix(__package__).removesuffix("m").removesuffix("-")  # also of "-um"
    options = [option for option in options if option]
    try:
        run(arguments, options)
    except (NfnetError, OSError) as error:
        print(f"nfnet.compat: {printable(str(error))}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
