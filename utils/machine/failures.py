"""From an exception to the message and exit code of the process."""

import logging
import re

from utils.errors import Interrupted, user_error

log = logging.getLogger(__name__)

OUT_OF_MEMORY = 6
NO_MEMORY = re.compile("can't allocate memory|Cannot allocate memory|failed to map segment")
BUG = 70
KEYS_TO_LOWER = (
    "batch_size", "task_chunk_size", "num_target_samples", "cnn_num_filters", "number_of_training_steps_per_iter",
    "image_height", "image_width",
)  # fmt: skip


def report_failure(error: BaseException) -> int:
    """Log what the user needs to know about an exception and return the exit code."""
    if mendable := user_error(error):
        log.error("%s", mendable)
        return mendable.exit_code
    if isinstance(error, Interrupted):
        log.warning("%s", error)
        return error.exit_code
    if is_out_of_memory(error):
        log.error(
            "Out of memory: %s\nSet gradient_checkpointing to true or lower one of these keys (neither it nor "
            "task_chunk_size changes a "
            "result): %s. "
            "Finished epochs are saved.",
            out_of_memory_reason(error),
            ", ".join(KEYS_TO_LOWER),
        )
        return OUT_OF_MEMORY
    log.error("This is a bug in the program, not in what you gave it. Please report the lines below.", exc_info=error)
    return BUG


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, CUDA, PyTorch's CPU allocator or the system has run out of memory. Needs no torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # The system's: of a limit (ulimit -v) that a library's import met, or a fork.
    return isinstance(error, RuntimeError | ImportError | OSError) and bool(NO_MEMORY.search(str(error)))


def out_of_memory_reason(error: BaseException) -> str:
    """Return the allocator's first line, and under it what `meta_learning.execution.chunk_size` has noted about the
    memory that is needed.
    """
    lines = (str(error).strip().splitlines() or ["no memory left"])[:1]
    return "\n".join(lines + getattr(error, "__notes__", []))
