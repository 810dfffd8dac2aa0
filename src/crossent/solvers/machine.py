"""What the machine that solves has room for, and what it is fast at."""

import torch

#: What is kept of all rows' outputs to multiply by the Hessian; where that would be more, it is computed each time.
KEPT_BYTES = 2**30
_KEPT_SHARE = 0.2  # likewise, of a GPU's memory


def kept_bytes(device: torch.device) -> float:
    """What may be kept of all rows' outputs on a device."""
    if device.type == "cuda":
        return _KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory
    return KEPT_BYTES


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 faster than those of float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
