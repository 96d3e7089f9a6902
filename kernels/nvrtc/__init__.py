"""CUDA text becomes cubins, without a driver or a card.

Reading order: ``compile.py`` (a source and its headers become a cubin), ``report.py`` (what ptxas
says of it, and what of that is a fault), ``cache.py`` (cubins on disk), ``worker.py`` and
``pool.py`` (many at once, in processes).
"""

from kernels.nvrtc.cache import Cache, default_folder
from kernels.nvrtc.compile import Cubin, Unit, compile_source, unit_of
from kernels.nvrtc.pool import Builder
from kernels.nvrtc.report import Resources, problems

__all__ = [
    "Builder",
    "Cache",
    "Cubin",
    "Resources",
    "Unit",
    "compile_source",
    "default_folder",
    "problems",
    "unit_of",
]
