"""Faster loads and stores in the kernels of ``torch.compile`` for a CPU with AVX-512 or AVX2.

- Half registers. A register of AVX-512 holds 32 bfloat16 numbers. For a map of 16 channels
  ``torch.compile`` (2.14) fills half of a register by masked loads and stores, which take three
  times as long.
- Truth values, such as "this output of a ReLU is 0", with AVX-512 and with AVX2. ``torch.compile``
  converts them one at a time, which takes many times as long as the rest of a kernel.

This module replaces both in the C++ code by instructions that load and store a vector at once. The
numbers stay the same, bit for bit. ``python -m benchmarks.engine.channels`` measures both.
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
_STORE = re.compile(r"\b(\w+)\.store\(([^;\n]*?), static_cast<int64_t>\((8|16|32)\)\);")
_LOAD_TRUTH = re.compile(
    r"at::vec::VecMask<float,([12])>::from\(([^;\n]*?), static_cast<int64_t>\((8|16|32)\)\)"
)
_KERNEL = 'extern "C"'
_FUNCTIONS = """
#if defined(CPU_CAPABILITY_AVX512)
namespace at::vec {
inline namespace CPU_CAPABILITY {
template <>
struct VecMaskCast<int, 2, float, 1> {
    static inline VecMask<int, 2> apply(const VecMask<float, 1>& mask) {
        VectorizedN<int, 2> parts(0);
        parts[0] = _mm512_castps_si512(__m512(mask[0]));
        return VecMask<int, 2>(parts);
    }
};
}  // namespace CPU_CAPABILITY
}  // namespace at::vec
#endif
inline at::vec::Vectorized<at::BFloat16> load_sixteen(const void* from) {
#if defined(CPU_CAPABILITY_AVX512)
    return at::vec::Vectorized<at::BFloat16>(
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#else
    return at::vec::Vectorized<at::BFloat16>::loadu(from, 16);
#endif
}
template <int Count, typename Values, typename Number>
inline void store_some(Values& values, Number* to) {
#if defined(CPU_CAPABILITY_AVX512)
    using Plain = std::remove_const_t<Values>;
    if constexpr (Count == 16 && std::is_same_v<Plain, at::vec::Vectorized<at::BFloat16>>) {
        _mm256_storeu_si256(
            reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(__m512i(values)));
        return;
    } else if constexpr (
        std::is_same_v<Number, bool> &&
        std::is_same_v<Plain, at::vec::VecMask<float, Count / 16>>) {
        for (int part = 0; part < Count / 16; part++) {
            auto bits = _mm512_movepi32_mask(_mm512_castps_si512(__m512(values[part])));
            _mm_storeu_si128(
                reinterpret_cast<__m128i*>(to + 16 * part), _mm_maskz_set1_epi8(bits, 1));
        }
        return;
    }
#elif defined(CPU_CAPABILITY_AVX2)
    using Plain = std::remove_const_t<Values>;
    if constexpr (
        std::is_same_v<Number, bool> &&
        std::is_same_v<Plain, at::vec::VecMask<float, Count / 8>>) {
        for (int part = 0; part < Count / 8; part++) {
            auto words = _mm256_castps_si256(__m256(values[part]));
            auto halves = _mm_packs_epi32(
                _mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            auto bytes = _mm_and_si128(_mm_packs_epi16(halves, halves), _mm_set1_epi8(1));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(to + 8 * part), bytes);
        }
        return;
    }
#endif
    values.store(to, Count);
}
template <int N, int Count, typename Number>
inline at::vec::VecMask<float, N> load_truth(const Number* from) {
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (Count == 16 * N && std::is_same_v<Number, bool>) {
        at::vec::VectorizedN<float, N> values;
        for (int part = 0; part < N; part++) {
            auto bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * part));
            values[part] = _mm512_castsi512_ps(_mm512_movm_epi32(_mm_test_epi8_mask(bytes, bytes)));
        }
        return values;
    }
#elif defined(CPU_CAPABILITY_AVX2)
    if constexpr (Count == 8 * N && std::is_same_v<Number, bool>) {
        at::vec::VectorizedN<float, N> values;
        for (int part = 0; part < N; part++) {
            auto bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * part));
            auto words = _mm256_cvtepu8_epi32(bytes);
            values[part] = _mm256_castsi256_ps(_mm256_cmpgt_epi32(words, _mm256_setzero_si256()));
        }
        return values;
    }
#endif
    return at::vec::VecMask<float, N>::from(from, Count);
}
"""


def rewrite(source: str) -> str:
    """Replace masked loads and stores of 16 bfloat16 numbers, and those of truth values.

    Args:
        source: The C++ code of a kernel that ``torch.compile`` wrote.

    Returns:
        The new code, or ``source`` itself where there is nothing to replace.

    Example::

        rewrite("... at::vec::Vectorized<at::BFloat16>::loadu(p, static_cast<int64_t>(16)) ...")
    """
    changed, loads = _LOAD.subn(r"load_sixteen(\1)", source)
    changed, truths = _LOAD_TRUTH.subn(r"load_truth<\1, \3>(\2)", changed)
    changed, stores = _STORE.subn(r"store_some<\3>(\1, \2);", changed)
    place = changed.find(_KERNEL)
    if not loads + truths + stores or place < 0:
        return source
    return changed[:place] + _FUNCTIONS + changed[place:]


@functools.cache
def use_vector_loads() -> None:
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
