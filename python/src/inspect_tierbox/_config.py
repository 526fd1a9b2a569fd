"""Which profile a task wants, and what differs from it."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

Pairs = tuple[tuple[str, str], ...]


def flat(value: Any, prefix: str = "") -> Pairs:
    """Nested or dotted settings as pairs of a path and a text, sorted, so that equal ones are equal."""
    pairs: list[tuple[str, str]] = []
    for key, inner in value.items() if isinstance(value, dict) else value or ():
        text = inner if isinstance(inner, str) else json.dumps(inner)
        pairs += flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else [(prefix + key, text)]
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
        if config is None:
            config = "tierbox.toml" if Path("tierbox.toml").is_file() else "local"
        return config if isinstance(config, cls) else cls(config)  # Which is refused if it is no text.

    @property
    def place(self) -> str:
        """The profile's name, or its file's path as it is in the directory where the task runs."""
        return os.path.abspath(self.profile) if "/" in self.profile or self.profile.endswith(".toml") else self.profile
