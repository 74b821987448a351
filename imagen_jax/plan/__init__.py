"""Memory and time of a stage on given machines, read from the compiled program.

jobs.py         what the command line asks for -> the program that is compiled
topology.py     devices that this machine does not have: TPU slices, and gpus.py: hosts of GPUs
programs.py     the train step and the sampler of a stage, compiled as they are run
hlo.py          the text of a compiled program: computations, instructions, shapes
cost.py         what one run of it costs a device; products.py: its FLOPs; collectives.py: its
                traffic
estimate.py     how long one run takes by the compiler's cost model; places.py: what of it is what
report.py       the plan: needs, times, and whether it fits; chart.py: as an image
doctor.py       report on this machine: its parts, and whether they work
search.py       meshes, rematerialisation and accumulation, tried and ranked
"""
