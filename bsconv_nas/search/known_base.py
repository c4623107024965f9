"""The base of a run: recorded when the run begins, and known again before a network of the run is built from it.

The run folder keeps `base.json`, which `bsconv_nas.network.identity` describes; older runs have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsconv_nas.errors import RecordError, SpaceError, first_line
from bsconv_nas.search.store import Store
from bsconv_nas.space.base import Base

if TYPE_CHECKING:
    from torch import nn

__all__ = ["check_base", "keep_identity", "read_identity", "unchecked"]

_FILE = "base.json"
_ANSWERS = {"small", "large", "training", "buffers", "gradients"}


def read_identity(base: Base) -> dict[str, Any]:
    """Return by what the base of a new run will be known again.

    The search does without it where it cannot be had; `unchecked` says why.
    """
    from bsconv_nas.network.identity import first_difference, identity

    try:
        found = identity(base)
        difference = first_difference(found, identity(base))
    except Exception as error:  # whatever the user's code raises on a CPU or when it is copied
        return {"unchecked": f"it cannot be computed here ({first_line(error)})"}
    return {"unchecked": f"each making of it is another network: {difference}"} if difference else found


def keep_identity(folder: Path, known: Mapping[str, Any]) -> None:
    """Put the identity of the base into a run folder."""
    (folder / _FILE).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def check_base(store: Store, base: Base | nn.Module) -> None:
    """Refuse a base that is no longer the network that was searched, as far as the run can tell.

    Raises:
        RecordError: its code was edited, by the first difference; or `base.json` is damaged.
        SpaceError: it can no longer be imported or made.
    """
    known = _read(store)
    if known is None or known.keys() == {"unchecked"}:
        return
    from bsconv_nas.network.build import instantiate
    from bsconv_nas.network.identity import first_difference, identity

    assert isinstance(base, Base)  # a recorded space has one
    instantiate(base)  # one that is gone is refused by a sentence of its own
    try:
        difference = first_difference(known, identity(base))
    except SpaceError as error:  # what it advises would make another network of it
        difference = f"now it fails ({str(error).rpartition(': ')[0]})"
    except Exception as error:  # whatever the user's code raises now
        difference = f"now it fails ({first_line(error)})"
    if difference:
        raise RecordError(
            f"The base of run {store.name!r} must be the network that was searched, but in {base.factory!r} "
            f"{difference}: restore its code as it was, or search anew."
        )


def unchecked(store: Store) -> str:
    """Return a sentence about what cannot be checked of a run's base, or "" if all can.

    Raises:
        RecordError: `base.json` is damaged.
    """
    known = _read(store)
    if known is None:
        return (
            f"Run {store.name!r} was made before bases were recorded: it cannot be checked that its base is still the "
            "network that was searched."
        )
    if not known["unchecked"]:
        return ""
    what = "its graph alone is" if "evaluation" in known else "nothing of it is"
    return f"The base of run {store.name!r} is not fully checked, {what} compared: {known['unchecked']}."


def _read(store: Store) -> dict[str, Any] | None:
    """Return the recorded identity, or None in an older run."""
    path = store.path / _FILE
    if not path.exists():
        return None
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{str(path)!r} must be a JSON file, but: {error}.") from None
    if not _is_identity(known):
        raise RecordError(f"{str(path)!r} must be what a search writes: it is damaged.")
    return dict(known)


def _is_identity(known: object) -> bool:
    """Return whether JSON values can be what a search writes."""
    if not isinstance(known, dict) or not isinstance(known.get("unchecked"), str):
        return False
    if known.keys() == {"unchecked"}:
        return bool(known["unchecked"])
    texts = [known.get("evaluation"), known.get("training"), _values(known.get("state")), _values(known.get("made_by"))]
    answers = known.get("answers", False)
    return all(isinstance(lines, list) and all(isinstance(line, str) for line in lines) for lines in texts) and (
        _are_answers(answers) if answers is not None else bool(known["unchecked"])
    )


def _are_answers(answers: object) -> bool:
    if not isinstance(answers, dict) or answers.keys() != _ANSWERS:
        return False
    tables = [_values(answers[name]) for name in ("buffers", "gradients")]
    rows = [answers["small"], answers["large"], answers["training"], *tables]
    return all(isinstance(part, list) and all(map(_are_numbers, part)) for part in rows)


def _are_numbers(row: object) -> bool:
    return isinstance(row, list) and all(isinstance(number, int | float) for number in row)


def _values(table: object) -> list[Any] | None:
    return list(table.values()) if isinstance(table, dict) else None
