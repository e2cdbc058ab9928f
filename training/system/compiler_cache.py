"""Where torch.compile keeps the code that it generates, and when that code is not to be trusted.

Inductor takes a library that is there for whole: one that a killed linker has left empty ends every later start, and
in the usual folder, which all programs of a user share, that of other runs too. So the code lies in the run's folder;
each process leaves a mark there while it runs, and takes it away at its end, whatever that is but a kill.
"""

import atexit
import os
import shutil
import uuid
from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import default_cache_dir

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # where a user has set it, that folder is used and left alone
NAME = ".compiled"


def distrust_compiler_cache(run_folder: Path) -> None:
    """Drop the code of a run whose process was killed, perhaps while it compiled. For rank 0, which holds the run's
    lock, before any rank calls `use_compiler_cache`."""
    cache = run_folder / NAME
    if list(cache.glob(".in-use-*")):
        cache.rename(cache.with_name(f"{NAME}-{uuid.uuid4().hex}"))  # at once, unlike a removal
    for left_over in run_folder.glob(f"{NAME}-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def use_compiler_cache(run_folder: Path, rank: int) -> None:
    """Have torch.compile keep its code in the run's folder, from the first compilation on.

    Raises:
        OSError: the folder cannot be made.
    """
    if os.environ.get(VARIABLE, default_cache_dir()) != default_cache_dir():  # which torch writes there by itself
        return
    cache = run_folder.resolve() / NAME
    cache.mkdir(parents=True, exist_ok=True)
    mark = cache / f".in-use-{rank}"
    mark.touch()
    atexit.register(mark.unlink, missing_ok=True)
    os.environ[VARIABLE] = str(cache)


def remove_compiler_cache(run_folder: Path) -> None:
    """At the end of a run, which has no more use for it."""
    shutil.rmtree(run_folder / NAME, ignore_errors=True)


def name_compiler_cache(error: Exception) -> None:
    """To an error of torch.compile, add which folder may be at fault."""
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        folder = os.environ.get(VARIABLE, "the folder of TORCHINDUCTOR_CACHE_DIR")
        error.add_note(
            f"If a disk was full or a process was killed while it compiled, remove {folder} and start again; "
            "without --compile the run resumes, too."
        )
