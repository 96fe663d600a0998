"""Every setting, its default, its meaning and its range.

Hydra composes a config from these dataclasses, and `to_config` turns it back into them; other code sees no OmegaConf.
"""

from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Optional

from compress.config.options import option


@dataclass
class DataConfig:
    """Which images, how they are split, and how they reach the network."""

    name: str = option(
        "digits",
        "the data set",
        choices=("digits", "fashion_mnist", "cifar10", "imagefolder", "npz", "voc", "coco"),
    )
    root: Optional[str] = option(None, "its folder, or the .npz file")
    task: str = option(
        "classification",
        "classification: one class an image; multilabel: any number of labels, rows of 0 and 1 (npz); detection: boxes "
        "(voc, coco)",
        choices=("classification", "multilabel", "detection"),
    )
    image_size: Optional[int] = option(
        None,
        "images are resized to this many pixels a side; null: that of teacher.weights, else 320 (detection), 224 "
        "(imagefolder) or 32",
        low=8,
        high=1024,
    )
    crop_share: Optional[float] = option(
        None,
        "imagefolder: share of the resized shorter side that the middle square keeps; null: of teacher.weights, else 1",
        low=0.1,
        high=1.0,
    )
    interpolation: Optional[str] = option(
        None,
        "image files: how they are resized; null: that of teacher.weights, else bilinear",
        choices=("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"),
    )
    channels: Optional[int] = option(
        None, "of image files: 1 grey, 3 colour (as null), 4 with transparency; arrays have their own", low=1, high=4
    )
    batch_size: int = option(128, "images a training step", low=2, high=65536)
    val_from: str = option(
        "train",
        "where validation images come from if there is no validation split; test: a share of the test split, which no "
        "figure then counts, for a teacher that was trained on all of train",
        choices=("train", "test"),
    )
    val_fraction: float = option(0.1, "share of that split that becomes validation", low=0.01, high=0.5)
    test_fraction: float = option(
        0.2, "voc and coco without test or val images: share of train that becomes the test split", low=0.01, high=0.5
    )
    mean: Optional[list[float]] = option(
        None, "a channel each, of pixels in [0, 1]; null: that of teacher.weights, else of the train split"
    )
    std: Optional[list[float]] = option(None, "as mean")
    crop_padding: int = option(
        2, "augmentation: random crops from an image padded by this many pixels; not for boxes", low=0, high=64
    )
    flip: bool = option(False, "augmentation: random left-right flips; not for boxes")
    box_augmentation: str = option(
        "ssd",
        "augmentation of images with boxes: hflip: left-right flips; ssdlite: crops around boxes too; ssd: also "
        "smaller images on a plain ground, and changed colours",
        choices=("none", "hflip", "ssdlite", "ssd"),
    )
    workers: int = option(2, "processes that decode files (imagefolder, voc, coco)", low=0, high=64)


@dataclass
class TeacherConfig:
    """The network to compress."""

    model: str = option(
        "mobilenet_v2",
        "a name of python -m compress.models, or torchvision/NAME or timm/NAME; boxes: ssdlite/NAME, or "
        "ssdlite320_mobilenet_v3_large",
    )
    factory: Optional[str] = option(
        None, "package.module:function that returns a network of your own, in place of teacher.model"
    )
    stem: str = option(
        "auto",
        "small: strides for few pixels; imagenet: as published; auto: small up to 64 pixels",
        choices=("auto", "small", "imagenet"),
    )
    checkpoint: Optional[str] = option(None, "weights to load: .safetensors, .pt, .pth or .th (tensors only)")
    checkpoint_key: Optional[str] = option(
        None, "which weights of a checkpoint with several; null: the averaged ones (EMA), or the only ones"
    )
    weights: Optional[str] = option(
        None,
        "pretrained weights: torchvision's name, e.g. IMAGENET1K_V1, or timm's tag; a detector's backbone has them",
    )
    backbone_checkpoint: Optional[str] = option(
        None, "boxes: weights of a classifier for the backbone of ssdlite/NAME, a file as in teacher.checkpoint"
    )
    anchor_scales: list[float] = option(
        [0.2, 0.95],
        "boxes: sides of the anchors as shares of the image's: the smallest and the largest, evenly spaced over the "
        "feature maps, or one for each map and one more",
    )
    anchor_ratios: list[float] = option([2.0, 3.0], "boxes: aspect ratios of the anchors beside squares, both ways")
    epochs: int = option(12, "0 with a checkpoint: the teacher is taken as it is", low=0, high=10000)
    lr: float = option(0.05, "peak learning rate", low=1e-7, high=10)
    freeze_epochs: int = option(
        0, "fine-tuning: so many epochs at the start train the last layer alone", low=0, high=10000
    )
    lr_decay: float = option(
        1.0, "fine-tuning: each block's learning rate is this share of that of the block after it", low=0.01, high=1.0
    )


