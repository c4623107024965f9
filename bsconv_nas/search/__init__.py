"""Search: experiments, records, proposals, early stopping and the trials that Ray Tune runs.

Importing any file of this room makes it the attribute `search` of the package, where users call `bsconv_nas.search`.
So the room can be called too, and the call is `bsconv_nas.run.search`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from bsconv_nas.run import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
