"""Which profile a task wants, and what differs from it."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

Pairs = tuple[tuple[str, str], ...]


def flat(value: Any, prefix: str = "") -> Pairs:
    """Nested or dotted settings as pairs of a path and a text, sorted, so that equal ones are equal."""
    if not isinstance(value, dict):
        return tuple(sorted((str(key), str(text)) for key, text in value or ()))
    pairs: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            pairs += flat(inner, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, inner if isinstance(inner, str) else json.dumps(inner)))
    return tuple(sorted(pairs))


class TierboxConfig(BaseModel, frozen=True):
    """A profile by name or by the path of its file, settings that differ from it, and the machine that is `default`."""

    profile: str = "local"
    overrides: Annotated[Pairs, BeforeValidator(flat)] = ()
    primary: str | None = None

    def __init__(self, profile: str = "local", **others: Any) -> None:
        super().__init__(profile=profile, **others)

    @classmethod
    def of(cls, config: BaseModel | str | None) -> "TierboxConfig":
        """What Inspect hands over, as one of these."""
        if isinstance(config, cls):
            return config
        if config is None:
            return cls("tierbox.toml" if Path("tierbox.toml").is_file() else "local")
        if isinstance(config, str):
            return cls(config)
        raise TypeError(f"tierbox takes a profile or a TierboxConfig, not {type(config).__name__}")

    @property
    def is_relative(self) -> bool:
        """Whether the profile is a file whose place depends on the task's."""
        names_file = "/" in self.profile or self.profile.endswith(".toml")
        return names_file and not os.path.isabs(self.profile)

    def resolved(self) -> "TierboxConfig":
        """With the path of the file as it is in the directory where the task runs."""
        return self.model_copy(update={"profile": os.path.abspath(self.profile)}) if self.is_relative else self
