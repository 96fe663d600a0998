"""The CPU decides how many bits a weight may have."""

import pytest

from compress.methods.quantization.cpu_target import WEIGHT_BITS, choose_target, host_target, mismatch
from compress.utils.errors import UserError

AVX2 = ["avx2"]
VNNI = ["avx2", "avx512f", "avx512_vnni"]
ARM = ["asimd", "asimddp"]


@pytest.mark.parametrize(
    ("flags", "target"),
    [(AVX2, "x86_avx2"), (VNNI, "x86_vnni"), (["avx2", "avx_vnni"], "x86_vnni"), (ARM, "arm"), ([], None)],
)
def test_flags_tell_the_target(flags: list[str], target: str | None) -> None:
    assert host_target(flags) == target


def test_auto_is_this_cpu_and_a_name_is_itself() -> None:
    assert choose_target("auto", VNNI) == "x86_vnni"
    assert choose_target("arm", VNNI) == "arm"
    with pytest.raises(UserError, match=r"quantize\.target=auto on a CPU that tells no flags"):
        choose_target("auto", [])


def test_two_products_fit_into_sixteen_bits_where_they_must() -> None:
    assert 2 * 255 * 2 ** (WEIGHT_BITS["x86_avx2"] - 1) < 2**15
    assert 2 * 255 * 2 ** (WEIGHT_BITS["x86_vnni"] - 1) > 2**15


def test_a_file_on_another_cpu_is_remarked() -> None:
    assert mismatch("x86_avx2", AVX2) is None
    assert mismatch("x86_vnni", []) is None
    assert "saturate here" in mismatch("x86_vnni", AVX2)
    assert "accuracy holds" in mismatch("x86_avx2", VNNI)
