"""What adversarial training costs and buys. One section for each question; `--only NAME` answers just that one.

floor: a PGD-k step against the least that it can cost.
peers: images a second beside ART, torchattacks and foolbox, and the accuracy of what each of them trained.
matrix: training epsilon x attack epsilon.
long-tail: class-adaptive epsilon against plain training when classes are rare.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.common import Report, arguments
from benchmarks.training.floor import floor
from benchmarks.training.long_tail import long_tail
from benchmarks.training.matrix import matrix
from benchmarks.training.peers import peers
from redoubt.compute import keep_memory
from redoubt.errors import RedoubtError

SECTIONS = {"floor": floor, "peers": peers, "matrix": matrix, "long-tail": long_tail}


def main() -> int:
    args = arguments(__doc__, only={"choices": sorted(SECTIONS), "help": "one section instead of all"},
                     peers_python={"metavar": "PATH", "help": "interpreter with the peers (default .venv-peers)"},
                     plot={"type": Path, "metavar": "FILE", "help": "draw the matrix (.svg or .png)"})
    keep_memory()   # as the train step does
    report = Report(args, "Adversarial training")
    for name, section in SECTIONS.items():
        if args.only in (None, name):
            report.say(f"\n{name}")
            try:
                section(report)
            except RedoubtError as error:
                print(error, file=sys.stderr)
                return 2
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
