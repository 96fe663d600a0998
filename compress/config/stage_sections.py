"""The settings of all stages, each under the stage's name."""

from dataclasses import dataclass, field

from compress.config.conditional_settings import DynamicWidthConfig, EarlyExitConfig
from compress.config.search_settings import SearchArchitectureConfig
from compress.config.stage_settings import (
    DistillConfig,
    FactorizeConfig,
    PruneConfig,
    QuantizeConfig,
    TeacherConfig,
)


@dataclass
class StageSections:
    """The settings of each stage, under its name."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    search_architecture: SearchArchitectureConfig = field(default_factory=SearchArchitectureConfig)
    factorize: FactorizeConfig = field(default_factory=FactorizeConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    early_exit: EarlyExitConfig = field(default_factory=EarlyExitConfig)
    dynamic_width: DynamicWidthConfig = field(default_factory=DynamicWidthConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
