"""Fake quantization for training, with the parameters that the exported file will hold."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e.fake_quantize import FusedMovingAvgObsFakeQuantize

SMALLEST_SCALE = torch.finfo(torch.float32).eps  # torch's own floor, for a channel whose weights are all zero


class RuntimeFakeQuantize(FusedMovingAvgObsFakeQuantize):
    """Observes and fake-quantizes an activation, per tensor; observes only in training mode.

    torchao's own class converts with its observer's formula, which for -64..63 gives other scales than the fused
    operator trained with; and it goes on observing in eval mode, which leaks validation images into the ranges.
    Its operator is not vectorized on the CPU, where it takes longer than the convolution before it. There it only
    observes the two ends of the range, and `RoundToGrid` rounds the values, to the same bits.
    """

    # The ends (2,) of this process's values -> those of the whole batch, where several processes share it.
    common_ends: Callable[[Tensor], Tensor] | None = None

    members = 1  # tensors that share this range

    def share(self, members: int) -> None:
        """Lets `members` tensors, which come in turns, share one range: that of the values of all of them.

        A moving average over the turns would follow the mean of their ranges, and clip the wider ones.
        """
        self.members, self._turn = members, 0
        ends = torch.tensor([[torch.inf, -torch.inf]] * members)
        self.register_buffer("member_ends", ends.to(self.scale.device))

    def forward(self, x: Tensor) -> Tensor:
        """Rounds a float tensor of any shape to the grid."""
        observing = self.training and bool(self.observer_enabled)
        if observing and (not x.is_cuda or self.common_ends or self.members > 1):
            ends = torch.stack(torch.aminmax(in_memory_order(x.detach())))
            ends = self.common_ends(ends) if self.common_ends else ends
            self._fused(self._of_all_members(ends) if self.members > 1 else ends, observing)
            observing = False
        if x.is_cuda:
            return self._fused(x, observing)
        if not self.fake_quant_enabled:
            return x
        observer = self.activation_post_process
        zero_point = int(self.zero_point)
        return RoundToGrid.apply(x, self.scale, observer.quant_min - zero_point, observer.quant_max - zero_point)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Returns the scale and the zero point that the last forward pass used."""
        return self.scale, self.zero_point

    def _of_all_members(self, ends: Tensor) -> Tensor:
        """Returns the ends (2,) of the latest values of all members; the first round starts the moving average anew."""
        observer, is_first_round = self.activation_post_process, not bool(self.member_ends.isfinite().all())
        self.member_ends[self._turn] = ends
        self._turn = (self._turn + 1) % self.members
        if is_first_round:
            observer.min_val.fill_(torch.inf)
            observer.max_val.fill_(-torch.inf)
        return torch.stack((self.member_ends[:, 0].min(), self.member_ends[:, 1].max()))

    def _fused(self, x: Tensor, observing: bool) -> Tensor:
        observer = self.activation_post_process
        return torch.fused_moving_avg_obs_fake_quant(
            x,
            torch.full_like(self.observer_enabled, observing),
            self.fake_quant_enabled,
            observer.min_val,
            observer.max_val,
            self.scale,
            self.zero_point,
            observer.averaging_constant,
            observer.quant_min,
            observer.quant_max,
            self.ch_axis,
            self.is_per_channel,
            self.is_symmetric_quant,
        )


class WeightFakeQuantize(RuntimeFakeQuantize):
    """Fake quantization of a weight, symmetric per output channel, with a scale computed from the current weight.

    The fused operator sets the zero point of a channel without a negative weight to the grid's end, though the ranges
    are symmetric. For such a weight ONNX Runtime uses another depthwise kernel, which is ten times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Rounds a weight (C, ...) to the grid of each channel."""
        observer = self.activation_post_process
        largest = x.detach().abs().amax([axis for axis in range(x.dim()) if axis != self.ch_axis])
        observer.min_val, observer.max_val = -largest, largest
        self.scale = (largest / observer.quant_max).clamp_min(SMALLEST_SCALE)
        self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
        if x.is_cuda:
            return torch.fake_quantize_per_channel_affine(
                x, self.scale, self.zero_point, self.ch_axis, observer.quant_min, observer.quant_max
            )
        shape = [-1 if axis == self.ch_axis else 1 for axis in range(x.dim())]
        return RoundToGrid.apply(x, self.scale.reshape(shape), observer.quant_min, observer.quant_max)


class RoundToGrid(torch.autograd.Function):
    """Rounds to `low * scale ... high * scale`; the gradient passes where nothing was clipped.

    This is the straight-through estimator (Jacob et al. 2018, arXiv:1712.05877, section 3) in operators that are
    vectorized on the CPU: forward and backward took 2.1 ms, torch's own 12 (one thread, a million values).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        """Rounds `x` of any shape; `scale` is one value, or broadcasts over `x`."""
        ctx.save_for_backward(x, scale)
        ctx.ends = low - 0.5, high + 0.5
        return (x * scale.reciprocal()).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Returns the gradient of `x`, and None for the grid."""
        x, scale = ctx.saved_tensors
        low, high = ctx.ends
        if scale.numel() == 1:
            low, high = low * float(scale), high * float(scale)
            return torch.ops.aten.hardtanh_backward(gradient, x, low, high), None, None, None
        return torch.where((x > low * scale) & (x < high * scale), gradient, 0), None, None, None


def in_memory_order(x: Tensor) -> Tensor:
    """Returns a view of the values in memory order: reductions copy a channels_last tensor otherwise."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)
    return x
