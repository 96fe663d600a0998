"""Opens ONNX files in ONNX Runtime on the CPU, for everything but timing."""

from pathlib import Path

import onnxruntime

_ERRORS_ONLY = 3  # ONNX Runtime's severity


def session_options(threads: int = 0) -> onnxruntime.SessionOptions:
    """Returns options of a session on `threads` threads, one a core for 0, that sleep while they wait.

    Spinning threads would take the cores from other processes, and no figure depends on the time here.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    model: Path | bytes, threads: int = 0, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """Opens a session of a file or of its bytes; `options` default to `session_options(threads)`."""
    content = model if isinstance(model, bytes) else model.read_bytes()
    options = options or session_options(threads)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
