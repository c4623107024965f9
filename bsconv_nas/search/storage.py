"""Where checkpoints lie: a folder, or any storage that `pyarrow.fs` takes by its URI, such as `s3://bucket/runs`."""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pyarrow import fs

from bsconv_nas.errors import SearchError

__all__ = ["below", "forget", "is_file", "locate", "read", "reason", "write"]


def locate(place: str | Path) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path inside it.

    Raises:
        SearchError: no file system of that name, or one that cannot be reached.
    """
    if "://" not in str(place):
        return fs.LocalFileSystem(), Path(place).absolute().as_posix()
    try:
        return _opened(str(place))
    except (OSError, ValueError, NotImplementedError, ImportError) as error:
        raise SearchError(
            f"resources.storage must be a folder or a URI that pyarrow.fs takes, but {str(place)!r} is not: "
            f"{reason(error)}."
        ) from None


@functools.lru_cache(maxsize=64)
def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """Connect once: a bucket's region is looked up by the network."""
    system, inside = fs.FileSystem.from_uri(uri)
    return system, inside


def below(storage: str | Path, name: str) -> str:
    """Return the place called `name` inside a storage; the query of a URI stays.

    >>> below("s3://bucket/runs?region=eu-west-1", "7")
    's3://bucket/runs/7?region=eu-west-1'
    """
    if "://" not in str(storage):
        return (Path(storage).absolute() / name).as_posix()
    parts = urlsplit(str(storage))
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def write(system: fs.FileSystem, path: str, data: bytes) -> None:
    """Write a file whose folder exists."""
    with system.open_output_stream(path) as stream:
        stream.write(data)


def read(system: fs.FileSystem, path: str) -> bytes:
    """Return what a file holds.

    Raises:
        FileNotFoundError: there is none.
    """
    with system.open_input_file(path) as stream:
        return bytes(stream.read())


def is_file(system: fs.FileSystem, path: str) -> bool:
    """Return whether a file lies at `path`."""
    return bool(system.get_file_info(path).type == fs.FileType.File)


def forget(system: fs.FileSystem, path: str) -> None:
    """Delete a file, if it is still there."""
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(path)


def reason(error: BaseException) -> str:
    """Return what an error of a storage says, in one line without numbers and end.

    >>> reason(OSError("[Errno 20] Cannot create 'a/b'. Detail: [errno 20] Not a directory"))
    "Cannot create 'a/b': Not a directory"
    """
    said = re.sub(r"(\. Detail: )?\[[Ee]rrno \d+\] ", lambda found: ": " if found[1] else "", str(error))
    return " ".join(said.split()).rstrip(".") or type(error).__name__
