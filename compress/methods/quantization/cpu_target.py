"""Chooses the CPU that the int8 file is for, which decides how many bits a weight may have without overflow."""

from compress.utils.errors import UserError

# AVX2 without VNNI adds two products of u8 and s8 in 16 bits: 2 * 255 * 64 fits, 2 * 255 * 127 saturates.
WEIGHT_BITS = {"x86_avx2": 7, "x86_vnni": 8, "arm": 8}

_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
_ARM = {"asimd", "neon"}


def host_target(flags: list[str]) -> str | None:
    """Returns the target for a CPU with these flags; None where they name no known kind."""
    if _VNNI & set(flags):
        return "x86_vnni"
    if _ARM & set(flags):
        return "arm"
    return "x86_avx2" if "avx2" in flags else None


def choose_target(requested: str, flags: list[str]) -> str:
    """Returns `requested`, or for `auto` the target of this CPU. Raises UserError where its flags name no kind."""
    if requested != "auto":
        return requested
    host = host_target(flags)
    if host is None:
        raise UserError(
            "quantize.target=auto on a CPU that tells no flags",
            f"one of {', '.join(WEIGHT_BITS)}",
            "set quantize.target to the CPU that will run the file; x86_avx2 is right on every one",
        )
    return host


def mismatch(target: str, flags: list[str]) -> str | None:
    """Returns a warning where a file for `target` is measured on another kind of CPU; None where it is the same."""
    host = host_target(flags)
    if host is None or host == target:
        return None
    if WEIGHT_BITS[target] > WEIGHT_BITS[host]:
        return f"made for {target}, measured on {host}: its {WEIGHT_BITS[target]}-bit weights saturate here"
    return f"made for {target}, measured on {host}: accuracy holds on both, the time is this machine's"
