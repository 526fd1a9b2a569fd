"""Inspect sandboxes with an enforced isolation tier."""

from ._config import TierboxConfig
from ._provider import TierboxSandboxEnvironment

__all__ = ["TierboxConfig", "TierboxSandboxEnvironment"]
