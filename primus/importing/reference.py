"""The key table of docs/from-primus.md, from the code."""

from __future__ import annotations

from primus.config.problems import show
from primus.config.schema.settings import Settings
from primus.importing.convert import known_keys
from primus.importing.tables import DROPPED, FAMILIES, HUGGING_FACE_TOKENIZERS, OWN_NAMES, RENAMED

START = "<!-- written by python -m primus.importing.reference -->"
END = "<!-- end -->"


def table() -> str:
    """Every known key of Primus: same name here, changed, or dropped with its reason."""
    same = [name for name in Settings.model_fields if name not in OWN_NAMES]
    special = sorted(known_keys() - set(same) - set(DROPPED) - set(RENAMED))
    lines = [START, "**The same name here**, where a value is accepted by the schema:", ""]
    lines += [_listed(same), "", "**Another name or another value here**:", ""]
    lines += [f"- `{old}`: `{new}`" for old, new in RENAMED.items()]
    lines += [f"- {_listed(special)}: see the rules above", ""]
    lines += [
        "**Dropped.** Where values are named, only these: any other is refused.",
        "",
        "| keys | reason |",
        "| --- | --- |",
    ]
    reasons: dict[str, list[str]] = {}
    for name, drop in DROPPED.items():
        reasons.setdefault(drop.reason + _values(drop.harmless), []).append(name)
    for prefix, drop in FAMILIES.items():
        reasons.setdefault(drop.reason, []).append(f"{prefix}*")
    lines += [f"| {_listed(sorted(names))} | {reason} |" for reason, names in reasons.items()]
    tokenizers = _listed(sorted(HUGGING_FACE_TOKENIZERS))
    return "\n".join([*lines, "", f"**Tokenizers** that transformers reads: {tokenizers}.", END])


def _values(harmless: tuple[object, ...] | None) -> str:
    if harmless is None:
        return ""
    return ": " + ", ".join(f"`{show(value)}`" for value in harmless)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(table())