FILE_LIMITS = ("size_bytes", "latency_ms", "speedup")  # on the file that ships, whose figures are measured


@dataclass
class PruneTargetConfig:
    """What the pruned network may cost, in place of prune.ratio; the smallest cut that meets all that are set."""

    macs_share: Optional[float] = option(None, "share of the MACs that stays", low=0.01, high=1.0)
    params_share: Optional[float] = option(None, "share of the parameters that stays", low=0.01, high=1.0)
    size_bytes: Optional[int] = option(None, "of the model.onnx that the last stage writes", low=1, high=1e12)
    latency_ms: Optional[float] = option(
        None, "of one image in that file, in ONNX Runtime on this CPU with these threads", low=1e-3, high=1e6
    )
    speedup: Optional[float] = option(None, "of that file over the teacher's", low=0.1, high=1000)
    max_drop_points: Optional[float] = option(
        None,
        "points of the validation metric that it may lose before it is fine-tuned; alone: the smallest such network",
        low=0.0,
        high=100,
    )

    def asked(self) -> dict[str, float]:
        """Returns the limits that are set, by name."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}

    def asked_of_file(self) -> dict[str, float]:
        """Returns those of them that are on the file that ships."""
        return {name: value for name, value in self.asked().items() if name in FILE_LIMITS}


@dataclass
class PruneConfig:
    """Which filters are removed, and the fine-tuning that follows."""

    ratio: float = option(0.5, "share of the filters removed, where no target is set", low=0.0, high=0.95)
    target: PruneTargetConfig = field(default_factory=PruneTargetConfig)
    layer_ratios: list[str] = option(
        [], 'ratios of single layers in place of that one, by patterns of names: ["layer3.*=0.6", "layer1.*=0"]'
    )
    importance: str = option(
        "l1",
        "what ranks the filters: their norms, batch norm's weights, their distances, the loss's gradients, their "
        "outputs, or chance",
        choices=("l1", "l2", "random", "bn_scale", "lamp", "fpgm", "taylor", "obdc", "hessian", "activation"),
    )
    scope: str = option(
        "local",
        "local: the ratio in every layer; global: over all layers; isomorphic: over layers of one role; sensitivity: "
        "where the network's outputs change the least for what is saved",
        choices=("local", "global", "isomorphic", "sensitivity"),
    )
    round_to: int = option(8, "widths are kept multiples of this", low=1, high=256)
    steps: int = option(1, "the filters go in so many steps, which share the epochs", low=1, high=100)
    reconstruction_samples: int = option(
        1024, "train images on which the layers are refitted to the lost inputs; 0: not at all", low=0, high=1000000
    )
    reinitialize: bool = option(False, "draw all remaining weights anew: a control that shows what they are worth")
    sparsity: str = option(
        "group_norm",
        "sparsity learning: what weakens filters before they go: group lasso, a growing penalty of the weakest, or one "
        "of batch norm's weights",
        choices=("group_norm", "growing_reg", "bn_scale"),
    )
    sparsity_epochs: int = option(0, "epochs of sparsity learning; 0: none", low=0, high=10000)
    sparsity_weight: float = option(1e-4, "weight of its penalty", low=0.0, high=10)
    distill: bool = option(False, "the fine-tuning learns from the teacher, as distill does by default")
    epochs: int = option(2, "epochs of fine-tuning", low=0, high=10000)
    lr: float = option(0.005, "peak learning rate", low=1e-7, high=10)

    @property
    def removes_filters(self) -> bool:
        """Whether it asks for any filter to go."""
        return bool(self.ratio or self.layer_ratios or self.target.asked())


@dataclass
class DistillConfig:
    """Hinton's distillation from the teacher."""

    student: Optional[str] = option(
        None, "null: the network of the stage before; a name as in teacher.model: a new student"
    )
    temperature: float = option(2.0, "softens both distributions", low=0.1, high=100)
    alpha: float = option(0.9, "weight of the teacher's term; the labels weigh 1 - alpha", low=0.0, high=1.0)
    hint_layers: list[str] = option([], "modules whose outputs should match the teacher's, e.g. [layer1,layer2]")
    hint_weight: float = option(10.0, "weight of that match", low=0.0, high=1e6)
    epochs: int = option(10, "epochs", low=0, high=10000)
    lr: float = option(0.01, "peak learning rate", low=1e-7, high=10)


