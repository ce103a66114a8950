"""A retraining run by script: obeys the contract of `python -m pipelines.retrain FOLDER` and does what it is told.

FOLDER/../../plan.txt holds one word a run: promoted, refused, failed, crash, hang or slow. The last word stays.
"""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

folder = Path(sys.argv[1])
home = folder.parent.parent
with (folder / "lock").open("w") as lock:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(3)
    if (folder / "result.json").exists():
        sys.exit(0)
    request = json.loads((folder / "request.json").read_text())
    plan = (home / "plan.txt").read_text().split()
    word = plan.pop(0) if len(plan) > 1 else plan[0]
    (home / "plan.txt").write_text(" ".join(plan or [word]))
    with (home / "runs.txt").open("a") as runs:
        runs.write(f"{word} {os.getpid()}\n")
    (folder / "progress.jsonl").write_text(json.dumps({"at": time.time(), "step": "train", "state": "running"}) + "\n")
    if word == "crash":
        print("the disk is on fire", flush=True)
        sys.exit(7)
    if word in ("hang", "slow"):
        time.sleep(60 if word == "hang" else 1)
    status = "promoted" if word == "slow" else word
    result = {"status": status, "version": "2", "reason": f"by script for {request['norm']} {request['epsilon']:.3g}"}
    (folder / "result.new").write_text(json.dumps(result))
    (folder / "result.new").replace(folder / "result.json")
