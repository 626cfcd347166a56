"""The Triton kernels and their launchers. Imported on the first CUDA call: nothing else needs triton.

routing.py    route, routing_plan, tile schedule
rows.py       gather, combine, and the small deterministic reductions
epilogues.py  activations and where a tile lies, shared by the GEMMs
pointer.py    grouped GEMMs fed by pointers: any architecture, dtype, size and alignment
tma.py        the same GEMMs, persistent and fed by TMA: 16-bit, sm_90 and sm_100
decode.py     few tokens: each touched expert's weights are read once
layer.py      the expert FFN forward and backward, made of the above
no_device.py  a driver that compiles what they launch, where nothing shall run
"""

# Of every launch: multiply and add are one instruction, as Triton has it unasked up to 3.9 and no longer from 3.10 on.
OPTIONS = {"enable_fp_fusion": True}
