"""NVIDIA GPUs that XLA compiles for without having one: what its compiler asks of a card."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A card as XLA's GPU compiler sees it; kilobytes and megabytes are of 1024.

    Attributes:
      kind: JAX's name of the device.
      capability: compute capability, and whether code may be for this architecture alone ("a").
      cores: streaming multiprocessors.
      lanes: float32 units of a core.
      shared: shared memory of a core, KB; a block may have 1 KB less.
      cache: second-level cache, MB.
      clock: at most, GHz.
      memory: main memory that programs can have, bytes.
      memory_rate: bandwidth of the main memory, bytes/s.
    """

    kind: str
    capability: tuple[int, int, bool]
    cores: int
    lanes: int
    shared: int
    cache: int
    clock: float
    memory: int
    memory_rate: int


GPUS: dict[str, Gpu] = {
    "a100": Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0, False), 108, 64, 164, 40, 1.41, 80 * 10**9, 2039 * 10**9
    ),
    "h100": Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0, True), 132, 128, 228, 50, 1.98, 80 * 10**9, 3352 * 10**9
    ),
}
"""By the name that topologies have of them. Sources: NVIDIA's whitepapers "A100 Tensor Core GPU
Architecture" and "H100 Tensor Core GPU Architecture" (SXM modules), and the table of compute
capabilities in the CUDA C++ Programming Guide."""


def target_config(gpu: Gpu) -> str:
    """The card as a text of XLA's GpuTargetConfigProto.

    What is the same for all cards here stands in the text: limits of threads and registers of
    compute capabilities 8.0 and 9.0.
    """
    major, minor, alone = gpu.capability
    return f"""
        platform_name: "CUDA"
        device_description_str: "{gpu.kind}"
        dnn_version_info {{ major: 9 minor: 10 }}
        gpu_device_info {{
          name: "{gpu.kind}"
          cuda_compute_capability {{
            major: {major} minor: {minor}
            feature_extension: {"ACCELERATED_FEATURES" if alone else "NONE"}
          }}
          core_count: {gpu.cores}
          fpus_per_core: {gpu.lanes}
          shared_memory_per_core: {gpu.shared * 1024}
          shared_memory_per_block_optin: {(gpu.shared - 1) * 1024}
          shared_memory_per_block: {48 * 1024}
          l2_cache_size: {gpu.cache * 2**20}
          clock_rate_ghz: {gpu.clock}
          device_memory_size: {gpu.memory}
          memory_bandwidth: {gpu.memory_rate}
          threads_per_warp: 32
          threads_per_block_limit: 1024
          threads_per_core_limit: 2048
          thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          block_dim_limit_x: {2**31 - 1}
          block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
          registers_per_core_limit: {2**16}
          registers_per_block_limit: {2**16}
          dnn_version: "9.10.0"
        }}
    """
