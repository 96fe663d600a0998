"""The settings of the stage that searches for the best sub-network."""

from dataclasses import dataclass, field
from typing import Optional

from compress.config.options import option
from compress.config.stage_settings import SCHEDULE_HELP, SCHEDULES, PruneTargetConfig


@dataclass
class SearchArchitectureConfig:
    """Which sub-network is searched for: narrower, with fewer blocks, smaller kernels and smaller images."""

    target: PruneTargetConfig = field(default_factory=PruneTargetConfig)
    importance: str = option(
        "l1",
        "what ranks the channels, of which a narrower layer keeps the first: as prune.importance",
        choices=("l1", "l2", "random", "bn_scale", "lamp", "fpgm", "taylor", "obdc", "hessian", "activation"),
    )
    round_to: int = option(8, "widths are kept multiples of this", low=1, high=256)
    input_sizes: list[int] = option(
        [], "pixels a side to which the network may resize its images, smaller than they are", low=8, high=1024
    )
    trials: int = option(
        200, "sub-networks that are scored; 0: none, the uniform one of the target is taken", low=0, high=1000000
    )
    pick: Optional[int] = option(
        None,
        "number of a network on the front of an earlier search, from 1, the cheapest, which is not searched again; "
        "null: the best that meets the target",
        low=1,
        high=1000,
    )
    epochs: int = option(
        0, "epochs in which all sub-networks are trained together first, with shared weights", low=0, high=10000
    )
    reconstruction_samples: int = option(
        1024, "train images on which the layers of the chosen sub-network are refitted", low=1, high=1000000
    )
    fine_tune_epochs: int = option(2, "epochs of fine-tuning the chosen sub-network", low=0, high=10000)
    distill: bool = option(False, "the fine-tuning learns from the teacher, as distill does by default")
    lr: float = option(0.005, "peak learning rate of both trainings", low=1e-7, high=10)
    schedule: str = option("cosine", SCHEDULE_HELP, choices=SCHEDULES)
