"""Checks settings: each value against its range, and values that exclude each other."""

from dataclasses import fields, is_dataclass
from typing import Any

from compress.config.conditional_settings import DynamicWidthConfig
from compress.config.data_settings import FILES_WITH_CLASSES, DataConfig
from compress.config.distill_losses import check_task, logit_losses
from compress.config.distill_teachers import check_teachers
from compress.config.options import as_typed, check_ranges
from compress.config.schema import Config, ExportConfig, RepeatConfig
from compress.config.stage_settings import DistillConfig, PruneConfig, QuantizeConfig, TeacherConfig
from compress.utils.errors import UserError


def check(config: Any) -> None:
    """Raises UserError at the first invalid value, or combination of values, in `config` and all below it."""
    check_ranges(config)
    _check_together(config)


def _check_together(config: Any) -> None:
    for item in fields(config):
        if is_dataclass(getattr(config, item.name)):
            _check_together(getattr(config, item.name))
    if isinstance(config, Config):
        _check_boxes(config)
        _check_mixing(config)
        _check_exits(config)
        check_task(config.distill.losses, config.data.task)
        check_teachers(config.distill.teachers if "distill" in config.stages else [])
        _check_student_size(config)
        _check_search(config)
        _check_balance(config)
    if isinstance(config, DataConfig):
        _check_size(config)
        _check_normalisation(config)
        _check_crop(config)
        _check_augmentation(config)
    if isinstance(config, PruneConfig):
        _check_pruning(config)
    if isinstance(config, DistillConfig):
        _check_distillation(config)
    if isinstance(config, QuantizeConfig):
        _check_corrections(config)
    if isinstance(config, DynamicWidthConfig):
        _check_widths(config.widths)
    if isinstance(config, ExportConfig):
        _check_targets(config.targets)
    if isinstance(config, RepeatConfig) and len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"repeat.seeds={as_typed(config.seeds)}", "each seed once", "remove the repeated one")
    if (
        isinstance(config, TeacherConfig)
        and config.epochs == 0
        and not (config.checkpoint or config.weights or config.factory)
    ):
        raise UserError(
            "teacher.epochs=0 and no weights",
            "a trained teacher, or epochs to train one",
            "set teacher.checkpoint=FILE, teacher.weights=NAME or teacher.epochs",
        )


def _check_boxes(config: Config) -> None:
    """Raises UserError for settings of boxes where classes are predicted."""
    if config.export.nms and config.data.task != "detection":
        raise UserError(
            f"export.nms=true with data={config.data.name}",
            "images with boxes",
            "set data=voc or data=coco, or leave export.nms out",
        )


def _check_search(config: Config) -> None:
    """Raises UserError for a search without a target, and for smaller images where boxes are in their pixels."""
    if "search_architecture" not in config.stages:
        return
    settings = config.search_architecture
    if not settings.target.asked():
        raise UserError(
            "stages with search_architecture, and nothing under search_architecture.target",
            "what the network may cost, or lose",
            "set search_architecture.target.macs_share=0.5, for example",
        )
    if settings.input_sizes and config.data.task == "detection":
        raise UserError(
            f"search_architecture.input_sizes={as_typed(settings.input_sizes)} with data.task=detection",
            "[]: boxes are in pixels of the network's input",
            "leave it out, or set data.image_size, which resizes images with their boxes",
        )


def _check_mixing(config: Config) -> None:
    """Raises UserError where no training would mix images, or where their targets cannot be mixed."""
    asked = {name: value for name in ("mixup", "cutmix") if (value := getattr(config.train, name))}
    received = " ".join(f"train.{name}={value}" for name, value in asked.items())
    if asked and "distill" not in config.stages and not ("teacher" in config.stages and config.teacher.epochs):
        raise UserError(
            f"{received} with stages={as_typed(config.stages)} and teacher.epochs={config.teacher.epochs}",
            "a stage that mixes images: teacher with epochs, or distill",
            "add distill to the stages, or leave that out",
        )
    if asked and config.data.task == "detection":
        raise UserError(
            f"{received} with data.task=detection",
            "0: boxes of two images cannot be mixed",
            "leave that out",
        )


def _check_balance(config: Config) -> None:
    """Raises UserError for weights that are none, and for settings of classes where an image has boxes of several."""
    weights = config.train.class_weights
    numbers = isinstance(weights, list) and all(type(weight) in (int, float) for weight in weights)
    if weights not in ("none", "balanced") and not (numbers and min(weights, default=0) > 0):
        raise UserError(
            f"train.class_weights={as_typed(weights)}",
            "none, balanced, or a number above 0 for each class",
            "set for example train.class_weights=balanced, or [1,5,2] for three classes",
        )
    asked = {
        f"train.class_weights={as_typed(weights)}": weights != "none",
        "data.sampler=balanced": config.data.sampler == "balanced",
    }
    received = " ".join(name for name, on in asked.items() if on)
    if received and config.data.task == "detection":
        raise UserError(f"{received} with data.task=detection", "images with classes or labels", "leave that out")


def _check_exits(config: Config) -> None:
    """Raises UserError for exits where an image has no single class, whose probability could decide who leaves."""
    named = [stage for stage in ("early_exit", "dynamic_width") if stage in config.stages]
    if named and config.data.task != "classification":
        raise UserError(
            f"stages={as_typed(config.stages)} with data.task={config.data.task}",
            "data.task=classification: the probability of its one class decides whether an image leaves",
            f"leave {named[0]} out of the stages",
        )
    if len(set(config.early_exit.after)) < len(config.early_exit.after):
        raise UserError(
            f"early_exit.after={as_typed(config.early_exit.after)}", "each module once", "remove the repeated one"
        )


