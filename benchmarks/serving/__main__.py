"""What serving costs and bears. One section for each question; `--only NAME` answers just that one.

throughput: requests a second beside MLServer and KServe's Python server, JSON and binary, with detection on and off.
overload: five times what the server can do.
swap: champions change while requests come.
fuzz: schemathesis, and mutated bodies and pictures.
faults: each fault injected during load.
soak: half an hour of mixed traffic with campaigns (--soak-seconds).

The load generator is a process of its own on the same machine. The peers are measured where --mlserver-python and
--kserve-python name interpreters that have them (requirements in benchmarks/peers/).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import Report, arguments
from benchmarks.serving.faults import faults
from benchmarks.serving.fuzz import fuzz
from benchmarks.serving.pressure import overload, soak, swap
from benchmarks.serving.throughput import throughput
from redoubt.errors import RedoubtError

SECTIONS = {"throughput": throughput, "overload": overload, "swap": swap, "fuzz": fuzz, "faults": faults, "soak": soak}
QUICK = ("throughput", "overload", "swap")   # the rest takes longer than a minute even when it is small


def main() -> int:
    args = arguments(
        __doc__, only={"choices": sorted(SECTIONS), "help": "one section instead of all"},
        mlserver_python={"metavar": "PATH", "default": ".venv-mlserver/bin/python",
                         "help": "interpreter that has MLServer (default %(default)s)"},
        kserve_python={"metavar": "PATH", "default": ".venv-kserve/bin/python",
                       "help": "interpreter that has KServe (default %(default)s)"},
        seconds={"type": float, "metavar": "S", "help": "of each measurement of throughput (default 6)"},
        soak_seconds={"type": float, "metavar": "S", "help": "how long the soak lasts (default 1800)"},
    )
    report = Report(args, "Serving")
    with tempfile.TemporaryDirectory(prefix="redoubt-serving-", ignore_cleanup_errors=True) as work:
        for name, section in SECTIONS.items():
            if args.only == name or (args.only is None and (not args.quick or name in QUICK)):
                report.say(f"\n{name}")
                try:
                    section(report, Path(work))
                except RedoubtError as error:
                    print(error, file=sys.stderr)
                    return 2
    return report.close()


if __name__ == "__main__":
    sys.exit(main())