@dataclass
class QuantizeConfig:
    """Quantization to int8, after training or with it."""

    mode: str = option("qat", "ptq: calibration only; qat: quantization-aware training", choices=("ptq", "qat"))
    target: str = option(
        "auto",
        "the CPU that will run the file; auto: this one",
        choices=("auto", "x86_avx2", "x86_vnni", "arm"),
    )
    calibration: str = option(
        "mse",
        "ptq: how a range is chosen from its values",
        choices=("min_max", "moving_average", "percentile", "mse", "entropy"),
    )
    calibration_samples: int = option(512, "train images that set the activation ranges", low=1, high=1000000)
    equalize: bool = option(False, "ptq: even out the ranges of channels between layers first")
    rounding: str = option(
        "nearest",
        "ptq: nearest, or adaround: each weight up or down, learned on the calibration images",
        choices=("nearest", "adaround"),
    )
    rounding_steps: int = option(1000, "adaround: steps a layer", low=1, high=1000000)
    correct_bias: bool = option(True, "ptq: let each bias take up the mean error of its channel, layer by layer")
    max_drop_points: Optional[float] = option(
        None,
        "points of the validation metric that int8 may lose; layers stay float to keep it; null: none does",
        low=0,
        high=100,
    )
    allow_float: bool = option(False, "take an int8 file in which most of the arithmetic stays float")
    epochs: int = option(3, "qat: epochs", low=0, high=10000)
    lr: float = option(0.002, "qat: peak learning rate", low=1e-7, high=10)
    temperature: float = option(2.0, "qat: as distill.temperature", low=0.1, high=100)
    alpha: float = option(0.9, "qat: weight of the teacher's term; 0: labels only", low=0.0, high=1.0)


@dataclass
class TrainConfig:
    """The settings that all stages with a training share."""

    optimizer: str = option("sgd", "sgd (Nesterov) or adamw", choices=("sgd", "adamw"))
    momentum: float = option(0.9, "sgd's", low=0.0, high=0.999)
    weight_decay: float = option(5e-4, "on weights; never on biases and batch norm", low=0.0, high=1.0)
    warmup: float = option(0.1, "share of the steps in which the learning rate rises", low=0.0, high=0.9)
    label_smoothing: float = option(0.0, "share of each label spread over all classes", low=0.0, high=0.9)
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


@dataclass
class StageSections:
    """The settings of each stage, under its name."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)


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
