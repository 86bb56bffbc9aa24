"""A plan whose experiments take seconds, for tests of the runner; the driver below is killed by them.

``python fake_plan.py FOLDER`` runs it below FOLDER: FOLDER/repository holds the configs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1] / 'benchmarks')]

from evidence.experiment import Experiment  # noqa: E402
from evidence.runner import Runner  # noqa: E402
from evidence.stage import Stage  # noqa: E402
from evidence.store import Store  # noqa: E402

QUICK = Experiment('quick', 'measure', measure='fake_plan:count', settings={'value': 7}, split=None)
TRAINED = Experiment('trained', 'train', config='configs/oracle.py', overrides={'model.delay': 0.5}, seed=3, split=None)
EVALUATED = Experiment(
    'evaluated', 'evaluate', config='configs/oracle.py', overrides={'model.noise': 4.0}, starts_from=TRAINED, split=None
)
STAGE = Stage('fake', 'a measurement, then a training', [QUICK, TRAINED], hours=0.01)


def count(context: Any) -> dict[str, Any]:
    """A measurement that tells how often it was made."""
    calls = context.repository / 'calls.txt'
    with open(calls, 'a') as file:
        file.write(f'{context.experiment.name}\n')
    return {'extras': {'value': context.experiment.settings['value']}}


def probe(evaluation: Any, cfg: Any) -> dict[str, Any]:
    """Facts of a detector."""
    return {'noise': evaluation.detector.noise}


def sleep(context: Any) -> dict[str, Any]:
    """A measurement that never ends by itself."""
    (context.folder / 'asleep').touch()
    time.sleep(600)
    return {}


def runner(folder: Path) -> Runner:
    """The runner of one test folder."""
    return Runner(Store(folder / 'results'), folder / 'work', repository=folder / 'repository')


def main(folder: Path) -> int:
    """Run the plan; prints the state of every task."""
    found = runner(folder)
    code = found.run([STAGE])
    for task in found.tasks:
        print(task.title, task.state, task.message)
    return code


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
