from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import config as inductor

from pipeline.device import vector_loads
from pipeline.device.compiling import compile_function
from pipeline.device.vector_loads import rewrite, use_vector_loads

KERNEL = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C"  void  kernel(const at::BFloat16* in_ptr0, at::BFloat16* out_ptr0)
{
    auto tmp0 = at::vec::Vectorized<at::BFloat16>::loadu(in_ptr0 + static_cast<int64_t>(x1 + 16L*x0), static_cast<int64_t>(16));
    auto tmp1 = at::vec::Vectorized<float>::loadu(in_ptr1 + static_cast<int64_t>(x1), static_cast<int64_t>(16));
    tmp2.store(out_ptr0 + static_cast<int64_t>(x1 + 16L*x0), static_cast<int64_t>(16));
    tmp3.store(tmp4 + static_cast<int64_t>(9L*x1_inner), static_cast<int64_t>(9L));
    auto tmp5 = at::vec::VecMask<float,2>::from(in_ptr2 + static_cast<int64_t>(x1), static_cast<int64_t>(32));
}
"""  # noqa: E501


def test_masked_loads_and_stores_are_replaced() -> None:
    changed = rewrite(KERNEL)
    assert "auto tmp0 = load_sixteen(in_ptr0 + static_cast<int64_t>(x1 + 16L*x0));" in changed
    assert "store_some<16>(tmp2, out_ptr0 + static_cast<int64_t>(x1 + 16L*x0));" in changed
    assert "auto tmp5 = load_truth<2, 32>(in_ptr2 + static_cast<int64_t>(x1));" in changed
    assert changed.index("inline") < changed.index('extern "C"')
    assert changed.count("Vectorized<float>::loadu(in_ptr1") == 1
    assert "tmp3.store(tmp4 + static_cast<int64_t>(9L*x1_inner), static_cast<int64_t>(9L));" in (
        changed
    )


def test_other_code_stays_the_same() -> None:
    other = KERNEL.replace("(16)", "(4)").replace("(32)", "(4)")
    for code in ("int main() {}", other, KERNEL.replace("extern", "")):
        assert rewrite(code) is code


def block(channels: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())
    images = torch.randn(3, channels, 9, 7)
    return network.to(memory_format=torch.channels_last), images.contiguous(
        memory_format=torch.channels_last
    )


def truth_values(images: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """A kernel that stores which outputs of a ReLU are 0, and one that loads them."""

    def store(values: Tensor) -> tuple[Tensor, Tensor]:
        rectified = torch.relu(values.float() - 0.1).to(kind)
        return rectified, rectified <= 0

    def load(values: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, 0, values.float() * 3).to(kind)

    values = images.to(kind)
    _, where = compile_function(store)(values)
    return where, compile_function(load)(values, where)


def shortcut(images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Every second pixel with channels of zeros around it, and the gradient: masked loads."""
    images = images.bfloat16().requires_grad_()
    side = images.shape[1] // 2

    def run(inputs: Tensor) -> Tensor:
        return torch.relu(F.pad(inputs[:, :, ::2, ::2], (0, 0, 0, 0, side, side)) + 0.1)

    made = compile_function(run)(images)
    made.float().square().sum().backward()
    return made, images.grad


def answers(channels: int) -> list[Tensor]:
    """The output, and the gradients of weights and images, in bfloat16."""
    network, images = block(channels)
    images.requires_grad_()

    def run(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            made: Tensor = network(inputs) + inputs.bfloat16()
            return made

    made = compile_function(run)(images)
    made.float().square().sum().backward()
    gradients = [images.grad, *(weight.grad for weight in network.parameters())]
    seen = images.detach()
    truths = [*truth_values(seen, torch.bfloat16), *truth_values(seen, torch.float32)]
    return [made, *gradients, *truths, *shortcut(seen)]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("channels", "bits"), [(16, None), (16, 256), (24, None), (32, None), (64, None)]
)
def test_the_numbers_stay_the_same_bit_for_bit(
    channels: int, bits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the code for a CPU whose registers have 256 bits, which has the same patterns."""
    use_vector_loads()
    torch._dynamo.reset()
    changed: list[bool] = []

    def counted(source: str) -> str:
        made = rewrite(source)
        changed.append(made is not source)
        return made

    monkeypatch.setattr(vector_loads, "rewrite", counted)
    with inductor.patch({"cpp.simdlen": bits}):
        fast = answers(channels)
    known = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    assert changed and (any(changed) or channels == 24 or not known)
    torch._dynamo.reset()
    monkeypatch.setattr(vector_loads, "rewrite", lambda source: source)
    with inductor.patch({"cpp.simdlen": bits}):
        slow = answers(channels)
    for own, plain in zip(fast, slow, strict=True):
        assert torch.equal(own, plain)


def test_a_changed_kernel_that_does_not_compile_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_vector_loads()
    torch._dynamo.reset()
    expected = answers(16)
    torch._dynamo.reset()
    monkeypatch.setattr(vector_loads, "rewrite", lambda source: source + "\n#error no")
    for own, plain in zip(answers(16), expected, strict=True):
        assert torch.equal(own, plain)
