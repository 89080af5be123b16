"""What a run keeps of each picture: a folder of results, or its crops."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from .atomic import ExportError, check_writable
from .cells import Cells, CellsError
from .crop import CropSize
from .crop_folder import check_crop_folder, write_crops
from .export import RESULT_FILES, check_folder, read_results, write_results
from .pipeline import crop_scale
from .record import Outcome
from .review import CorrectedError, is_corrected
from .review_files import run_of
from .whole import crop_slide

if TYPE_CHECKING:
    from .inputs import Input
    from .pipeline import Analysis


class Keeper(Protocol):
    """Keeps what a run makes of each picture."""

    def check(self) -> None:
        """Raise ExportError if nothing can be kept; called before the first picture."""

    def prepare(self, item: Input, /) -> None:
        """Raise ExportError if this picture's results cannot be kept; called before it is read."""

    def write(self, item: Input, analysis: Analysis, /) -> None:
        """Keep the results of a picture."""

    def failed(self, item: Input, error: str, /) -> Outcome:
        """Deal with earlier results of a picture that failed, and say what became of them."""


class ResultFolders:
    """A folder of results for each picture.

    Parameters
    ----------
    output : pathlib.Path
        The folder of the run.
    files : collection of str
        As for `napari_wbc.export.write_results`.
    overwrite : bool
        Whether corrected results may be replaced.
    """

    def __init__(self, output: Path, files: Collection[str] = RESULT_FILES, *, overwrite: bool = False) -> None:
        self.output, self.files, self.overwrite = output, files, overwrite

    def check(self) -> None:
        """Raise ExportError if the folder of the run cannot be written."""
        check_writable(self.output)

    def prepare(self, item: Input) -> None:
        """Raise ExportError if the folder of this picture holds corrections or files of others."""
        check_folder(self.output / item.folder, overwrite=self.overwrite)

    def write(self, item: Input, analysis: Analysis) -> None:
        """Write the folder of a picture."""
        write_results(analysis, self.output / item.folder, files=self.files, overwrite=self.overwrite)

    def failed(self, item: Input, error: str) -> Outcome:
        """Remove results of an earlier run: the file may show something else now. Corrected ones stay, and count."""
        error, folder = self.clear(item, error), self.output / item.folder
        try:
            found = read_results(folder) if folder.is_dir() and is_corrected(folder) else None
        except (ExportError, CellsError):  # damaged, and the error says that the folder stays
            found = None
        if found is None or not _is_of(item, found.sought):
            return Outcome(item, error=error)
        run = run_of(folder)
        facts = dict(run["inputs"][0]) if run else {}
        if run and facts.get("state") != "kept":
            model = (run.get("model") or {}).get("name", "none")
            note = f"{item.slide}: corrected results of the run of {run.get('started')} are kept (model {model})"
            facts["notes"] = [*facts.get("notes", ()), note]
        return Outcome(item, Cells(found.cells.table.assign(slide=item.slide)), error=error, kept=facts)

    def clear(self, item: Input, error: str) -> str:
        """Remove results of an earlier run but corrected ones; return the error, with what was done added."""
        folder = self.output / item.folder
        if not folder.is_dir():
            return error
        try:
            check_folder(folder, overwrite=False)
            shutil.rmtree(folder)
        except CorrectedError:
            return error if "corrected" in error else f"{error}; corrected results of an earlier run stay in {folder}"
        except (ExportError, OSError):
            return error if str(folder) in error else f"{error}; results of an earlier run may be left in {folder}"
        return f"{error}; results of an earlier run were removed from {folder}"


def _is_of(item: Input, sought: Path | None) -> bool:
    """Whether results are of this picture, as far as they tell: in another run its folder's name may be another's."""
    return sought is None or sought == item.path.absolute() or (sought.name == item.path.name and not sought.exists())


class CropFolder:
    """All crops of a run, written when it is over.

    Parameters
    ----------
    output : pathlib.Path
        The folder of crops.
    size : CropSize
        Of the crops.
    """

    def __init__(self, output: Path, size: CropSize) -> None:
        self.output, self.size = output, size
        self.crops: list[npt.NDArray[np.uint8]] = []

    def check(self) -> None:
        """Raise ExportError if the folder cannot be written or holds what is not to be replaced."""
        check_crop_folder(self.output)
        check_writable(self.output)

    def prepare(self, _: Input) -> None:
        """Do nothing."""

    def write(self, _: Input, analysis: Analysis) -> None:
        """Cut out the cells of a picture."""
        scale = crop_scale(analysis.appearance, analysis.cells)
        self.crops.extend(crop_slide(analysis.slide, analysis.cells.centroids, scale, self.size))

    def failed(self, item: Input, error: str) -> Outcome:
        """Say that it failed."""
        return Outcome(item, error=error)

    def finish(self, cells: Cells, *, stopped: bool) -> bool:
        """Write the crops and return True, or False where those of only a part of a run would replace others."""
        if stopped and self.output.is_dir() and any(self.output.iterdir()):
            return False
        write_crops(self.crops, cells, self.output, mpp=self.size.side_um / self.size.pixels)
        return True