def _check_widths(widths: list[float]) -> None:
    """Raises UserError for widths among which no image could choose."""
    if len(widths) < 2 or widths[-1] != 1 or sorted(set(widths)) != widths:
        raise UserError(
            f"dynamic_width.widths={as_typed(widths)}",
            "two or more shares of the channels, each larger than the one before, and last 1.0: the whole network",
            "set for example dynamic_width.widths=[0.5,1.0]",
        )


def _check_student_size(config: Config) -> None:
    """Raises UserError where the student of a detector would resize images, without their boxes."""
    size = config.distill.student_image_size
    if size and config.data.task == "detection":
        raise UserError(
            f"distill.student_image_size={size} with data.task=detection",
            "null: boxes are in pixels of the network's input",
            "leave it out, or set data.image_size, which resizes images with their boxes",
        )


def _check_distillation(distill: DistillConfig) -> None:
    """Raises UserError for losses that cannot be read, and for a share of the outputs' losses where there is none."""
    if distill.alpha and not logit_losses(distill.losses):
        raise UserError(
            f"distill.losses={as_typed(distill.losses)} with distill.alpha={distill.alpha}",
            "a loss of the outputs, which alpha weighs",
            "add kd to the losses, or set distill.alpha=0",
        )


def _check_pruning(prune: PruneConfig) -> None:
    """Raises UserError for settings that cannot act together."""
    if prune.steps > max(1, prune.epochs):
        raise UserError(
            f"prune.steps={prune.steps} with prune.epochs={prune.epochs}",
            "an epoch a step or more: without training, several steps are one",
            "raise prune.epochs, or lower prune.steps",
        )
    if prune.reinitialize and (prune.steps > 1 or prune.sparsity_epochs):
        raise UserError(
            "prune.reinitialize=true with prune.steps or prune.sparsity_epochs",
            "one step without sparsity learning: new weights keep nothing of either",
            "set prune.steps=1 prune.sparsity_epochs=0",
        )


def _check_corrections(quantize: QuantizeConfig) -> None:
    """Raises UserError for corrections of weights after training in a training that learns the rounding itself."""
    corrections = {"equalize=true": quantize.equalize, "rounding=adaround": quantize.rounding == "adaround"}
    asked = [name for name, on in corrections.items() if on]
    if quantize.mode == "qat" and asked:
        raise UserError(
            f"quantize.mode=qat with {', '.join(f'quantize.{name}' for name in asked)}",
            "mode=ptq: these correct what training did not see",
            "set quantize.mode=ptq, or leave them at their defaults",
        )


def _check_size(data: DataConfig) -> None:
    """Raises UserError for images too small to train on, and for the size of arrays where there are none."""
    size = data.image_size
    if size is not None and size < 8 and not (size == 0 and data.name == "npz"):
        raise UserError(
            f"data.image_size={size} with data={data.name}",
            "8 to 1024 pixels, or 0 with data=npz: as large as its arrays are",
            "set data.image_size within that range, or leave it out",
        )


def _check_normalisation(data: DataConfig) -> None:
    mean, std = data.mean, data.std
    if mean is None and std is None:
        return
    if mean is None or std is None:
        raise UserError(f"data.mean={mean} data.std={std}", "both or neither", "set the missing one")
    if len(std) != len(mean) or min(std, default=0) <= 0:
        raise UserError(
            f"data.mean={mean} data.std={std}",
            "as many means as deviations, and deviations above 0",
            "give one of each a channel, or neither",
        )


def _check_crop(data: DataConfig) -> None:
    boxes = data.task == "detection"
    classes = data.name in FILES_WITH_CLASSES
    if data.crop_share is not None and data.resize in ("stretch", "pad"):
        raise UserError(
            f"data.crop_share={data.crop_share} with data.resize={data.resize}",
            "null: all of an image is kept",
            "leave one of the two out",
        )
    allowed = {"crop_share": classes, "resize": classes, "interpolation": classes or boxes}
    for name in allowed:
        value = getattr(data, name)
        if value is not None and not allowed[name]:
            why = "images with boxes are not cropped" if boxes else "arrays come as they are"
            raise UserError(
                f"data.{name}={value} with data={data.name}",
                f"null: {why}, only image files with classes are",
                f"leave data.{name} out",
            )


def _check_augmentation(data: DataConfig) -> None:
    """Raises UserError for changes of images under which their boxes would not move along."""
    changes = {"augment": None, "resized_crop": None, "auto_augment": "none", "erasing": 0.0}
    asked = [name for name, unset in changes.items() if getattr(data, name) != unset]
    if asked and data.task == "detection":
        raise UserError(
            f"data.{asked[0]}={getattr(data, asked[0])} with data.task=detection",
            "data.box_augmentation, which moves the boxes, too",
            f"leave data.{asked[0]} out",
        )


def _check_targets(targets: list[str]) -> None:
    received = f"export.targets=[{','.join(targets)}]"
    if len(set(targets)) < len(targets):
        raise UserError(received, "each target once", "remove the repeated one")
    if "onnx" not in targets:
        expected = "onnx among them: every other file is compared to model.onnx"
        raise UserError(received, expected, f"set export.targets=[{','.join(['onnx', *targets])}]")
