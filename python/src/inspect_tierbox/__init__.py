"""Inspect sandboxes with an enforced isolation tier."""

from ._config import TierboxConfig as TierboxConfig
from ._provider import TierboxSandboxEnvironment as TierboxSandboxEnvironment
