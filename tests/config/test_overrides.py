"""The command line as people type it: values with any signs work, and a mistyped name is answered with the nearest."""

import shlex
from pathlib import Path

import pytest

from compress.config.compose import compose_recipe, recipe_files, with_output_folders
from compress.config.overrides import parse_override, quote_overrides
from compress.config.paths import RECIPES
from compress.config.schema import Config
from compress.stages import check_order
from compress.utils.errors import UserError
from compress.utils.nearest import did_you_mean, nearest

PATHS = [
    "/runs/epoch=3-step=80.ckpt", "/my data (v1)", "/lr 0.1, seed 3", "[old] photos", "{v1}", "/a/{b}/c", "it's", '"',
    "a#b", "C:\\my data\\(v1)\\", "ünï/日本", "1e3", "2024_01_05", "1.10", "true", "[a,b]", "{a:b}", "glob(*)",
    "a=b,c=d", "~user/x", "x;y&z", "(v1)", "a:b", "plain/path.npz",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_with_any_signs_arrives_as_it_was_typed(path: str) -> None:
    keys = ("data.root", "teacher.checkpoint", "cache.dir")
    config = compose_recipe("mobilenet_int8", [f"{key}={path}" for key in keys])
    assert [config.data.root, config.teacher.checkpoint, config.cache.dir] == [path] * 3


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("null", None),
        ("'null'", "null"),
        ("'a b'", "a b"),
        ("my\\ data", "my data"),
        ("${oc.env:HOME}/x (1)", "/h/x (1)"),
    ],
)
def test_what_hydra_means_by_a_value_stays(typed: str, meant: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    assert compose_recipe("mobilenet_int8", [f"data.root={typed}"]).data.root == meant
    assert compose_recipe("mobilenet_int8", ["data.root=~/x"]).data.root == "/h/x"


def test_a_recipe_may_lie_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "my recipes (v1)" / "a=b, c.yaml"
    path.parent.mkdir()
    path.write_text((RECIPES / "mobilenet_int8.yaml").read_text())
    assert isinstance(compose_recipe(str(path)), Config)
    arguments = quote_overrides([f"recipe={path}"])
    assert recipe_files(arguments) == [str(path)]
    folders = dict(argument.split("=", 1) for argument in with_output_folders(arguments)[1:])
    assert folders["hydra.run.dir"].startswith("'outputs/a=b, c/${now")


def test_commas_are_a_sweep_where_one_is_asked_for(tmp_path: Path) -> None:
    comma = tmp_path / "a, b"
    typed = ["--multirun", "teacher.model=a,b", f"data.root={comma}", "hydra.sweep.dir=a, b"]
    assert parse_override(quote_overrides(typed)[1]).is_sweep_override()
    assert parse_override(quote_overrides(typed)[2]).is_sweep_override()
    assert parse_override(quote_overrides(typed)[3]).value() == "a, b"
    comma.mkdir()  # what exists is meant
    assert parse_override(quote_overrides(typed)[2]).value() == str(comma)
    assert parse_override(quote_overrides(["hydra.run.dir=a, b"])[0]).value() == "a, b"
    several = parse_override(quote_overrides(["-m", "teacher.checkpoint=step=1.pt,step=2.pt"])[1])
    assert [value.text for value in several.sweep_iterator()] == ["step=1.pt", "step=2.pt"]
    flags = ["-m", "--cfg", "job"]
    mixed = ["-m", "prune.ratio=interval(0.3,0.8)", "hydra/sweeper=optuna", "~data", "--cfg", "job", "+seed=3"]
    assert quote_overrides(["-m", "prune.ratio=0.3,0.5", "+seed=3"]) == ["-m", "prune.ratio=0.3,0.5", "+seed=3"]
    # Hydra does not take overrides on both sides of a flag.
    assert quote_overrides(mixed) == [text for text in mixed if text not in flags] + flags


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("prune.ratoi=0.5", "did you mean prune.ratio?"),
        ("prnue.ratio=0.5", "did you mean prune.ratio?"),
        ("Prune.Ratio=0.5", "did you mean prune.ratio?"),
        ("prune-ratio=0.5", "did you mean prune.ratio?"),
        ("ratio=0.5", "did you mean prune.ratio or factorize.ratio?"),
        ("+prune.ratoi=0.5", "did you mean prune.ratio?"),
        ("~prune.ratoi", "did you mean prune.ratio?"),
        ("epochs=3", "teacher.epochs or prune.epochs"),
        ("train.lr=3", "teacher.lr or prune.lr"),
        ("hydra.run.dri=x", "did you mean hydra.run.dir?"),
        ("hydra.sweeper.trials=3", "add --multirun hydra/sweeper=optuna"),
        ("dta=npz", "did you mean data?"),
        ("hydra/laucher=joblib", "did you mean hydra/launcher?"),
        ("teacher=resnet20", "set one of teacher.model"),
        ("xyzzy.q=1", "python -m compress --help"),
        ("data=imagefoler", "did you mean imagefolder?"),
        ("quantize.mode=qta", "set quantize.mode=qat"),
        ("prune.importance=L2", "set prune.importance=l2"),
        ("export.targets=[opnvino]", "set export.targets=openvino"),
        ("prune.ratio=half", "share of the filters removed, where no target is set [0 to 0.95]"),
        ("prune.ratio=0.5)", "set prune.ratio"),
        ("prune.ratio=0.3,0.5", "add --multirun"),
        ("teacher.model=a,b", "'teacher.model=\"a,b\"'"),
        ("data.mean=0.5,0.4", "'data.mean=[0.5,0.4]'"),
        ("data.mean=(0.5,0.4)", "'data.mean=[0.5,0.4]'"),
        ("stages=[teacher,prune", "'stages=[teacher,prune]'"),
        ("prune.ratio:0.5", "write prune.ratio=0.5"),
        ("data/npz", "write data=npz"),
        ("--prune.ratio=0.5", "write prune.ratio=0.5"),
        ("--multrun", "did you mean --multirun?"),
        ("prune.ratoi", "did you mean prune.ratio=VALUE?"),
    ],
)
def test_a_mistake_is_answered_with_what_was_meant(typed: str, part: str) -> None:
    with pytest.raises(UserError) as refusal:
        compose_recipe("mobilenet_int8", [typed])
    assert part in str(refusal.value)


