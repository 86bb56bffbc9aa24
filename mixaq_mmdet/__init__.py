"""MixA-Q for MMDetection: importing this package registers everything it adds."""

from . import compat
from .version import __version__

__all__ = ['__version__']

if not compat.doctor_is_running():
    try:
        compat.prepare_host()
        from . import engine, models  # noqa: F401  (importing registers)
    except ImportError as error:
        raise ImportError(f'mixaq_mmdet could not load: {error}. Run `python -m mixaq_mmdet.compat` for a diagnosis.') from error
