"""Fake quantization for training whose parameters are those that the exported file will hold."""

import torch
from torch import Tensor
from torchao.quantization.pt2e.fake_quantize import FusedMovingAvgObsFakeQuantize

SMALLEST_SCALE = torch.finfo(torch.float32).eps  # torch's own floor, for a channel whose weights are all zero


class RuntimeFakeQuantize(FusedMovingAvgObsFakeQuantize):
    """Observes and fake-quantizes in one fused operator; observes only in training mode.

    torchao's own class converts with its observer's formula, which for -64..63 gives other scales than the fused
    operator trained with; and it goes on observing in eval mode, which leaks validation images into the ranges.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any float tensor to one of the same shape, rounded to the grid."""
        observer = self.activation_post_process
        return torch.fused_moving_avg_obs_fake_quant(
            x,
            self.observer_enabled if self.training else torch.zeros_like(self.observer_enabled),
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

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale and zero point that the last forward pass used."""
        return self.scale, self.zero_point


class WeightFakeQuantize(RuntimeFakeQuantize):
    """Fake quantization of a weight, symmetric per output channel, its scale always that of the weight at hand.

    The fused operator gives a channel without a negative weight a zero point at the grid's end, though it is asked
    for symmetric ranges; on such a weight ONNX Runtime leaves its depthwise kernel for one that is ten times slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(C, ...) to the same shape, rounded to the grid of each channel."""
        observer = self.activation_post_process
        largest = x.detach().abs().amax([axis for axis in range(x.dim()) if axis != self.ch_axis])
        observer.min_val, observer.max_val = -largest, largest
        self.scale = (largest / observer.quant_max).clamp_min(SMALLEST_SCALE)
        self.zero_point = torch.zeros_like(self.scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            x, self.scale, self.zero_point, self.ch_axis, observer.quant_min, observer.quant_max
        )
