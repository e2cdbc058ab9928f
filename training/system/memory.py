"""How the C library keeps memory for a network that trains on CPU cores."""

import ctypes
import platform

# From glibc's malloc.h. Values: at most 0 blocks by mmap; never give the end of the heap back.
SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_freed_memory() -> bool:
    """Have this process keep the memory that it frees and use it again.

    As it comes, glibc's malloc maps each large block from the kernel and unmaps it when it is freed. A training step
    on the CPU frees all its activations, so that each step begins with millions of page faults: half the time of
    TinyNet-C's step. The price is the heap's fragmentation, a fifth more memory at the peak.

    Loader workers that are forked later inherit it. Elsewhere than on glibc (musl, macOS, Windows) nothing is done.

    Returns:
        whether the C library is glibc and took the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in SETTINGS.values())
