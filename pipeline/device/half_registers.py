"""Faster loads and stores of 16 channels in the kernels that ``torch.compile`` writes for a CPU.

A register of AVX-512 holds 32 bfloat16 numbers. For a map of 16 channels ``torch.compile`` (2.14)
fills half of a register by masked loads and stores, which are slow: three times slower than plain
ones on an AMD EPYC (``python -m benchmarks.engine.channels``). This module replaces them in the C++
code by loads and stores of half registers. The numbers stay the same, bit for bit.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

_LOAD = re.compile(
    r"at::vec::Vectorized<at::BFloat16>::loadu\(([^;\n]*?), static_cast<int64_t>\(16\)\)"
)
_STORE = re.compile(r"\b(\w+)\.store\(([^;\n]*?), static_cast<int64_t>\(16\)\);")
_KERNEL = 'extern "C"'
_FUNCTIONS = """
inline at::vec::Vectorized<at::BFloat16> load_sixteen(const void* from) {
#if defined(CPU_CAPABILITY_AVX512)
    return at::vec::Vectorized<at::BFloat16>(
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
    return at::vec::Vectorized<at::BFloat16>::loadu(from, 16);
#endif
}
template <typename Values, typename Number>
inline void store_sixteen(Values& values, Number* to) {
#if defined(CPU_CAPABILITY_AVX512)
    using Plain = std::remove_const_t<Values>;
    if constexpr (std::is_same_v<Plain, at::vec::Vectorized<at::BFloat16>>) {
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(__m512i(values)));
        return;
    }
#endif
    values.store(to, 16);
}
"""


def rewrite(source: str) -> str:
    """Replace masked loads and stores of 16 bfloat16 numbers in the C++ code of a kernel.

    Args:
        source: Code that ``torch.compile`` wrote.

    Returns:
        The new code, or ``source`` itself where there is nothing to replace.

    Example::

        rewrite("... at::vec::Vectorized<at::BFloat16>::loadu(p, static_cast<int64_t>(16)) ...")
    """
    changed, loads = _LOAD.subn(r"load_sixteen(\1)", source)
    changed, stores = _STORE.subn(r"store_sixteen(\1, \2);", changed)
    place = changed.find(_KERNEL)
    if not loads + stores or place < 0:
        return source
    return changed[:place] + _FUNCTIONS + changed[place:]


@functools.cache
def use_half_registers() -> None:
    """Let ``torch.compile`` of this process use :func:`rewrite`.

    Where this version of torch has no such place, nothing changes. Where a changed kernel does not
    compile, the unchanged one is used.
    """
    try:
        from torch._inductor.async_compile import AsyncCompile
        from torch._inductor.codecache import LambdaFuture

        original: Callable[..., Any] = AsyncCompile.cpp_pybinding
    except (ImportError, AttributeError) as error:
        log.debug("kernels keep their masked loads and stores: %s", error)
        return

    def cpp_pybinding(self: Any, argtypes: list[str], source_code: str) -> Any:
        changed = rewrite(source_code)
        if changed is source_code:
            return original(self, argtypes, source_code)
        try:
            made = original(self, argtypes, changed)
        except Exception:
            return original(self, argtypes, source_code)
        if not isinstance(made, LambdaFuture):
            return made

        def result() -> Any:
            try:
                return made.result()
            except Exception:
                again = original(self, argtypes, source_code)
                return again.result() if isinstance(again, LambdaFuture) else again

        return LambdaFuture(result)

    AsyncCompile.cpp_pybinding = cpp_pybinding  # type: ignore[method-assign]
