"""What each way to choose an activation's range must do, on distributions where the choice matters."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.methods.quantization.calibration import (
    ACTIVATION_OBSERVERS,
    HistogramRangeObserver,
    entropy_range,
    mse_range,
    percentile_range,
)
from compress.methods.quantization.pt2e import calibrate, convert, prepare

from .tiny_networks import Residual, settled

SPEC = {"dtype": torch.uint8, "quant_min": 0, "quant_max": 255, "qscheme": torch.per_tensor_affine}
SEARCHES = [percentile_range, mse_range, entropy_range]


def observe(method: str, *batches: torch.Tensor) -> tuple[float, float]:
    """The range (low, high) that the grid chosen from `batches` covers."""
    observer = ACTIVATION_OBSERVERS[method].with_args(**SPEC)()
    for batch in batches:
        observer(batch)
    scale, zero_point = (value.item() for value in observer.calculate_qparams())
    return -zero_point * scale, (255 - zero_point) * scale


def error(values: torch.Tensor, low: float, high: float) -> float:
    """Mean squared error of 8 bits over (low, high)."""
    scale = (high - low) / 255
    rounded = torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, 255)
    return (rounded - values).square().mean().item()


@pytest.fixture
def normal() -> torch.Tensor:
    """(200,000,): a unit normal, seeded."""
    return torch.randn(200_000, generator=torch.Generator().manual_seed(0))


def test_min_max_covers_all(normal):
    low, high = observe("min_max", normal[:100], normal[100:])
    assert low == pytest.approx(normal.min().item(), abs=0.05)
    assert high == pytest.approx(normal.max().item(), abs=0.05)


def test_moving_average_follows_its_formula():
    _, high = observe("moving_average", torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0]))
    assert high == pytest.approx(1.0 + 0.1 * (2.0 - 1.0))


def test_percentile_ignores_an_outlier(normal):
    outlier = torch.cat((normal, torch.tensor([1000.0])))
    assert observe("min_max", outlier)[1] == pytest.approx(1000, rel=0.01)
    observer = HistogramRangeObserver(percentile_range, **SPEC)
    observer(normal)  # a histogram that begins with an outlier would have one bin for all the rest
    observer(outlier)
    scale, _ = observer.calculate_qparams()
    assert scale.item() * 255 < 20


def test_mse_is_best_of_all_on_a_heavy_tail(normal):
    uniform = torch.rand(len(normal), generator=torch.Generator().manual_seed(1))
    heavy = normal.sign() * uniform.log().neg() ** 1.5
    errors = {method: error(heavy, *observe(method, heavy)) for method in ACTIVATION_OBSERVERS}
    assert min(errors, key=errors.get) == "mse"
    assert errors["mse"] < 0.85 * errors["min_max"]


def test_entropy_keeps_a_uniform_range_and_cuts_a_long_tail(normal):
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(2))
    assert observe("entropy", uniform)[1] > 0.9
    tail = normal.abs() ** 3
    assert observe("entropy", tail.relu())[1] < 0.9 * tail.max().item()


@pytest.mark.parametrize("search", SEARCHES)
def test_ranges_lie_inside_what_was_seen_and_hold_zero(normal, search):
    for values in (normal + 3, normal - 3, normal.relu(), torch.zeros(10), torch.full((10,), -2.0)):
        observer = HistogramRangeObserver(search, **SPEC)
        observer(values)
        low, high = search(observer.histogram.double(), observer.min_val.item(), observer.max_val.item())
        assert observer.min_val.item() <= low <= 0 <= high <= observer.max_val.item()
        assert low < high


def test_histogram_of_batches_is_that_of_the_whole(normal):
    whole, batches = (HistogramRangeObserver(mse_range, **SPEC) for _ in range(2))
    whole(normal)
    for batch in normal[normal.abs().argsort()].split(50_000):  # the range grows from batch to batch
        batches(batch)
    assert batches.histogram.sum() == pytest.approx(len(normal))
    expected, received = (observer.calculate_qparams()[0].item() for observer in (whole, batches))
    assert received == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("method", ACTIVATION_OBSERVERS)
def test_every_method_converts_near_float_and_reloads(images, tmp_path, method):
    network = settled(Residual(), images)
    prepared, reloaded = (prepare(network, images[:1], 7, qat=False, calibration=method) for _ in range(2))
    calibrate(prepared, images.split(16))
    save_file(prepared.state_dict(), tmp_path / "state.safetensors")
    reloaded.load_state_dict(load_file(tmp_path / "state.safetensors"), strict=True)
    converted = convert(prepared)
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(convert(reloaded)(images), converted(images))
        assert (converted(images) - expected).abs().mean() < 0.1 * expected.std()


def test_outlier_image_harms_min_max_and_not_percentile(images):
    """One corrupt calibration image with a few huge pixels: a percentile shrugs it off, min-max pays on all others."""
    network = settled(Residual(), images)
    corrupt = images.clone()
    corrupt[5, 0, 3, 3] = 1000.0
    errors = {}
    for method in ("min_max", "percentile"):
        prepared = prepare(network, images[:1], 8, qat=False, calibration=method)
        calibrate(prepared, [*images.split(32)] * 40 + [corrupt])
        with torch.no_grad():
            errors[method] = (convert(prepared)(images) - network(images)).abs().mean().item()
    assert errors["percentile"] < 0.5 * errors["min_max"]


def test_unknown_method_lists_the_known_ones(images):
    with pytest.raises(ValueError, match="min_max, moving_average, percentile, mse, entropy"):
        prepare(Residual().eval(), images[:1], 7, qat=False, calibration="guess")
