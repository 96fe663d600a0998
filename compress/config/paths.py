"""The folders of this project's configs."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# In a checkout conf/ and recipes/ are next to the package; a built wheel has them inside it.
_HOME = _PACKAGE.parent if (_PACKAGE.parent / "recipes").is_dir() else _PACKAGE
CONF = _HOME / "conf"
RECIPES = _HOME / "recipes"
