"""MixA-Q for MMDetection: importing this package registers everything it adds.

In Python: load, quantize, calibrate, convert, export, cost (docs/python-api.md).
"""

from . import doctor
from .api import calibrate, convert, cost, export, load, quantize
from .shipped import config_path
from .version import __version__

__all__ = ['__version__', 'calibrate', 'config_path', 'convert', 'cost', 'export', 'load', 'quantize']

if not doctor.doctor_is_running():
    try:
        from . import compat

        compat.prepare_host()
        from . import deploy, engine, models  # noqa: F401  (importing registers)
    except Exception as error:  # a broken stack raises whatever it likes: AssertionError, OSError, RuntimeError
        raise ImportError(
            f'mixaq_mmdet could not load: {type(error).__name__}: {error}. Run `{doctor.COMMAND}` for a diagnosis.'
        ) from error
