"""Finds the files of the teachers that `distill.teachers` names. Needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from compress.config.distill_teachers import OWN, check_teachers
from compress.utils.errors import UserError
from compress.utils.files import MODEL, SPEC, STAGE, digest_of_file, read_json


@dataclass(frozen=True)
class TeacherFiles:
    """A teacher by the name that the settings give it: a stage's folder, a checkpoint file, or neither for `OWN`."""

    name: str
    folder: Path | None = None
    checkpoint: Path | None = None

    def digests(self) -> list[str | None]:
        """Returns the SHA-256 of each file that decides its weights; the run's own teacher has none here."""
        paths = [self.folder / MODEL, self.folder / SPEC] if self.folder else [self.checkpoint]
        return [digest_of_file(path) for path in paths if path]


def find_teacher(name: str) -> TeacherFiles:
    """Returns the files of a teacher: of a run folder, its last stage that is not quantized.

    Raises UserError for a path that does not exist, for a folder without such a stage, and for a quantized one.
    """
    check_teachers([name])
    if name == OWN:
        return TeacherFiles(name)
    path = Path(name)
    if path.is_file():
        return TeacherFiles(name, checkpoint=path)
    received = f"distill.teachers with {name}"
    if (path / STAGE).is_file():
        if _is_quantized(path):
            raise UserError(f"{received}, a quantized stage", "a float network", "name a stage before quantize")
        return TeacherFiles(name, folder=path)
    stages = [folder for folder in sorted(path.iterdir()) if (folder / STAGE).is_file() and not _is_quantized(folder)]
    if not stages:
        raise UserError(
            f"{received}, a folder without a finished float stage",
            "the folder of a run, or of one of its stages",
            "name such a folder",
        )
    return TeacherFiles(name, folder=stages[-1])


def _is_quantized(folder: Path) -> bool:
    return read_json(folder / SPEC)["quantization"] is not None
