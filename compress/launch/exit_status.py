"""The exit status and the last line of a command whose run raised an exception."""

import errno

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from compress.config.compose import to_user_error
from compress.utils.errors import UserError

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def exit_status(error: Exception) -> tuple[int, str]:
    """Returns the exit status and the last line for `error`: 2 for a user's mistake, 1 for an internal error."""
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        error = to_user_error(error)
    elif isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        room = "free space or change hydra.run.dir"
        error = UserError(str(error), "files that can be written, and room for them", room)
    if isinstance(error, UserError):
        return 2, str(error)
    return 1, f"stopped by a fault of its own: {type(error).__name__}: {' '.join(str(error).split())}"
