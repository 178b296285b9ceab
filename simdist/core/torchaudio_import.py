"""The one place that imports torchaudio: `from simdist.core.torchaudio_import import torchaudio`.

torchaudio's wheels link CUDA, so with a CPU-only torch `import torchaudio` raises OSError when it loads its compiled
extension. What simdist uses of it (resampling, mel filters) is plain torch and needs no extension. On that OSError,
and on nothing else, the extension module is replaced by a stub that says it is absent, and the import is tried again.
Where torchaudio imports normally it is used untouched.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["torchaudio"]


def _extension_stub() -> ModuleType:
    def fail_if_no_align(function: Any) -> Any:
        return function

    stub: Any = ModuleType("torchaudio._extension")
    stub._IS_TORCHAUDIO_EXT_AVAILABLE = False
    stub._IS_ALIGN_AVAILABLE = False
    stub.fail_if_no_align = fail_if_no_align
    stub._check_cuda_version = lambda: None
    return stub


try:
    import torchaudio
except OSError:
    for _name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[_name]  # half imported
    sys.modules["torchaudio._extension"] = _extension_stub()
    import torchaudio
