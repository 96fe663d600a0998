"""One of several processes that search in the same study: `python -m tests.launch.search.racer FOLDER STORAGE TRIALS`.

Prints the folders of the trials that it ran, as JSON.
"""

import json
import sys
from pathlib import Path

from tests.launch.search.fake import FakeRuns, fake_search


def main(folder: str, storage: str, trials: str) -> None:
    runs = FakeRuns()
    fake_search(Path(folder), runs, trials=int(trials), storage=storage or None)
    print(json.dumps([job.trial.folder for job in runs.jobs]))


if __name__ == "__main__":
    main(*sys.argv[1:])
