"""What a GPU's driver refuses at a launch, and a compiler cannot know: checked where a launch is recorded.

Tensor maps by the rules of cuTensorMapEncodeTiled (CUDA driver API, "Tensor Map Object Management"), grids by the
limits of CUDA's table "Technical Specifications per Compute Capability". A kernel that wants scratch memory needs
`triton.set_allocator`, which autograd's thread does not see, so none may.
"""

import math
from collections.abc import Iterable
from typing import Any

from triton.tools.tensor_descriptor import TensorDescriptor

MOST_IN_GRID = (2**31 - 1, 65_535, 65_535)
SWIZZLED_BYTES = {0: math.inf, 1: 32, 2: 64, 3: 128}  # how wide a box may be, by the swizzle's number


def check_launch(metadata: Any, grid: Iterable[int], arguments: Iterable[Any]) -> None:
    """Raise ValueError with every rule that this launch of a kernel compiled for CUDA breaks."""
    broken = [
        f"grid axis {axis} is {extent}; at most {most}"
        for axis, (extent, most) in enumerate(zip(grid, MOST_IN_GRID, strict=False))
        if extent > most
    ]
    if metadata.global_scratch_size:
        broken.append(f"wants {metadata.global_scratch_size} bytes of scratch memory a program")
    descriptors = [x for x in arguments if isinstance(x, TensorDescriptor)]
    for descriptor, compiled in zip(descriptors, metadata.tensordesc_meta or [], strict=False):
        if compiled is not None:
            broken += tensor_map_faults(descriptor, compiled["block_size"], compiled["swizzle"])
    if broken:
        raise ValueError(f"{metadata.name} would not launch: {'; '.join(broken)}")


def tensor_map_faults(descriptor: TensorDescriptor, box: list[int], swizzle: int) -> list[str]:
    """The rules that a host-made descriptor, read in boxes of `box` elements, breaks."""
    size = descriptor.base.element_size()
    strides = [size * stride for stride in descriptor.strides[:-1]]
    rules = {
        "rank within 1 .. 5": 1 <= len(descriptor.shape) <= 5,
        "address a multiple of 16": descriptor.base.data_ptr() % 16 == 0,
        "extents within 1 .. 2^32": all(1 <= extent <= 2**32 for extent in descriptor.shape),
        "strides multiples of 16 bytes below 2^40": all(0 <= s < 2**40 and s % 16 == 0 for s in strides),
        "elements of a row adjacent": descriptor.strides[-1] == 1,
        "box extents within 1 .. 256": all(1 <= extent <= 256 for extent in box),
        "box rows a multiple of 16 bytes": box[-1] * size % 16 == 0,
        "box rows within the swizzle": box[-1] * size <= SWIZZLED_BYTES[swizzle],
    }
    where = f"tensor map {tuple(descriptor.shape)} of strides {tuple(descriptor.strides)} in boxes {tuple(box)}"
    return [f"{where}: {rule}" for rule, holds in rules.items() if not holds]
