from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.device import half_registers
from pipeline.device.compiling import compile_function
from pipeline.device.half_registers import rewrite, use_half_registers

KERNEL = """
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C"  void  kernel(const at::BFloat16* in_ptr0, at::BFloat16* out_ptr0)
{
    auto tmp0 = at::vec::Vectorized<at::BFloat16>::loadu(in_ptr0 + static_cast<int64_t>(x1 + 16L*x0), static_cast<int64_t>(16));
    auto tmp1 = at::vec::Vectorized<float>::loadu(in_ptr1 + static_cast<int64_t>(x1), static_cast<int64_t>(16));
    tmp2.store(out_ptr0 + static_cast<int64_t>(x1 + 16L*x0), static_cast<int64_t>(16));
    tmp3.store(tmp4 + static_cast<int64_t>(9L*x1_inner), static_cast<int64_t>(9L));
}
"""  # noqa: E501


def test_loads_and_stores_of_16_numbers_are_replaced() -> None:
    changed = rewrite(KERNEL)
    assert "auto tmp0 = load_sixteen(in_ptr0 + static_cast<int64_t>(x1 + 16L*x0));" in changed
    assert "store_sixteen(tmp2, out_ptr0 + static_cast<int64_t>(x1 + 16L*x0));" in changed
    assert changed.index("inline") < changed.index('extern "C"')
    assert changed.count("Vectorized<float>::loadu(in_ptr1") == 1
    assert "tmp3.store(tmp4 + static_cast<int64_t>(9L*x1_inner), static_cast<int64_t>(9L));" in (
        changed
    )


def test_other_code_stays_the_same() -> None:
    for code in ("int main() {}", KERNEL.replace("(16)", "(32)"), KERNEL.replace("extern", "")):
        assert rewrite(code) is code


def block(channels: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())
    images = torch.randn(3, channels, 9, 7)
    return network.to(memory_format=torch.channels_last), images.contiguous(
        memory_format=torch.channels_last
    )


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
    return [made, images.grad, *(weight.grad for weight in network.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("channels", [16, 24, 32])
def test_the_numbers_stay_the_same_bit_for_bit(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_half_registers()
    torch._dynamo.reset()
    changed: list[bool] = []

    def counted(source: str) -> str:
        made = rewrite(source)
        changed.append(made is not source)
        return made

    monkeypatch.setattr(half_registers, "rewrite", counted)
    fast = answers(channels)
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert changed and (any(changed) or channels > 16 or not wide)
    torch._dynamo.reset()
    monkeypatch.setattr(half_registers, "rewrite", lambda source: source)
    for own, plain in zip(fast, answers(channels), strict=True):
        assert torch.equal(own, plain)


def test_a_changed_kernel_that_does_not_compile_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_half_registers()
    torch._dynamo.reset()
    expected = answers(16)
    torch._dynamo.reset()
    monkeypatch.setattr(half_registers, "rewrite", lambda source: source + "\n#error no")
    for own, plain in zip(answers(16), expected, strict=True):
        assert torch.equal(own, plain)
