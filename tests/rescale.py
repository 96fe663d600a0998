"""A stage as a contributor adds it: its own file, one dataclass, and one line in `compress.stages.STAGES`.

`python -m tests.rescale ...` is the command line with this stage in it.
"""

import sys
from dataclasses import dataclass, field, make_dataclass

import torch
from torch import nn

from compress.config import schema
from compress.config.options import option
from compress.models.artifact import Artifact
from compress.stages import STAGES, Stage
from compress.training.context import Context


@dataclass
class RescaleConfig:
    """Logits that are larger by a factor, which changes no class."""

    factor: float = option(2.0, "of the logits", low=0.1, high=10)
    epochs: int = option(0, "of training: none", low=0, high=0)
    lr: float = option(0.01, "unused", low=0, high=1)


StopBelow = make_dataclass(
    "StopBelow",
    [("rescale", list[float], option([], "as of others", low=0, high=100))],
    bases=(schema.StopBelowConfig,),
)


@dataclass
class Config(schema.Config):
    """A whole run, with the settings of this stage."""

    rescale: RescaleConfig = field(default_factory=RescaleConfig)
    stop_below: StopBelow = field(default_factory=StopBelow)


STAGE = Stage("tests.rescale:rescale", "rescaled", epochs=lambda settings: 0)


def rescale(artifact: Artifact, config: RescaleConfig, context: Context) -> Artifact:
    """Multiplies weights and bias of the last linear layer."""
    *_, last = (module for module in artifact.network.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        last.weight.mul_(config.factor)
        last.bias.mul_(config.factor)
    return Artifact(artifact.network, artifact.spec, notes={"factor": config.factor})


if __name__ == "__main__":
    schema.Config = Config
    STAGES["rescale"] = STAGE

    from compress.launch.cli import main

    sys.exit(main())
