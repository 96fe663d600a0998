"""Opens ONNX files in ONNX Runtime on the CPU, wherever they are not timed."""

from pathlib import Path

import onnxruntime

_ERRORS_ONLY = 3  # ONNX Runtime's severity


def session_options(threads: int = 0) -> onnxruntime.SessionOptions:
    """Options of a session on `threads` threads, one a core where 0, that sleep while they wait.

    Threads that spin take the cores from other processes, and here no figure depends on the time.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    model: Path | bytes, threads: int = 0, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A session of a file, or of its bytes; `options` are `session_options(threads)` unless they are given."""
    content = model if isinstance(model, bytes) else model.read_bytes()
    options = options or session_options(threads)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
