"""The learning-rate schedules: a linear rise, then one of several ways to fall."""

import math
from collections.abc import Callable

# (steps since the rise, steps from there to the end) -> the share of the peak learning rate
_FALLS: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda step, steps: 0.5 * (1 + math.cos(math.pi * step / steps)),
    "linear": lambda step, steps: 1 - step / steps,
    # To a tenth at half and at three quarters (He et al. 2016, arXiv:1512.03385, section 4.2).
    "step": lambda step, steps: 0.1 ** ((step >= 0.5 * steps) + (step >= 0.75 * steps)),
    "constant": lambda step, steps: 1.0,
}


def lr_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """Returns the share of the peak learning rate at `step`, the first is 0, of `steps`.

    The rate rises over the share `warmup` of the steps, and then follows `schedule`: cosine (Loshchilov & Hutter 2017,
    arXiv:1608.03983, equation 5, without restarts), linear, step or constant.
    """
    rise = math.ceil(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return _FALLS[schedule](step - rise, max(1, steps - rise))
