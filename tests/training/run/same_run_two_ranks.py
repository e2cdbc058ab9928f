"""Two ranks that stand for two machines check whether they are in the same run, case by case: started by torchrun.

Each works in its own folder, `machine-0` or `machine-1` of the folder given, and writes the errors that it met.
"""

import json
import os
import sys
from pathlib import Path

from accelerate import Accelerator

from training.errors import RunError
from training.run import same_run

FACTS = {"lr": 0.1, "num_train": 800, "classes": ["a"] * 100, "dataset": "photos"}


def checkpoint(path: Path, manifest: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(manifest)
    return path


def main(root: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    same_run.SEEN_WITHIN_S = 0.3
    own = root / f"machine-{rank}"
    own.mkdir()
    os.chdir(own)
    shared = root / "shared" / "run"
    shared.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        (shared / ".seen-left-by-a-kill").touch()
    Path("runs/run").mkdir(parents=True)
    if rank == 1:
        checkpoint(Path("runs/moved/checkpoints/step-000013"), "{}")
    else:
        Path("runs/moved").mkdir()
    here = checkpoint(Path("one/step-000002"), "{}") if rank == 0 else Path("one/step-000002")
    cases = {
        "shared": (shared, None, FACTS),
        "shared, from one checkpoint": (shared, checkpoint(root / "shared" / "step-000001", "{}"), FACTS),
        "its own folder": (Path("runs/run"), None, FACTS),
        "ranks swapped": (Path("runs/moved"), None, FACTS),
        "checkpoint not there": (shared, here, FACTS),
        "another checkpoint": (shared, checkpoint(Path("two/step-000002"), f"{rank}"), FACTS),
        "another recipe": (shared, None, FACTS | {"lr": 0.1 + rank}),
        "other classes": (shared, None, FACTS | {"classes": [f"{rank}"] * 100}),
        "data that lie elsewhere": (shared, None, FACTS | {"dataset": f"photos-{rank}"}),
        "not writable": (root / "no" / "such" / "folder", None, FACTS),
    }
    errors = {}
    for name, case in cases.items():
        try:
            same_run.check_same_run(*case)
            errors[name] = None
        except RunError as error:
            errors[name] = str(error)
    (root / f"errors-{rank}.json").write_text(json.dumps(errors))
    accelerator.end_training()  # gloo's threads may abort a process that exits without


main(Path(sys.argv[1]).resolve())
