"""Every setting that is not a stage's own, its default, its meaning and its range.

Hydra composes a config from these dataclasses, and `to_config` turns it back into them; other code sees no OmegaConf.
"""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Optional

from compress.config.data_settings import DataConfig
from compress.config.options import option
from compress.config.stage_sections import StageSections


@dataclass
class TrainConfig:
    """The settings that all stages with a training share."""

    optimizer: str = option("sgd", "sgd (Nesterov) or adamw", choices=("sgd", "adamw"))
    momentum: float = option(0.9, "sgd's", low=0.0, high=0.999)
    weight_decay: float = option(5e-4, "on weights; never on biases and batch norm", low=0.0, high=1.0)
    warmup: float = option(0.1, "share of the steps in which the learning rate rises", low=0.0, high=0.9)
    ema: float = option(
        0.0,
        "exponential moving average of the weights, which is then validated and kept: its decay a step, e.g. 0.999; "
        "0: none",
        low=0.0,
        high=0.99999,
    )
    label_smoothing: float = option(0.0, "share of each label spread over all classes", low=0.0, high=0.9)
    class_weights: Any = option(
        "none",
        "none; balanced: in losses of labels each class counts as much as any other, whatever its number of images; of "
        "several labels, images with one count as much as those without; or a weight for each class, [1,5,2], of "
        "several labels for the images that have it",
    )
    mixup: float = option(
        0.0,
        "teacher and distill: alpha of the Beta distribution by which two images are blended; 0: none",
        low=0.0,
        high=100,
    )
    cutmix: float = option(
        0.0,
        "teacher and distill: the same for a rectangle of one image in another; with mixup: one of them a batch",
        low=0.0,
        high=100,
    )
    precision: str = option(
        "auto",
        "of the layers while they train, never of the weights; auto: bf16 on a GPU that has it, else float32",
        choices=("auto", "float32", "bf16"),
    )
    checkpoint_minutes: float = option(
        10.0, "how often a training under way is saved, for a killed run to go on; 0: after each step", low=0, high=1e5
    )


@dataclass
class ExportConfig:
    """The runtimes that each stage is written for."""

    targets: list[str] = option(
        ["onnx"],
        "model.onnx, always, and files for other runtimes; each needs its extra installed",
        choices=("onnx", "executorch", "openvino"),
    )
    nms: bool = option(
        False, "boxes: write model_nms.onnx, too, which ends in non-maximum suppression and returns final boxes"
    )


@dataclass
class MeasureConfig:
    """How the deployable files are timed, and how the CO2 of training is estimated."""

    batch_size: int = option(32, "images a call when throughput is taken", low=1, high=4096)
    repetitions: int = option(60, "timed calls of each file, interleaved with the teacher's", low=3, high=100000)
    specificity: Optional[float] = option(
        None,
        "also report each class's sensitivity at the threshold with this specificity, a share, on validation images, "
        "e.g. 0.95; null: do not",
        low=0.0,
        high=1.0,
    )
    country: Optional[str] = option(
        None, "whose electricity the CO2 estimate takes, e.g. DEU (ISO 3166 alpha-3); null: the world's average"
    )


@dataclass
class CacheConfig:
    """The cache of finished stages, which later runs reuse where all that made them is the same."""

    dir: str = option("outputs/cache", "its folder; processes and machines may share it")
    enabled: bool = option(True, "false: every stage is computed")


@dataclass
class RepeatConfig:
    """The same recipe on other seeds."""

    seeds: list[int] = option([], "seeds to run it on besides `seed`, for mean and spread", low=0, high=2**31 - 1)


@dataclass
class Inputs:
    """The stages and the images of a run."""

    stages: list[str] = option(["teacher", "prune", "distill", "quantize"], "the order")
    data: DataConfig = field(default_factory=DataConfig)


_FLOORS = "the validation metric in percent, an epoch of the stage each: a run ends below it; []: nowhere"


if TYPE_CHECKING:
    StopBelowConfig = Any  # mypy cannot read a class that is made of another one's fields
else:
    StopBelowConfig = make_dataclass(
        "StopBelowConfig",
        [(stage.name, list[float], option([], _FLOORS, low=0, high=100)) for stage in fields(StageSections)],
        namespace={
            "__doc__": "The accuracy below which a training ends its run early, a list for each stage; a search sets "
            "it for trials.",
            "__module__": __name__,  # processes send it to each other
        },
    )


@dataclass
class Config(StageSections, Inputs):
    """A whole run; the inputs come first."""

    train: TrainConfig = field(default_factory=TrainConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    repeat: RepeatConfig = field(default_factory=RepeatConfig)
    stop_below: StopBelowConfig = field(default_factory=StopBelowConfig)
    controls: bool = option(
        False, "also run plainer ways to such a network on the same budget, to measure what each step contributes"
    )
    preflight: bool = option(
        False, "report in seconds, without training, what can be pruned and quantized and what to expect of it"
    )
    seed: int = option(0, "of splits, weights, augmentation and order", low=0, high=2**31 - 1)
    device: str = option("auto", "where training runs", choices=("auto", "cpu", "cuda"))
    threads: int = option(0, "of torch and ONNX Runtime; 0: one a core, of those that this job has", low=0, high=1024)


@dataclass
class SearchConfig:
    """The settings of hydra/sweeper=optuna: the objectives of a search and its budget."""

    _target_: str = option("hydra_plugins.compress.OptunaSweeper", "Hydra's name of the search")
    objectives: list[str] = option(
        ["deployed_val_top1_percent", "latency_ms_p50"],
        "figures of metrics.json, the first one decides; a direction may stand before: minimize FIGURE",
    )
    constraints: list[str] = option([], 'what a trial has to keep, e.g. ["deployed_val_delta_points >= -1"]')
    trials: int = option(20, "of the study, those of earlier starts and other processes included", low=1, high=1000000)
    minutes: Optional[float] = option(None, "no trial is started after these; null: no limit", low=0, high=1e7)
    jobs: int = option(1, "trials that go to the launcher at once", low=1, high=1024)
    sampler: str = option(
        "tpe", "Optuna's: what proposes a trial's settings", choices=("tpe", "gp", "nsgaii", "random")
    )
    seed: int = option(0, "of the sampler", low=0, high=2**31 - 1)
    give_up: bool = option(
        True, "end a trial early whose validation accuracy leaves no hope, judged by five finished ones"
    )
    storage: Optional[str] = option(
        None, "null: study.db in hydra.sweep.dir; or a database, e.g. postgresql://user@host/name"
    )
    study: str = option(
        "${hydra.runtime.choices.recipe}", "its name there, by default the recipe's; one of that name goes on"
    )
