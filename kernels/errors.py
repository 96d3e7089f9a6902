"""Errors of ``kernels``, named for what whoever catches them does."""

from __future__ import annotations


class KernelsError(Exception):
    """Base of everything that ``kernels`` raises on purpose."""


class GraphError(KernelsError):
    """The model cannot be used as it is: fix the graph. Names model, node and op."""


class BundleError(KernelsError):
    """A bundle's folder is missing, incomplete or damaged: build it again."""


class StoreError(BundleError):
    """A table's folder or source is missing, incomplete or damaged: build it again. Names file."""


class PlacementError(KernelsError):
    """A placement does not fit its model: fix its file, or plan again. Names the table."""


class SpecError(KernelsError):
    """``features.toml`` is wrong: fix the named feature at the named line."""


class FeatureError(KernelsError):
    """A request's value does not fit the feature spec: answer its client, who fixes the request.

    Attributes:
        field: Name of the feature or request field at fault.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class StateError(KernelsError):
    """Durable state is damaged, or cannot be written: mend the disk or the file. Names it."""


class LookupFailed(KernelsError):
    """Ids and tables do not fit each other: fix parser or bundle. Names the lookup."""


class LaunchFailed(KernelsError):
    """A launch gave no scores: answer its requests with an error. Names the model."""


class CompileError(KernelsError):
    """CUDA text does not compile: fix the emitter. Names the source and its first error.

    Attributes:
        source: The text.
        log: What the compiler said, whole.
    """

    def __init__(self, name: str, problem: str, source: str = "", log: str = "") -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem
        self.source = source
        self.log = log


class CompilerMissing(KernelsError):
    """NVRTC cannot be loaded: install it. Says how."""


class CacheError(KernelsError):
    """The folder of compiled kernels cannot be used: mend it, or give another. Names it."""


class CudaError(KernelsError):
    """The driver refused a call: fix what it was given, or free memory. Names the function."""


class DeviceLost(KernelsError):
    """CUDA cannot be used in this process any more: replace the process. Names the function."""
