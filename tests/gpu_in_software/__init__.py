"""A GPU in software: executes the PTX of Triton and NVRTC with NumPy, and checks what hardware forgives silently.

    pytest --gpu sm_90 tests/test_lif.py        the project's tests on a pretended card
    python -m tests.gpu_in_software --gpu sm_90 verify --backend triton --device cuda
                                                any command of fastsnn on it
    python -m tests.gpu_in_software.suite       the whole GPU suite and verify on four targets
    python -m tests.gpu_in_software.unguarded   removes barriers and waits from the kernels: what notices?

The machine, from the text to the results:

    ptx.py              the parser: a Kernel is a list of Instructions
    flow.py             its basic blocks, and which registers are live between them
    translate.py        a basic block as one Python function of NumPy statements; the instructions are in
                        integers.py, floats.py, conversions.py, movement.py and collectives.py
    machine.py          launches: scheduling and barriers; groups.py: lanes that share a program counter
    memory.py           global memory; shared.py: shared memory and cp.async
    warps.py            shuffles, votes and matrix loads; tensor_cores.py: mma and wgmma
    races.py            who touched what between two barriers
    report.py           faults and counts; targets.py: the limits of a target; log.py: all launches of a process

The pretended card around it: cuda.py stands in for ``torch.cuda``, tensors.py for tensors on the card, driver.py for
Triton's driver, nvrtc.py for CuPy's launches, plugin.py adds ``--gpu`` to pytest.

It does not model ptxas, the driver, caches or clocks. What no test has met is an error that names the instruction.
"""
