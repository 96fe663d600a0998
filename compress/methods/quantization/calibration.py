"""Chooses the range of each activation from calibration images: five methods, one name each."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import MinMaxObserver, MovingAverageMinMaxObserver

BINS = 2048
LEVELS = 256
PERCENTILE = 99.999
CANDIDATES = 100
SMALLEST_SHARE = 0.3  # no candidate cuts off more of a range than 70 %

# (histogram (BINS,), lowest value, highest value) -> the range that is kept
RangeSearch = Callable[[Tensor, float, float], tuple[float, float]]


class HistogramRangeObserver(MinMaxObserver):
    """Collects a histogram of all values, from which `search` chooses the range.

    Its state is the histogram and its ends, so a saved and reloaded observer chooses the same range.
    """

    def __init__(self, search: RangeSearch, **options):
        super().__init__(**options)
        self.search = search
        self.register_buffer("histogram", torch.zeros(BINS))

    def forward(self, x: Tensor) -> Tensor:
        """Counts the values of a float tensor of any shape, and returns it unchanged."""
        values = x.detach().float()
        low, high = (float(end) for end in torch.aminmax(values))
        low, high = min(low, float(self.min_val), 0.0), max(high, float(self.max_val), 0.0)
        if high == low:
            high = low + 1.0
        moved = torch.zeros_like(self.histogram)
        if self.histogram.any():
            centers = bin_centers(float(self.min_val), float(self.max_val)).to(moved.device)
            target = ((centers - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
            moved.index_add_(0, target, self.histogram)
        self.histogram.copy_(moved + torch.histc(values, BINS, low, high))
        self.min_val.fill_(low)
        self.max_val.fill_(high)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Returns the scale and the zero point of the range that `search` keeps."""
        low, high = self.search(self.histogram.double().cpu(), float(self.min_val), float(self.max_val))
        return self._calculate_qparams(torch.tensor(low), torch.tensor(high))


def percentile_range(histogram: Tensor, low: float, high: float) -> tuple[float, float]:
    """Returns the range of 99.999 % of the values, cut equally at both ends (Wu et al. 2020, arXiv:2004.09602)."""
    share = histogram.cumsum(0) / histogram.sum()
    tail = (1 - PERCENTILE / 100) / 2
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.double)
    first = int(torch.searchsorted(share, tail))
    last = int(torch.searchsorted(share, 1 - tail))
    return min(float(edges[first]), 0.0), max(float(edges[min(last, BINS - 1) + 1]), 0.0)


def mse_range(histogram: Tensor, low: float, high: float) -> tuple[float, float]:
    """Returns the range with the least mean squared error of rounding and clipping.

    It searches the upper end first, then the lower one (Nagel et al. 2021, arXiv:2106.08295, section 3.1).
    """
    centers = bin_centers(low, high)

    def error(low: float, high: float) -> float:
        scale = (high - low) / (LEVELS - 1)
        zero_point = round(-low / scale)
        steps = (centers / scale).round().clamp(-zero_point, LEVELS - 1 - zero_point)
        return float((histogram * (steps * scale - centers).square()).sum())

    if high > 0:
        high = min((high * share for share in shares()), key=lambda end: error(low, end))
    if low < 0:
        low = min((low * share for share in shares()), key=lambda end: error(end, high))
    return low, high


def entropy_range(histogram: Tensor, low: float, high: float) -> tuple[float, float]:
    """Returns the range whose 256 levels have the least Kullback-Leibler divergence (Migacz 2017, GTC S7310).

    The reference holds what was clipped in its outermost bins; both ends shrink by the same share.
    """
    centers = bin_centers(low, high)
    # Exact zeros, half of what follows a ReLU, lose nothing in any range but would outweigh all that does.
    zero = int(centers.abs().argmin())
    around = histogram[max(zero - 1, 0) : zero + 2]
    histogram = histogram.clone()
    histogram[zero] = (around.sum() - histogram[zero]) / (len(around) - 1)
    candidates = [(low * share, high * share) for share in shares()]
    return min(candidates, key=lambda ends: _divergence(histogram, centers, *ends))


def shares() -> list[float]:
    """Returns the candidates as shares of the whole range, the whole range first."""
    return torch.linspace(1, SMALLEST_SHARE, CANDIDATES, dtype=torch.double).tolist()


def bin_centers(low: float, high: float) -> Tensor:
    """Returns the middle of each bin, (BINS,)."""
    return low + (torch.arange(BINS, dtype=torch.double) + 0.5) * (high - low) / BINS


def _divergence(histogram: Tensor, centers: Tensor, low: float, high: float) -> float:
    inside = (centers >= low) & (centers <= high)
    kept = histogram[inside]
    reference = kept.clone()
    reference[0] += histogram[centers < low].sum()
    reference[-1] += histogram[centers > high].sum()
    level = ((centers[inside] - low) / (high - low) * LEVELS).long().clamp(0, LEVELS - 1)
    # A level spreads what it holds evenly over those of its bins that hold anything.
    filled = (kept > 0).double()
    totals = torch.zeros(LEVELS, dtype=torch.double).index_add_(0, level, kept)
    bins = torch.zeros(LEVELS, dtype=torch.double).index_add_(0, level, filled)
    spread = filled * (totals / bins.clamp(min=1))[level]
    p, q = reference / reference.sum(), spread / spread.sum()
    present = p > 0
    return float((p[present] * (p[present] / q[present].clamp(min=1e-12)).log()).sum())


# Min-max and moving average: Jacob et al. 2018, arXiv:1712.05877, section 3.1.
ACTIVATION_OBSERVERS = {
    "min_max": MinMaxObserver,
    "moving_average": MovingAverageMinMaxObserver.with_args(averaging_constant=0.1),
    "percentile": HistogramRangeObserver.with_args(search=percentile_range),
    "mse": HistogramRangeObserver.with_args(search=mse_range),
    "entropy": HistogramRangeObserver.with_args(search=entropy_range),
}
