"""The guard of the headline runs: it notices what is worse beyond chance, and the READMEs repeat what was measured."""

import json

import numpy as np
import pytest

from tests.benchmarks.headline_tables import BLOCKS, with_tables
from tests.benchmarks.headlines import FIGURES, HEADLINES, ROOT, bits, regression

IMAGES = 800


def record(wrong: list[int], fingerprint: str = "same", seeds: int = 3) -> dict:
    """A headline whose file has these images wrong, on every seed."""
    right = np.ones(IMAGES, bool)
    right[wrong] = False
    run = {"images": IMAGES, "data_fingerprint": fingerprint, "right": np.packbits(right).tobytes().hex()}
    return {
        "command": "python -m compress recipe=a",
        "commit": "0123456789",
        "seeds": {str(s): run for s in range(seeds)},
    }


def test_which_images_are_right_is_read_back_as_it_was_written() -> None:
    run = record([0, 7, 799])["seeds"]["0"]
    assert np.flatnonzero(~bits(run)).tolist() == [0, 7, 799]
    assert len(bits(run)) == IMAGES


def test_the_same_figures_and_better_ones_pass() -> None:
    assert regression(record(list(range(60))), record(list(range(60)))) is None
    assert regression(record(list(range(60))), record(list(range(30)))) is None


def test_a_loss_that_chance_explains_passes() -> None:
    """Ten images lost and nine gained."""
    assert regression(record(list(range(50, 59))), record(list(range(10)))) is None


def test_a_loss_beyond_chance_is_named_with_its_interval() -> None:
    text = regression(record([]), record(list(range(16))))
    assert text.startswith("python -m compress recipe=a: -2.00 points (95 % interval -2.")
    assert "against commit 0123456789 on the same 2400 images of 3 seeds" in text


def test_all_seeds_count_together() -> None:
    """Two images are lost by chance on one seed, and hardly on each of three."""
    before, now = record([0, 1, 2]), record([3, 4, 5, 6, 7, 8, 9, 10, 11])
    one = {**before, "seeds": {"0": before["seeds"]["0"]}}
    assert regression(one, now) is None
    assert regression(before, now) is not None


def test_other_images_are_not_compared_in_pairs() -> None:
    assert "cannot be compared in pairs" in regression(record([]), record([], "other"))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_readme_has_the_recorded_figures(name: str) -> None:
    figures, text = json.loads(FIGURES.read_text()), (ROOT / name).read_text()
    assert with_tables(text, figures, BLOCKS[name]) == text


def test_every_headline_is_recorded() -> None:
    figures = json.loads(FIGURES.read_text())
    assert set(figures) >= {headline.recipe for headline in HEADLINES if not headline.long}


def figures_of_one_run() -> dict:
    stage = {
        "stage": "04_quantize", "times_smaller": 11.6, "times_faster": 2.2, "times_fewer_macs": 3.9, "points_lost": 0.5,
        "deployed_top1_percent": 98.125, "deployed_top1_ci95_percent": [97.0, 99.0], "macs": 5_580_000,
        "size_bytes": 760_000, "latency_ms_p50": 0.354,
    }  # fmt: skip
    run = {"images": 360, "minutes": 2.7, "stages": [stage]}
    facts = {
        "title": "a run",
        "command": "make",
        "cores": 2,
        "jobs": 1,
        "cpu": "a CPU",
        "commit": "0123456789",
        "date": "today",
    }
    return {"mobilenet_int8": facts | {"seeds": {"0": run}}}


def test_blocks_are_written_between_their_comments_and_nothing_else_changes() -> None:
    blocks = [name for names in BLOCKS.values() for name in names]
    readme = "\n".join(
        f"before\n<!-- {name}: written by tests/benchmarks/headlines.py -->\nold\n<!-- end of {name} -->\nafter"
        for name in blocks
    )
    made = with_tables(readme, figures_of_one_run(), blocks)
    assert "old" not in made
    assert made.count("before") == made.count("after") == len(blocks) == 3
    assert " 04_quantize   98.12 97.00-99.00 0.50 5.58 M 742 KiB 0.35  11.60x  2.20x" in made
    assert "| a run | 360 | 98.12 | 98.12 |" in made
    assert "| a run | 98.12 | 98.12 | 0.50 | 3.90x fewer | 11.60x smaller | 2.20x faster |" in made
    assert with_tables(made, figures_of_one_run(), blocks) == made
    with_one = with_tables(readme, figures_of_one_run(), ["headlines"])  # the others are another file's
    assert with_one.count("old") == 2


def test_a_readme_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="a README without the block 'first run'"):
        with_tables("# nothing", figures_of_one_run(), ["first run"])