def test_what_a_shell_split_is_put_together() -> None:
    with pytest.raises(UserError) as refusal:
        quote_overrides(["recipe=mobilenet_int8", "data.root=/my", "images", "(v1)", "seed=1"])
    quote = refusal.value.mend.removeprefix("put it in quotes: ")
    assert shlex.split(quote) == ["data.root=/my images (v1)"]
    assert quote_overrides(shlex.split(quote)) == ["data.root='/my images (v1)'"]
    with pytest.raises(UserError, match=r"write prune\.ratio=0\.5"):
        quote_overrides(["prune.ratio", "=", "0.5"])


def test_mistyped_recipes_and_stages() -> None:
    with pytest.raises(UserError, match=r"did you mean mobilenet_int8\?"):
        compose_recipe("mobilenet-int")
    with pytest.raises(UserError, match=r"did you mean teacher\?"):
        check_order(["techer", "prune"])


def test_a_mistyped_key_in_a_recipe_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("prune:\n  ratoi: 0.5\n")
    with pytest.raises(UserError, match=r"prune\.ratoi of recipe/.*mine\.yaml.* did you mean prune\.ratio\?"):
        compose_recipe(str(tmp_path / "mine.yaml"))


def test_nearest_names() -> None:
    assert nearest("Image-Folder", ["npz", "imagefolder"]) == ["imagefolder"]
    assert nearest("xyz", ["npz_", "imagefolder"]) == []
    assert did_you_mean("qat", ["ptq"]) == ""
