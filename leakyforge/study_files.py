"""The files that the study of activations leaves: report, figures, and the numbers behind them."""

import json
from pathlib import Path

from leakyforge.errors import ExportError
from leakyforge.files import atomic_file, destination_problem
from leakyforge.study import Study
from leakyforge.study_figures import draw_activations, draw_study, pyplot
from leakyforge.study_report import markdown

REPORT = "study.md"
NUMBERS = "study.json"
FIGURE = "study.png"
ACTIVATIONS = "activations.png"


def check_folder(folder: Path) -> None:
    """Refuse before minutes of work what would refuse to be written after them.

    Raises:
        ExportError: the folder is absent, or one of the files cannot be written there.
        MissingDependencyError: matplotlib is not installed.
    """
    pyplot()
    for name in (REPORT, NUMBERS, FIGURE, ACTIVATIONS):
        problem = destination_problem(folder / name)
        if problem is not None:
            raise ExportError(problem)


def write_study(study: Study, folder: Path) -> Path:
    """Write all files, each whole or not at all; gives the path of the report.

    Raises:
        ExportError: the system refuses.
        MissingDependencyError: matplotlib is not installed.
    """
    texts = {
        NUMBERS: json.dumps(study.to_dict(), indent=1) + "\n",
        REPORT: markdown(study),
    }
    try:
        for name, text in texts.items():
            with atomic_file(folder / name) as stream:
                stream.write(text.encode())
        draw_activations(folder / ACTIVATIONS)
        draw_study(study, folder / FIGURE)
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error.strerror or error}") from error
    return folder / REPORT
