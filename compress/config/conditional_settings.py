"""The settings of the stages whose networks do less for easy images: early exits and dynamic width."""

from dataclasses import dataclass

from compress.config.options import option
from compress.config.stage_settings import SCHEDULE_HELP, SCHEDULES


@dataclass
class EarlyExitConfig:
    """Exits at which images leave that the first layers are sure of, and their training."""

    after: list[str] = option(
        [],
        "modules of the network that an exit follows, e.g. [layer1,layer2]; []: those near a third and two thirds of "
        "the MACs",
    )
    train: str = option(
        "all", "exits: the network stays as it is; all: it is trained with them", choices=("exits", "all")
    )
    max_drop_points: float = option(
        0.5,
        "points of validation top-1 that may be lost against the network's end; it decides who leaves",
        low=0.0,
        high=100,
    )
    epochs: int = option(10, "epochs of training", low=0, high=10000)
    lr: float = option(0.05, "peak learning rate", low=1e-7, high=10)
    schedule: str = option("cosine", SCHEDULE_HELP, choices=SCHEDULES)


@dataclass
class DynamicWidthConfig:
    """The network at several widths, of which an image takes the narrowest that is sure of it, and their training."""

    widths: list[float] = option(
        [0.5, 1.0],
        "shares of the channels of each width, the narrowest first; 1: the network as it is",
        low=0.05,
        high=1,
    )
    round_to: int = option(8, "channels are kept multiples of this", low=1, high=256)
    train: str = option(
        "narrower",
        "narrower: these alone, each with weights of its own; all: all widths together, which share their weights",
        choices=("narrower", "all"),
    )
    max_drop_points: float = option(
        0.5,
        "points of validation top-1 that may be lost against the widest; it decides who ends at which width",
        low=0.0,
        high=100,
    )
    epochs: int = option(10, "epochs of training, of all widths together", low=0, high=10000)
    lr: float = option(0.05, "peak learning rate", low=1e-7, high=10)
    schedule: str = option("cosine", SCHEDULE_HELP, choices=SCHEDULES)
