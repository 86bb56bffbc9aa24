"""Ship configs and tools inside the wheel as ``mixaq_mmdet/.mim``, where OpenMMLab's own packages keep theirs.

Everything else about the distribution is declared in setup.cfg.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = ('configs', 'tools', 'model-index.yml')
LEFT_OUT = ('__pycache__', 'make_minicoco.py')  # the drawing code lies in benchmarks/, in a checkout only


class BuildWithMim(build_py):
    """Copies what mim ships into the build folder; an editable install runs beside the originals instead."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        mim = Path(self.build_lib) / 'mixaq_mmdet' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in SHIPPED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, mim / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
            else:
                shutil.copy2(source, mim / name)


setup(cmdclass={'build_py': BuildWithMim})
