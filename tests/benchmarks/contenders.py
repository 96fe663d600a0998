"""How each contender makes its file from the float network and the calibration images, each in its best setting."""

import importlib.util
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from compress.config.stage_settings import QuantizeConfig
from compress.export.onnx import export_onnx
from compress.methods.quantization.correction import correct
from compress.methods.quantization.cpu_target import WEIGHT_BITS, choose_target
from compress.methods.quantization.pt2e import calibrate, convert, prepare
from compress.utils.cpu import cpu_flags
from tests.benchmarks.networks import Subject

OURS = "this project"
FLOAT = "ONNX Runtime, float"
CALIBRATION_BATCH = 64


@dataclass(frozen=True)
class Contender:
    """A file and the runtime for it. Those of one tool and form differ in their values, not in what is executed."""

    tool: str
    form: str  # what decides the speed, besides the tool
    setting: str  # what decides the values
    runtime: str  # a name in `RUNTIMES`
    path: Path

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.tool, self.form, self.setting)))


def build_contenders(subject: Subject, folder: Path) -> tuple[list[Contender], dict[str, str]]:
    """Every contender, its file made unless `folder` has it; and each tool left out, with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = [*_references(subject, folder), *_own(subject, folder), *_onnxruntime(subject, folder)]
    plan += [*_torchao(subject, folder), *_nncf(subject, folder)]
    contenders, left_out = [], {}
    for contender, make in plan:
        missing = [name for name in NEEDS.get(contender.tool, ()) if importlib.util.find_spec(name) is None]
        if missing:
            left_out[contender.tool] = f'no package {" and ".join(missing)}: pip install -e ".[benchmark]"'
            continue
        if contender.tool == OURS or not contender.path.is_file():  # the project's code changes, the peers' does not
            make()
        contenders.append(contender)
    return contenders, left_out


NEEDS = {"OpenVINO, float": ("openvino",), "OpenVINO + NNCF": ("openvino", "nncf")}

Plan = Iterable[tuple[Contender, Callable[[], None]]]


def reduce_range() -> bool:
    """Whether this CPU adds int8 products in 16 bits, so that each tool's own remedy for it is called for."""
    return WEIGHT_BITS[choose_target("auto", cpu_flags())] < 8


def _references(subject: Subject, folder: Path) -> Plan:
    float_file, openvino_file = folder / "float.onnx", folder / "float.xml"
    make = partial(export_onnx, subject.network, float_file, subject.shape)
    yield Contender(FLOAT, "", "", "onnxruntime", float_file), make
    yield Contender("torch eager, float", "", "", "eager", subject.checkpoint), lambda: None

    def convert_to_openvino() -> None:
        import openvino

        openvino.save_model(openvino.convert_model(float_file), openvino_file, compress_to_fp16=False)

    yield Contender("OpenVINO, float", "", "", "openvino", openvino_file), convert_to_openvino


def _own(subject: Subject, folder: Path) -> Plan:
    """The project's defaults: what `quantize.mode=ptq` does."""
    defaults = QuantizeConfig(mode="ptq")
    bits = WEIGHT_BITS[choose_target(defaults.target, cpu_flags())]
    path = folder / "ours.onnx"

    def make() -> None:
        prepared = prepare(subject.network, torch.zeros(1, *subject.shape), bits, False, defaults.calibration)
        batches = list(subject.calibration.split(CALIBRATION_BATCH))
        calibrate(prepared, batches)
        correct(prepared, batches, rounding_steps=0, correct_bias=defaults.correct_bias, seed=0)
        export_onnx(convert(prepared), path, subject.shape)

    yield Contender(OURS, "", f"{bits}-bit weights", "onnxruntime", path), make


def _onnxruntime(subject: Subject, folder: Path) -> Plan:
    """Unsigned activations and signed weights a channel, ONNX Runtime's fast form on x86, on a pre-processed file."""
    for form in ("QDQ", "QOperator"):
        for method in ("MinMax", "Entropy", "Percentile"):
            path = folder / f"quantize_static_{form}_{method}.onnx"
            make = partial(_quantize_static, subject, folder, form, method, path)
            yield Contender("ONNX Runtime quantize_static", form, method, "onnxruntime", path), make


def _quantize_static(subject: Subject, folder: Path, form: str, method: str, path: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "pre_processed.onnx"
    if not prepared.is_file():
        quant_pre_process(folder / "float.onnx", prepared)
    quantize_static(
        prepared,
        path,
        ImageReader(subject.calibration.numpy()),
        quant_format=QuantFormat[form],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range(),
        calibrate_method=CalibrationMethod[method],
        calibration_cache_path=folder / f"ranges_{method}.json",
        # In strides, because the histogram methods otherwise hold every activation of every image at once.
        extra_options={"CalibStridedMinMax": ImageReader.STRIDE},
    )


class ImageReader:
    """Calibration images, one a call, as ONNX Runtime's calibration reads them: stride after stride."""

    STRIDE = 32

    def __init__(self, images: np.ndarray):
        self.images, self.waiting = images, iter(())

    def __len__(self) -> int:
        return len(self.images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.waiting = iter(self.images[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.waiting, None)
        return None if image is None else {"image": image[None]}


def _torchao(subject: Subject, folder: Path) -> Plan:
    path = folder / "torchao.pt2"
    reduced = reduce_range()
    setting = "7-bit activations" if reduced else "8-bit activations"

    def make() -> None:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        example = (torch.zeros(2, *subject.shape).contiguous(memory_format=torch.channels_last),)
        batch = ({0: torch.export.Dim.DYNAMIC},)
        captured = torch.export.export(subject.network, example, dynamic_shapes=batch).module(check_guards=False)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=reduced))
        prepared = prepare_pt2e(captured, quantizer)
        with torch.no_grad():
            for images in subject.calibration.split(CALIBRATION_BATCH):
                prepared(images.contiguous(memory_format=torch.channels_last))
        torch.export.save(torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=batch), path)

    yield Contender("torchao X86Inductor", "", setting, "inductor", path), make


def _nncf(subject: Subject, folder: Path) -> Plan:
    for preset in ("MIXED", "PERFORMANCE"):
        for setting, fast in (("fast bias correction", True), ("bias correction", False)):
            path = folder / f"nncf_{preset}_{'fast' if fast else 'full'}.xml"
            make = partial(_quantize_with_nncf, subject, folder, preset, fast, path)
            yield Contender("OpenVINO + NNCF", preset, setting, "openvino", path), make


def _quantize_with_nncf(subject: Subject, folder: Path, preset: str, fast: bool, path: Path) -> None:
    """NNCF's own default against overflow in 16 bits, 7-bit weights in the first layer, agrees best with float."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    quantized = nncf.quantize(
        openvino.Core().read_model(folder / "float.xml"),
        nncf.Dataset(list(subject.calibration.numpy()[:, None])),
        preset=nncf.QuantizationPreset[preset],
        subset_size=len(subject.calibration),
        fast_bias_correction=fast,
    )
    openvino.save_model(quantized, path, compress_to_fp16=False)
